"""The documentation holds: its code runs, its links lead somewhere, and its reading order follows the imports.

Every ```python block of a page is run, from top to bottom and in one namespace per page. A block whose info string is
`python no-run` is skipped; such blocks must stay rare.
"""

from __future__ import annotations

import ast
import re
import sys
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import minivit

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "minivit"
DOCS = [page for page in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in page.parts]
PAGES = DOCS + [page for page in [ROOT / "README.md", ROOT / "README.zh-CN.md"] if page.exists()]
LESSONS = sorted((ROOT / "docs" / "lessons").glob("[0-9]*.py"))  # prose in comments; their code has tests of its own
SOURCES = sorted(PACKAGE.rglob("*.py"))
LONGEST_FILE = 350  # lines: a file that can be read in one sitting
LONGEST_LINE = 120  # characters

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
pages_and_lessons = pytest.mark.parametrize("page", PAGES + LESSONS, ids=lambda page: page.relative_to(ROOT).as_posix())


# --- Markdown -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """A fenced block: its info string, its text, and the number of its first line of text (from 1)."""

    info: str
    text: str
    line: int

    @property
    def is_python(self) -> bool:
        return self.info.split()[:1] == ["python"]

    @property
    def runs(self) -> bool:
        return self.is_python and "no-run" not in self.info.split()


def fenced_blocks(page: Path) -> list[Block]:
    blocks, opened = [], None
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        fence = re.match(r"\s*(`{3,})(.*)", line)
        if opened is None and fence:
            opened = (fence[1], fence[2].strip(), number + 1)
            body: list[str] = []
        elif opened is not None and line.strip() == opened[0]:
            blocks.append(Block(opened[1], "\n".join(body), opened[2]))
            opened = None
        elif opened is not None:
            body.append(line)
    assert opened is None, f"{page}: the block that starts at line {opened and opened[2]} is never closed"
    return blocks


def prose(page: Path) -> str:
    """The page without its code, in which brackets are no links."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".py":
        cells = re.findall(r"^# %% \[markdown\]\n((?:#.*\n)*)", text, flags=re.MULTILINE)
        text = re.sub(r"^# ?", "", "\n".join(cells), flags=re.MULTILINE)
    text = re.sub(r"^\s*(`{3,}).*?^\s*\1\s*$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"\$\$.*?\$\$", "", text, flags=re.DOTALL)


def links(page: Path) -> list[tuple[str, str]]:
    """(text, target) of the links and images that stay within the repository."""
    found = re.findall(r"\[([^\[\]]*)\]\(([^()\s]+)\)", prose(page))
    return [(text, target) for text, target in found if not re.match(r"[a-z]+:", target)]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, made as GitHub makes them."""
    titles = re.findall(r"^#+ +(.+?)\s*$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


# --- the code runs --------------------------------------------------------------------------------------------------


@pages
def test_code_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # what a page writes stays here
    namespace: dict[str, Any] = {"__name__": "docs_page"}
    for block in fenced_blocks(page):
        if not block.runs:
            continue
        # blank lines in front: the traceback then shows the page's own line numbers
        source = "\n" * (block.line - 1) + block.text
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                exec(compile(source, str(page), "exec"), namespace)
        except Exception as error:
            name = page.relative_to(ROOT)
            here = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(page)]
            line = here[0] if here else getattr(error, "lineno", None) or block.line
            raised = "".join(traceback.format_exception_only(type(error), error)).strip()
            code = page.read_text(encoding="utf-8").splitlines()[line - 1].strip()
            pytest.fail(f"{name}:{line}: {raised}\n  {code}\n(in the block that starts at line {block.line})")


