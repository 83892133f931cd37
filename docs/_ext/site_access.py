"""What readers without a mouse, or with a screen reader, need and neither Sphinx nor the theme writes.

Boxes that scroll can be reached by the keyboard, and signatures of several lines are no list of definitions. The
sidebars get their names in `docs/_templates/page.html`. Next: `site_search.py`.
"""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

# what a lesson printed or drew: its box scrolls where it is wider than the page
PRINTED = re.compile(r'(<div class="output [^"]*highlight[^"]*"[^>]*>\s*<div class="highlight">\s*<pre)>')
DRAWN = re.compile(r'(<div class="output text_html")>')
PICTURE = re.compile(r"<p>(?=<img [^>]*>\s*</p>)")
TABLE = re.compile(r'<div class="table-wrapper')
PARAMETERS = re.compile(r'<dl>\s*((?:<dd><em class="sig-param">.*?</dd>\s*)+)</dl>', flags=re.DOTALL)


def accessible(html: str, output: str, table: str, picture: str) -> str:
    """The body of a page; the words name boxes: of what code printed or drew, of tables, and of figures."""
    html = PRINTED.sub(rf'\1 tabindex="0" role="group" aria-label="{output}">', html)
    html = DRAWN.sub(rf'\1 tabindex="0" role="group" aria-label="{output}">', html)
    html = TABLE.sub(rf'<div tabindex="0" role="group" aria-label="{table}" class="table-wrapper', html)
    html = PICTURE.sub(f'<p tabindex="0" role="group" aria-label="{picture}">', html)
    return PARAMETERS.sub(_as_blocks, html)


def _as_blocks(match: re.Match[str]) -> str:
    return f'<div class="sig-lines">{match[1].replace("<dd>", "<div>").replace("</dd>", "</div>")}</div>'


def change_body(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    if "body" in context:
        names = ("输出", "表格", "图") if app.config.language == "zh_CN" else ("output", "table", "figure")
        context["body"] = accessible(context["body"], *names)


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("html-page-context", change_body)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
