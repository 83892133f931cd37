"""The least versions that setup.cfg declares are those that are installed and tested, and that the READMEs say."""

from __future__ import annotations

import configparser
import re
import sys
from importlib import metadata
from pathlib import Path

import pytest

import minivit

ROOT = Path(minivit.__file__).parents[1]
FILE = Path(__file__).parent / "least_versions.txt"
IN_TURN = "# What these need in turn"


def settings():
    config = configparser.ConfigParser()
    if not config.read(ROOT / "setup.cfg"):
        pytest.skip("an installed package has no setup.cfg")
    return config


def declared(config):
    """{name: least version} of the package's requirements and those of its test extra."""
    lines = (config["options"]["install_requires"] + config["options.extras_require"]["test"]).splitlines()
    lines = [line.split(";")[0].strip() for line in lines if line.strip() and not line.strip().startswith("#")]
    found = dict(line.split(">=") if ">=" in line else (line, "") for line in lines)
    assert len(found) == len(lines)
    return found


def pinned(text):
    """{name: version} of the lines of a constraints file."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w-]+==[\d.]+", line) for line in lines), lines
    return dict(line.split("==") for line in lines)


def same(least, exact):
    """Whether a release is the first of those that `>=least` allows: 1.24.0 for 1.24."""
    return least != "" and (exact == least or exact.startswith(f"{least}."))


def test_each_requirement_has_a_least_version_which_is_the_one_that_is_tested():
    least, exact = declared(settings()), pinned(FILE.read_text(encoding="utf-8").split(IN_TURN)[0])
    assert list(least) == list(exact)
    differ = {name: (version, exact[name]) for name, version in least.items() if not same(version, exact[name])}
    assert not differ


def test_the_extras_declare_the_same_least_versions():
    config = settings()
    least = declared(config)
    for extra in ("examples", "hub", "docs", "dev"):
        for line in config["options.extras_require"][extra].split("\n"):
            name, _, version = line.strip().partition(">=")
            if version and name in least:
                assert version == least[name], f"{extra}: {line}"


def test_the_readmes_say_what_setup_cfg_declares():
    config = settings()
    python, numpy = config["options"]["python_requires"].removeprefix(">="), declared(config)["numpy"]
    for name in ("README.md", "README.zh-CN.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert re.findall(r"Python (3\.\d+)", text)[:1] == [python], name
        assert re.findall(r"NumPy (\d\.\d+)", text)[:1] == [numpy], name


def test_ci_tests_exactly_these_versions():
    script = ROOT / ".ci" / "run"
    if not script.is_file():
        pytest.skip("an installed package has no .ci")
    text = script.read_text(encoding="utf-8")
    assert "install -e '.[test]' -c tests/least_versions.txt" in text
    python = settings()["options"]["python_requires"].removeprefix(">=")
    assert f"python{python}" in text


def test_the_versions_are_distinguished():
    assert same("1.24", "1.24.0") and same("0.4.4", "0.4.4") and not same("1.24", "1.25.0")
    assert not same("1.2", "1.24.0") and not same("", "1.0")


def test_an_environment_of_the_least_versions_has_them():
    """Where NumPy is the least one, so is everything else: pip then kept to the constraints."""
    exact = pinned(FILE.read_text(encoding="utf-8"))
    if metadata.version("numpy") != exact["numpy"]:
        pytest.skip("this environment is not of the least versions")
    if not sys.platform.startswith("linux"):
        del exact["nvidia-cuda-nvrtc"]
    assert {name: metadata.version(name) for name in exact} == exact
