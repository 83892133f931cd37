"""What is installed: the content of wheel and sdist, and the command `minivit` in an empty folder outside the checkout.

Built offline, from a copy of the checkout, with the setuptools of this environment.
"""

from __future__ import annotations

import configparser
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from email.parser import Parser
from importlib import metadata
from pathlib import Path

import pytest

import minivit

ROOT = Path(minivit.__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(not (ROOT / "setup.cfg").is_file(), reason="an installed package has no setup.cfg")
LEFT_OUT = (".git", "__pycache__", "*.egg-info", "build", "dist", "_build", "runs", ".*_cache", ".hypothesis", ".venv*")
PACKAGE = {
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "minivit").rglob("*")
    if path.suffix in (".py", ".typed", ".cu", ".cuh", ".html", ".css", ".js")
}


def can_build() -> str:
    """What is missing to build here, or nothing."""
    for name in ("build", "pip", "setuptools"):
        if importlib.util.find_spec(name) is None:
            return f"{name} is not installed: build and setuptools are in the extra test"
    version = tuple(map(int, re.findall(r"\d+", metadata.version("setuptools"))[:2]))
    return "" if version >= (70, 1) else "setuptools before 70.1 makes no wheels by itself"


needs_build = pytest.mark.skipif(can_build() != "", reason=can_build() or "it is there")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist, and the wheel that was built from it."""
    copy = tmp_path_factory.mktemp("source") / "minivit"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*LEFT_OUT))
    out = copy.parent / "dist"
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(copy)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=out.parent, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "deprecat" not in (done.stdout + done.stderr).lower(), done.stdout + done.stderr
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def installed(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The wheel in a folder of its own; what it depends on comes from this environment."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(folder), str(built[1])]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    yield folder


@pytest.mark.slow
@needs_build
def test_the_wheel_has_the_package_and_nothing_else(built: tuple[Path, Path]) -> None:
    _, wheel = built
    assert wheel.name == f"minivit-{minivit.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        info = f"minivit-{minivit.__version__}.dist-info"
        text = archive.read(f"{info}/METADATA").decode()
        commands = archive.read(f"{info}/entry_points.txt").decode()
    assert {name for name in names if not name.startswith(info)} == PACKAGE
    assert any(name.endswith(".cu") for name in PACKAGE) and any(name.endswith(".cuh") for name in PACKAGE)
    assert {"minivit/py.typed", "minivit/programs/train.py", "minivit/train/presets.py"} <= PACKAGE
    assert any(name.endswith("/LICENSE") for name in names)
    facts = Parser().parsestr(text)
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    assert facts["Version"] == minivit.__version__ and facts["Home-page"] == config["metadata"]["url"]
    assert facts["Description-Content-Type"] == "text/markdown" and "minivit" in facts.get_payload()
    assert set(facts.get_all("Provides-Extra", [])) == set(config["options.extras_require"])
    assert commands.split() == ["[console_scripts]", "minivit", "=", "minivit.__main__:main"]


@pytest.mark.slow
@needs_build
def test_the_sdist_has_what_builds_the_package_and_its_pages(built: tuple[Path, Path]) -> None:
    """The wheel above was built from it."""
    with tarfile.open(built[0]) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    names = {name for name in names if not name.startswith("minivit.egg-info/")}
    pages = {"README.md", "README.zh-CN.md", "LICENSE", "CHANGELOG.md", "CITATION.cff"}
    examples = {path.relative_to(ROOT).as_posix() for path in (ROOT / "examples").glob("*.py")}
    assert names == PACKAGE | pages | examples | {"setup.cfg", "pyproject.toml", "MANIFEST.in", "PKG-INFO"}


@pytest.mark.slow
@needs_build
@pytest.mark.skipif(not (ROOT / ".ci").is_dir(), reason="there is no .ci")
def test_the_installed_command_trains_classifies_and_explains(installed: Path, tmp_path: Path) -> None:
    for name in ("PIL", "matplotlib", "tqdm"):
        pytest.importorskip(name, reason="the extra examples is not installed")
    done = subprocess.run(
        [sys.executable, str(ROOT / ".ci" / "try_program.py")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"from {installed / 'minivit'}," in done.stdout and done.stdout.endswith("all of it did what it should\n")
    assert not list(tmp_path.iterdir()), "it left files in the folder that it was started in"


# --- a release ------------------------------------------------------------------------------------------------------


def release_tool() -> object:
    spec = importlib.util.spec_from_file_location("check_release", ROOT / ".ci" / "check_release.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not (ROOT / ".ci").is_dir(), reason="there is no .ci")
def test_a_release_has_one_version(tmp_path: Path) -> None:
    check = release_tool()
    version = minivit.__version__
    assert all("url" in problem for problem in check.problems(f"v{version}")), (
        "all but the placeholder is as it must be"
    )
    for name in ("setup.cfg", "CITATION.cff", "CHANGELOG.md", "minivit/version.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    config = (tmp_path / "setup.cfg").read_text(encoding="utf-8")
    (tmp_path / "setup.cfg").write_text(re.sub("(?m)^url = .*$", "url = https://home.test/minivit", config), "utf-8")
    assert check.problems(f"v{version}", tmp_path) == []
    assert "the tag is 9.9.9" in check.problems("9.9.9", tmp_path)[0]
    (tmp_path / "minivit" / "version.py").write_text('__version__ = "9.9.9"\n', encoding="utf-8")
    assert [line.split()[0] for line in check.problems("v9.9.9", tmp_path)] == ["CITATION.cff", "CHANGELOG.md"]
    (tmp_path / "setup.cfg").write_text(config.replace("url = ", "url = https://example.org/"), encoding="utf-8")
    assert "placeholder" in check.problems("v9.9.9", tmp_path)[-1]


@pytest.mark.skipif(not (ROOT / ".github").is_dir(), reason="there is no .github")
def test_the_workflow_names_files_that_exist() -> None:
    text = (ROOT / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8")
    scripts = re.findall(r"python (?:checkout/)?(\S+\.py)", text)
    assert len(scripts) == 2 and all((ROOT / script).is_file() for script in scripts)
    assert "id-token: write" in text and "password" not in text
    for system in ("ubuntu", "windows", "macos"):
        assert f"{system}-latest" in text
