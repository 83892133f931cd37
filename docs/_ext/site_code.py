"""Blocks of code whose long lines wrap: each line becomes an element that knows its indentation.

A wrapped line goes on four characters deeper than it began, as a formatter of code would break it; `site.css` does the
rest. What is long and has no spaces may break behind its separators. Next: `site_math.py`.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator
from typing import Any

from pygments.formatters import HtmlFormatter
from site_breaks import breaks, with_breaks
from sphinx.application import Sphinx
from sphinx.highlighting import PygmentsBridge

NUMBER = re.compile(r'(?:<a id[^>]*></a>)?<(?:a[^>]*><)?span class="linenos">.*?</span>(?:</a>)?')
TAG = re.compile(r"<[^>]*>")


class Lines(HtmlFormatter):  # type: ignore[type-arg]  # generic only in the stubs
    """Pygments' HTML with <span class="line" style="--in: 4"> around a line that is indented by four characters."""

    def wrap(self, source: Iterable[tuple[int, str]]) -> Any:
        return super().wrap(_in_elements(source))


def _in_elements(source: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    for is_line, text in source:
        if not is_line:
            yield is_line, text
            continue
        number = NUMBER.match(text)
        head, text = (text[: number.end()], text[number.end() :]) if number else ("", text)
        shown = html.unescape(TAG.sub("", text))
        depth = len(shown) - len(shown.lstrip(" ")) if shown.strip() else 0
        yield is_line, f'<span class="line" style="--in: {depth}">{head}{with_breaks(text, breaks(shown))}</span>'


def setup(app: Sphinx) -> dict[str, Any]:
    PygmentsBridge.html_formatter = Lines
    return {"parallel_read_safe": True, "parallel_write_safe": True}
