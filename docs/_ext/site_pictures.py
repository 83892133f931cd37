"""Animated drawings become part of the page: they take its colors, light or dark, its language, and can be paused.

As an image a drawing would follow the reader's system, not the page's switch. Only files with an animation are read;
all other figures stay images. Next: `site_citations.py`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

PAUSE = {"en": "Pause the animation", "zh_CN": "暂停动画"}


class InlineDrawings(SphinxTransform):
    """An image of an SVG file with `@keyframes` becomes the drawing itself, with a box that pauses it."""

    default_priority = 25  # after translations, before images are collected as files

    def apply(self, **options: Any) -> None:
        for node in list(self.document.findall(nodes.image)):
            path = Path(self.env.doc2path(self.env.docname)).parent / node["uri"]
            if path.suffix == ".svg" and path.is_file() and "@keyframes" in path.read_text(encoding="utf-8"):
                self.env.note_dependency(str(path))
                drawing = drawing_html(path.read_text(encoding="utf-8"), path.stem, self.config.language)
                node.replace_self(nodes.raw("", drawing, format="html"))


def drawing_html(text: str, name: str, language: str) -> str:
    """The drawing, named by its <title>, or in Chinese by its <desc lang="zh-CN">."""
    title = re.search(r"<title[^>]*>(.*?)</title>\s*", text, flags=re.DOTALL)
    chinese = re.search(r'<desc lang="zh-CN">(.*?)</desc>\s*', text, flags=re.DOTALL)
    if title is None or chinese is None:
        raise ValueError(f'{name}.svg: an animated drawing needs a <title> and a <desc lang="zh-CN">')
    words = " ".join((chinese if language == "zh_CN" else title)[1].split())
    text = text.replace(title[0], f"<title>{words}</title>\n").replace(chinese[0], "")
    text = re.sub(r'aria-labelledby="[^"]*"', f'aria-label="{words}"', text, count=1)
    box = (
        f'<input type="checkbox" id="pause-{name}"><label for="pause-{name}">{PAUSE.get(language, PAUSE["en"])}</label>'
    )
    return f'<span class="drawing">{box}\n{text}</span>'


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_transform(InlineDrawings)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