@pytest.mark.parametrize("name", ["docs/index.md", "README.md", "README.zh-CN.md"])
def test_the_first_page_shows_what_its_code_prints(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = fenced_blocks(ROOT / name)
    first = next(number for number, block in enumerate(blocks) if block.is_python)
    code, output = blocks[first], blocks[first + 1]
    capsys.readouterr()
    exec(compile(code.text, name, "exec"), {"__name__": "docs_page"})
    assert capsys.readouterr().out.splitlines() == output.text.splitlines()
    widest = max(code.text.splitlines(), key=len)
    most = 88 if name.startswith("docs") else LONGEST_LINE  # of the site's first page at 1280 px
    assert len(widest) <= most, f"{name}: the first code that a visitor sees would wrap: {widest}"


@pages
def test_blocks_that_do_not_run_are_rare(page: Path) -> None:
    blocks = [block for block in fenced_blocks(page) if block.is_python]
    skipped = [block.line for block in blocks if not block.runs]
    assert len(skipped) <= max(1, len(blocks) // 5), f"{page.name}: too many blocks are marked no-run: lines {skipped}"


def test_a_failing_block_is_reported_with_page_and_line(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("text\n\n```python\na = 1\nb = a / 0\n```\n\n```python no-run\nnever\n```\n", encoding="utf-8")
    first, second = fenced_blocks(page)
    assert (first.line, first.text, first.runs) == (4, "a = 1\nb = a / 0", True)
    assert (second.line, second.runs) == (9, False)


# --- the links lead somewhere ---------------------------------------------------------------------------------------


@pages_and_lessons
def test_links_resolve(page: Path) -> None:
    for _, target in links(page):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.relative_to(ROOT)}: the link to {target} leads nowhere"
        assert file.is_relative_to(ROOT), f"{page.relative_to(ROOT)}: the link to {target} leaves the repository"
        if anchor and (file.suffix == ".md" or file in LESSONS):
            assert anchor in anchors(file), f"{page.relative_to(ROOT)}: {file.name} has no heading for #{anchor}"


@pages_and_lessons
def test_named_functions_exist(page: Path) -> None:
    """A link such as [`linear` in ...](../minivit/functional/linear.py) names something that the file defines."""
    for text, target in links(page):
        named = re.match(r"`([A-Za-z_]\w*)`", text)
        if named and target.endswith(".py"):
            tree = ast.parse((page.parent / target).read_text(encoding="utf-8"))
            defined = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
            defined |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
            assert named[1] in defined, f"{page.relative_to(ROOT)}: {target} defines no {named[1]}"


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_lines_are_short(page: Path) -> None:
    lines = enumerate(page.read_text(encoding="utf-8").splitlines(), 1)
    long = [n for n, line in lines if len(line) > LONGEST_LINE and not line.startswith("|")]  # rows cannot be broken
    assert not long, f"{page.relative_to(ROOT)}: lines of more than {LONGEST_LINE} characters: {long}"


# --- the bibliography -----------------------------------------------------------------------------------------------

NAME = r"[A-Z][\w-]+"
CITATION = re.compile(
    rf"({NAME}(?:, {NAME})*(?: and {NAME})?(?: et al\.)?),? ((?:19|20)\d\d)\b|\b(Abramowitz and Stegun)\b"
)
NOT_PAPERS = {"November", "OpenVINO", "AVX-512"}  # words that stand in front of a year or a number


def citations(path: Path) -> set[str]:
    """What a file cites, such as "Liu et al. 2021", over line breaks and the signs of comments too."""
    text = re.sub(r"\s*\n\s*(?:# ?)?", " ", path.read_text(encoding="utf-8"))
    found = CITATION.findall(text)
    return {other or f"{names} {year}" for names, year, other in found if names not in NOT_PAPERS}


def entries() -> list[str]:
    text = (ROOT / "docs" / "bibliography.md").read_text(encoding="utf-8")
    return re.findall(r"^- \*\*(.+?)\*\*: .*", text, flags=re.MULTILINE)


def test_every_citation_stands_in_the_bibliography_and_nothing_else_does() -> None:
    folders = ("minivit", "examples", "benchmarks")
    files = [*DOCS, *LESSONS, *(file for folder in folders for file in sorted((ROOT / folder).rglob("*.py")))]
    cited = {name: file for file in files if file.name != "bibliography.md" for name in citations(file)}
    missing = {name: file.relative_to(ROOT).as_posix() for name, file in cited.items() if name not in entries()}
    assert not missing, f"docs/bibliography.md: add {missing}"
    assert len(entries()) == len(set(entries()))
    assert set(entries()) <= set(cited), f"docs/bibliography.md: no page cites {sorted(set(entries()) - set(cited))}"


def test_every_paper_has_a_link() -> None:
    text = (ROOT / "docs" / "bibliography.md").read_text(encoding="utf-8")
    papers = re.split(r"^- ", text, flags=re.MULTILINE)[1:]
    unlinked = [paper for paper in papers if not re.search(r"\]\(https://\S+\)", paper)]
    assert not unlinked, unlinked
    for label, target in re.findall(r"\[arXiv:(\S+?)\]\((\S+?)\)", text):
        assert re.fullmatch(r"\d{4}\.\d{5}", label) and target == f"https://arxiv.org/abs/{label}", (label, target)


# --- the reading order ----------------------------------------------------------------------------------------------


sys.path.insert(0, str(ROOT / "docs"))
import write_model_list  # noqa: E402
from write_reading_order import imports, needed, page, reading_order  # noqa: E402


def test_the_reading_order_is_current() -> None:
    assert sorted(reading_order()) == SOURCES, "docs/write_reading_order.py: give each file of the package a chapter"
    written = (ROOT / "docs" / "reading_order.md").read_text(encoding="utf-8")
    assert written == page(), "run `python docs/write_reading_order.py`"


def test_no_file_comes_before_what_it_imports() -> None:
    place = {file: number for number, file in enumerate(reading_order())}
    wrong = []
    for file in place:
        if file.name == "__init__.py":  # a table of contents: it may stand in front of its chapter
            continue
        for used in {found for module, name in imports(file) for found in needed(module, name)} - {file}:
            if place.get(used, -1) > place[file]:
                wrong.append(f"{file.relative_to(ROOT)} imports {used.relative_to(ROOT)}, which stands below it")
    assert not wrong, "docs/write_reading_order.py: move a chapter:\n  " + "\n  ".join(sorted(wrong))


def test_imports_are_looked_up_through_packages() -> None:
    assert needed("minivit.nn", "Linear") == {PACKAGE / "nn" / "basic.py"}
    assert needed("minivit", "functional") >= {PACKAGE / "functional" / "linear.py", PACKAGE / "functional" / "loss.py"}
    assert ("minivit.data.idx", "DataError") in set(imports(PACKAGE / "data" / "mnist.py"))


# --- the list of models ---------------------------------------------------------------------------------------------


def test_the_list_of_models_is_current(weightless: None) -> None:
    written = (ROOT / "docs" / "model_list.md").read_text(encoding="utf-8")
    assert written == write_model_list.page(), "run `python docs/write_model_list.py`"


def test_the_list_of_models_has_every_name_once() -> None:
    written = (ROOT / "docs" / "model_list.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| `(\w+)`", written, flags=re.MULTILINE)) == minivit.list_models()
    families = {write_model_list.family_of(name) for name in minivit.list_models()}
    assert families == set(write_model_list.FAMILIES), "a family without names"
    assert "| `vit_base_patch16_224` | 86,567,656 | 17.56 G | 224 | [`timm/vit_base_patch16_224.augreg2" in written
    assert "huggingface.co/timm/vit_large_patch14_clip_336.openai)" in written  # quickgelu is in no repository's name


# --- files are short ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_no_file_is_long(file: Path) -> None:
    count = len(file.read_text(encoding="utf-8").splitlines())
    assert count <= LONGEST_FILE, f"{file.relative_to(ROOT)} has {count} lines, more than {LONGEST_FILE}: split it"
