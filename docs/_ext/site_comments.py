"""Comments in the code of lessons and pages, which are translated like their prose. Next: `site_lessons.py`."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Callable, Iterator

TOOLS = re.compile(r"noqa|fmt:|type:|@title")  # what a tool reads, and no reader
CELL = re.compile(r"^# %%(?! \[markdown\]).*\n((?:(?!# %%).*\n?)*)", re.MULTILINE)  # the code under its first line
FENCE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)

WORDS = re.compile(r"[a-z]{4}|[A-Za-z]{2,}.*[ -][A-Za-z]{2,}")  # what shapes and names such as (B, N) have not


def located(code: str) -> Iterator[tuple[int, int, str]]:
    """(line, column, words) of each comment that has words to translate."""
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        words = token.string.lstrip("# ")
        bare = re.sub(r"\([^)]*\)", "", words)
        if token.type == tokenize.COMMENT and WORDS.search(bare) and not TOOLS.search(words):
            yield token.start[0] - 1, token.start[1], words


def comments(page: str, code: re.Pattern[str] = CELL) -> list[str]:
    """The comments of a page's code, each once, in their order; `code` finds it: `CELL` in a script, else `FENCE`."""
    return list(dict.fromkeys(words for cell in code.findall(page) for _, _, words in located(cell)))


def translated(code: str, translate: Callable[[str], str]) -> str:
    """The code with its comments in another language."""
    lines = code.split("\n")
    for row, column, words in located(code):
        lines[row] = f"{lines[row][:column]}# {translate(words)}"
    return "\n".join(lines)
