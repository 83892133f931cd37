"""The words of the documentation: those that a learner would search for, in place of private ones."""

from __future__ import annotations

import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# a private word -> the field's. These are refused everywhere.
EVERYWHERE = {
    r"ways? back": "backward pass",
    r"bends?": "nonlinearity",
    r"from nothing": "from scratch",
    r"told apart": "distinguished",
    r"shrunk": "reduced, or downsampled",
    r"(throws?|thrown|throwing) away": "discarded",
    r"news": "the dependence, the receptive field",
    r"laid side by side": "concatenated",
    r"for ever": "forever",
}
# These have ordinary meanings in longer texts. They are refused in code: the package, examples, lessons and tests.
IN_CODE = {
    r"places": "positions, pixels or entries",
    r"pictures?(?!/)": "images, which a model reads, or figures, which are drawn",
    r"told": "given, set",
    r"nobody": "no other code",
    r"asked for": "requested",
    r"asks for": "requests",
    r"at once": "immediately, in one call, or together",
    r"anew": "again",
}


def prose(source: str) -> list[tuple[int, str]]:
    """(line, text) of comments and strings, without code in backquotes or braces, and names in lists."""
    found = []
    strings = {tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT or (token.type in strings and " " in token.string):
            for number, line in enumerate(token.string.split("\n"), token.start[0]):
                found.append((number, re.sub(r"`[^`]*`|\{[^{}]*\}", "", re.sub(r"^ +(\w+, )*\w+:(?= )", "", line))))
    return found


def private(lines: list[tuple[int, str]], words: dict[str, str]) -> list[str]:
    """The private words in lines of text, each with its line and the remedy."""
    return [
        f"line {number}: {found[0]!r} in {line.strip()[:90]!r}: say {remedy}"
        for number, line in lines
        for word, remedy in words.items()
        if (found := re.search(rf"\b{word}\b", line, re.IGNORECASE))
    ]


def shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", sorted((ROOT / "minivit").rglob("*.py")), ids=shown)
def test_docstrings_comments_and_messages_use_the_words_of_the_field(path: Path) -> None:
    words = EVERYWHERE | IN_CODE
    assert private(prose(path.read_text(encoding="utf-8")), words) == []


PROGRAMS = [
    *(ROOT / "examples").glob("*.py"),
    *(ROOT / "docs").rglob("*.py"),
    *(ROOT / "benchmarks").rglob("*.py"),
    *(path for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__).resolve()),
]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")]


@pytest.mark.parametrize("path", sorted(path for path in PROGRAMS if "_build" not in path.parts), ids=shown)
def test_programs_lessons_and_tests_use_the_words_of_the_field(path: Path) -> None:
    words = EVERYWHERE | IN_CODE
    assert private(prose(path.read_text(encoding="utf-8")), words) == []


@pytest.mark.parametrize("path", sorted(path for path in PAGES if "_build" not in path.parts), ids=shown)
def test_pages_use_the_words_of_the_field(path: Path) -> None:
    assert private(list(enumerate(path.read_text(encoding="utf-8").split("\n"), 1)), EVERYWHERE) == []


OTHER = [
    *(ROOT / "minivit").rglob("*.cu*"),
    *(path for path in (ROOT / "minivit" / "lab" / "page").iterdir()),
    *(ROOT / "docs" / "lab_in_browser").glob("*.js"),
]


@pytest.mark.parametrize("path", sorted(OTHER), ids=shown)
def test_kernels_and_the_page_of_the_lab_use_the_words_of_the_field(path: Path) -> None:
    assert private(list(enumerate(path.read_text(encoding="utf-8").split("\n"), 1)), EVERYWHERE) == []


@pytest.mark.parametrize(
    ("source", "word"),
    [
        ('"""The way back of a layer."""', "way back"),
        ("x = 1  # drawn at once", "at once"),
        ('raise ValueError(f"{x} places are\\n"\n    f"no place: {x} is nobody")', "nobody"),
        ('"""f.\n\n    Args:\n        pictures: image files.\n        size: of the pictures.\n    """', "pictures"),
    ],
)
def test_a_private_word_is_found(source: str, word: str) -> None:
    found = private(prose(source), EVERYWHERE | IN_CODE)
    assert any(repr(word) in each for each in found), found
    assert all("say " in each for each in found)


def test_names_of_arguments_and_code_are_not_words() -> None:
    source = '"""f.\n\n    Args:\n        pictures: as in `pictures` of `told`.\n    """\npictures = told = 1\n'
    assert private(prose(source), EVERYWHERE | IN_CODE) == []
