"""Formulas as MathML, made when the site is built: the reader's browser draws them, without a script and a network.

A formula that cannot be converted is a warning, and so an error of the build. Next: `site_sources.py`.
"""

from __future__ import annotations

from typing import Any

from docutils import nodes
from math_core import LatexError, LatexToMathML
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)
convert = LatexToMathML().convert_with_local_state


def mathml(node: nodes.Element, *, display: bool) -> str:
    latex = node.astext()
    try:
        return convert(latex, displaystyle=display)
    except LatexError as error:
        logger.warning("formula %r: %s", latex, error, location=node, type="math")
        return f"<code>{nodes.unescape(latex)}</code>"


def visit_inline(translator: Any, node: nodes.math) -> None:
    translator.body.append(mathml(node, display=False))
    raise nodes.SkipNode


def visit_block(translator: Any, node: nodes.math_block) -> None:
    # the box scrolls where the formula is wider than a phone; tabindex lets the keyboard scroll it too
    translator.body.append(f'<div class="formula" tabindex="0">{mathml(node, display=True)}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
