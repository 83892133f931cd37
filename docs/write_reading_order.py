"""Writes docs/reading_order.md: every file of the package with the first sentence of its documentation, in an order in
which no file stands below one that it imports. `python docs/write_reading_order.py`; the tests compare the page.
"""

from __future__ import annotations

import ast
import re
import textwrap
from functools import cache
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
PACKAGE = ROOT / "minivit"
PAGE = DOCS / "reading_order.md"

# from the ground up; a chapter is a folder, or files at the top of the package
CHAPTERS = {
    "The protocol, and devices": (
        "protocol.py",
        "argument_checks.py",
        "sizes.py",
        "device.py",
        "random.py",
        "fast/half.py",  # which formulas use
        "fork.py",
        "renamed.py",
        "version.py",
    ),
    "Formulas": ("functional",),
    "Fast implementations, and the choice between them and formulas": ("fast", "fast/numpy", "fast/cupy"),
    "Layers": ("nn",),
    "Gradient checks": ("gradcheck.py", "strategies.py"),
    "Models": ("models", "tables.py", "summary.py"),
    "Inference": ("inference",),
    "Training": ("optim", "parallel"),
    "Files": ("io",),
    "Data": ("data",),
    "Published weights": ("pretrained",),
    "Observing a model": ("observe", "explain.py"),
    "Figures": ("draw",),
    "Many processes": ("distributed",),
    "Runs": ("train", "publish.py", "sklearn.py"),
    "The lab": ("lab",),
    "Programs": ("programs",),
    "The package": ("__init__.py", "__main__.py"),
}
INTRODUCTION = """\
# Reading order

Each line is one file with the first sentence of its documentation. Each file comes after those that it imports; only an
`__init__.py` comes first in its chapter, as its table of contents. Skip `fast/` at first: it computes the same as the
formulas, faster.

This page is written by `python docs/write_reading_order.py`.
"""


def module_file(name: str) -> Path | None:
    """The file of `minivit.a.b`; None if that is not a module of the package."""
    path = ROOT.joinpath(*name.split("."))
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in candidates if file.is_relative_to(PACKAGE) and file.exists()), None)


@cache
def imports(file: Path) -> list[tuple[str, str | None]]:
    """(module, name) of everything that a file imports from the package, at its top or inside a function."""
    home = file.parent.relative_to(ROOT).parts
    found: list[tuple[str, str | None]] = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += ((alias.name, None) for alias in node.names if alias.name.split(".")[0] == "minivit")
        elif isinstance(node, ast.ImportFrom):
            base = home[: len(home) + 1 - node.level] if node.level else ()
            module = ".".join((*base, *(node.module.split(".") if node.module else ())))
            if module.split(".")[0] == "minivit":
                found += ((module, alias.name) for alias in node.names)
    return found


@cache
def needed(module: str, name: str | None) -> set[Path]:
    """The files that hold what `from module import name` gives; packages are looked through, not counted.

    A name that a package's `__init__` only passes on is sought where it comes from. A whole package stands for every
    file that its `__init__` imports, except for the root, whose `__init__` imports everything.
    """
    file = module_file(module)
    if file is None:
        return set()
    if name is not None and module_file(f"{module}.{name}"):
        return needed(f"{module}.{name}", None)
    if file.name != "__init__.py":
        return {file}
    if name is not None:
        return {found for origin, same in imports(file) if same == name for found in needed(origin, same)}
    if file.parent == PACKAGE:
        return set()
    return {found for origin, part in imports(file) for found in needed(origin, part)}


def files_of(chapter: tuple[str, ...]) -> list[Path]:
    """The files of a chapter in an order in which each comes after those of the chapter that it imports."""
    found: list[Path] = []
    for part in chapter:
        path = PACKAGE / part
        if path.is_file():
            found.append(path)
            continue
        inner = {"fast": path.glob("*.py")}.get(part, path.rglob("*.py"))
        alone = {PACKAGE / name for names in CHAPTERS.values() for name in names if name.endswith(".py")}
        waiting = sorted(set(inner) - alone, key=lambda file: (file.name != "__init__.py", file.as_posix()))
        folder = set(waiting)
        while waiting:
            ready = [file for file in waiting if file.name == "__init__.py" or not _uses(file) & set(waiting) & folder]
            if not ready:
                raise ValueError(f"these files import each other in a circle: {waiting}")
            found.append(ready[0])
            waiting.remove(ready[0])
    return found


def _uses(file: Path) -> set[Path]:
    return {found for module, name in imports(file) for found in needed(module, name)} - {file}


def first_sentence(file: Path) -> str:
    """Of the file's documentation, in one line, without the full stop."""
    document = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(document.partition("\n\n")[0].split())
    return re.split(r"(?<=[^.])\.(?: |$)", paragraph)[0]


def line_of(file: Path) -> str:
    """The file with its link, its first sentence and the derivations that it names."""
    name = file.relative_to(ROOT).as_posix()
    derivations = list(dict.fromkeys(re.findall(r"docs/derivations/(\w+)\.md", file.read_text(encoding="utf-8"))))
    links = ", ".join(f"[{page.replace('_', ' ')}](derivations/{page}.md)" for page in derivations)
    text = f"- [{name.replace('__', chr(92) + '_' + chr(92) + '_')}](../{name}): {first_sentence(file)}."
    text += f" Derivation{'s' * (len(derivations) > 1)}: {links}." if links else ""
    return "\n".join(textwrap.wrap(text, 120, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False))


def reading_order() -> list[Path]:
    """All files of the package in the order of the page."""
    return [file for chapter in CHAPTERS.values() for file in files_of(chapter)]


def page() -> str:
    """The page's text."""
    sections = ["\n".join([f"## {title}\n", *map(line_of, files_of(parts))]) for title, parts in CHAPTERS.items()]
    return "\n".join([INTRODUCTION, "\n\n".join(sections), ""])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}: {len(reading_order())} files")
