"""Where lines may break: in long names of code behind their separators, and not within short names, dates and ranges.

Narrow columns of tables, and code on a phone, would otherwise break in the middle of a word. Next: `site_access.py`.
"""

from __future__ import annotations

import html
import re
from typing import Any

from sphinx.application import Sphinx

LONG = 20  # characters: a name below that stays on one line, which fits into a column of a table on a phone
BEHIND = re.compile(r"(?<=[._/(\[=,])(?=[\w\"'(\[])")  # where a formatter of code would break a name or a call
INLINE = re.compile(r'<span class="pre">([^<]*)</span>')
# code and formulas have their own rules; in the rest of the page, tags are no text
OTHER = re.compile(r"(<(pre|code|math|script|style|svg|title)\b.*?</\2>|<[^>]*>)", flags=re.DOTALL)
WHOLE = re.compile(
    r"\b20\d\d-\d\d-\d\d\b|\(-?\d[\d.,]* to -?\d[\d.,]*\)|\b(?:AVX|BEiT|DeiT|Swin|ViT)-[A-Za-z0-9]+(?:/\d+)?"
)
ROW = re.compile(r"<tr[^>]*>\s*<td>(<p>.*?</p>)</td>(.*?)</tr>", flags=re.DOTALL)
SENTENCE = 30  # characters of a first cell that needs room where a table of many columns is wider than the screen
NARROW = re.compile(r'<img class="figure"(?= style="[^"]*\bwidth: ([1-3]?\d?\d|4[0-7]\d)px")')


def breaks(text: str) -> list[int]:
    """Positions in a line of code at which it may break besides its spaces: within what is long and has none."""
    return [
        run.start() + match.start()
        for run in re.finditer(rf"\S{{{LONG + 1},}}", text)
        for match in BEHIND.finditer(run[0])
    ]


def with_breaks(markup: str, positions: list[int]) -> str:
    """Pygments' markup of a line with <wbr> at these positions of its text."""
    at, left, result = 0, set(positions), []
    for piece in re.findall(r"<[^>]*>|&[^;]*;|[^<&]", markup):
        if not piece.startswith("<"):
            result.append("<wbr>" if at in left else "")
            at += 1
        result.append(piece)
    return "".join(result)


def _inline(match: re.Match[str]) -> str:
    text = html.unescape(match[1])
    if len(text) <= LONG:
        return f'<span class="pre whole">{match[1]}</span>'
    return f'<span class="pre">{with_breaks(match[1], breaks(text))}</span>'


def _row(match: re.Match[str]) -> str:
    many, text = match[2].count("<td") > 1, html.unescape(re.sub(r"<[^>]*>", "", match[1]))
    long = sum(2 if letter > "\u2e80" else 1 for letter in text) > SENTENCE  # Chinese letters are twice as wide
    return match[0].replace("<td>", '<td class="sentence">', 1) if many and long else match[0]


def arranged(body: str) -> str:
    """The body of a page with these rules.

    Figures that are narrower than 480 pixels, and sentences that begin a row, get a class for the style sheet.
    """
    body = ROW.sub(_row, NARROW.sub('<img class="figure narrow"', INLINE.sub(_inline, body)))
    parts = OTHER.split(body)  # text, other, name of its element, text, ...
    parts[::3] = [WHOLE.sub(r'<span class="whole">\g<0></span>', text) for text in parts[::3]]
    del parts[2::3]
    return "".join(parts)


def change_body(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    if "body" in context:
        context["body"] = arranged(context["body"])


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("html-page-context", change_body)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
