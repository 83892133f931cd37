"""Lessons: Python scripts with prose, read as notebooks, run once for all languages, translated paragraph by paragraph.

A lesson's cells run again only when its code or the library changes. The code that draws a figure is folded: from the
first statement with `figures.new(` to the last with `figures.show(` of a cell; the tag `hide-input` folds a whole cell.
Next: `site_code.py`.
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import site_comments
from docutils import nodes
from myst_nb.sphinx_ import Parser as NotebookParser
from myst_parser.parsers.sphinx_ import MystParser
from sphinx.application import Sphinx
from sphinx.locale import init as messages
from sphinx.transforms import SphinxTransform
from sphinx.util.i18n import docname_to_domain

ROOT = Path(__file__).resolve().parents[2]


FOLD = {"en": ("Show the code of the figure", "Hide the code"), "zh_CN": ("显示绘图代码", "隐藏代码")}


def read(text: str) -> nbformat.NotebookNode:
    """The notebook of a script in jupytext's percent format, with the code of figures in cells that are folded."""
    notebook = jupytext.reads(text, fmt="py:percent")
    notebook.cells = [part for cell in notebook.cells for part in (parts(cell) if cell.cell_type == "code" else [cell])]
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return notebook


def parts(cell: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """A code cell as up to three cells: what stands in front of a figure's code, that code, and what stands behind."""
    lines, found = cell.source.splitlines(), figure_lines(cell.source)
    if found is None or "hide-input" in cell.metadata.get("tags", []):
        return [cell]
    first, last = found
    result = []
    for begin, end in ((0, first), (first, last), (last, len(lines))):
        source = "\n".join(lines[begin:end]).strip("\n")
        if source:
            result.append(nbformat.v4.new_code_cell(source, metadata=dict(cell.metadata)))
            if begin == first and end == last:
                result[-1].metadata["tags"] = [*cell.metadata.get("tags", []), "hide-input"]
    return result


def figure_lines(source: str) -> tuple[int, int] | None:
    """The lines [first, last) of a cell that draw its figures; None where it draws none."""
    if "figures.show(" not in source:  # such as a cell with a magic command, which is no Python
        return None
    statements = ast.parse(source).body
    begins = [node for node in statements if _calls(node, "new")]
    ends = [node for node in statements if _calls(node, "show")]
    if not begins or not ends or ends[-1].end_lineno is None:
        return None
    first = begins[0].lineno - 1
    lines = source.splitlines()
    while first and lines[first - 1].startswith("#"):  # a comment in front belongs to the statement
        first -= 1
    return first, ends[-1].end_lineno


def _calls(node: ast.AST, name: str) -> bool:
    """Whether a statement calls `figures.<name>`."""
    return any(
        isinstance(part, ast.Call)
        and isinstance(part.func, ast.Attribute)
        and part.func.attr == name
        and isinstance(part.func.value, ast.Name)
        and part.func.value.id == "figures"
        for part in ast.walk(node)
    )


def fingerprint() -> str:
    """Changes with the code that lessons import and with their mode: outputs of another fingerprint are stale."""
    digest = hashlib.sha256(os.environ.get("MINIVIT_LESSONS", "").encode())
    for file in sorted([*(ROOT / "minivit").rglob("*.py"), *(ROOT / "examples").glob("*.py")]):
        digest.update(file.relative_to(ROOT).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()[:16]


class Parser(NotebookParser):
    """MyST-NB's parser, except that a translated paragraph is Markdown, whatever the file that it belongs to.

    Sphinx parses each translation as a small document of the page's own type; a paragraph is no notebook.
    """

    def parse(self, inputstring: str, document: nodes.document) -> None:
        if document["source"].endswith(":<translated>"):
            MystParser.parse(self, one_paragraph(inputstring), document)
        else:
            super().parse(inputstring, document)


def one_paragraph(text: str) -> str:
    """A heading such as "1. Attention" stays one paragraph, and does not become a list with one item."""
    return re.sub(r"^(\d+)(?=[.)]\s)|^(?=[-+#>]\s)", r"\1\\", text)


class KeepFormulas(SphinxTransform):
    """Displayed formulas are the same in every language: no message for translators."""

    default_priority = 5  # before Sphinx collects or replaces messages

    def apply(self, **options: Any) -> None:
        for node in self.document.findall(nodes.math_block):
            node["translatable"] = False


class TranslateCode(SphinxTransform):
    """What Sphinx leaves in English: comments in a page's code, and the word over a folded solution."""

    default_priority = 21  # after Sphinx's own translations

    def apply(self, **options: Any) -> None:
        if self.config.language == "en":
            return
        domain = docname_to_domain(self.env.docname, self.config.gettext_compact)
        folders = [str(Path(self.env.srcdir) / folder) for folder in self.config.locale_dirs]
        catalog, found = messages(folders, self.config.language, domain)
        for node in self.document.findall(nodes.literal_block) if found else ():
            if "python" in node.get("language", ""):
                node.rawsource = site_comments.translated(node.astext(), catalog.gettext)
                node[:] = [nodes.Text(node.rawsource)]
        for raw in list(self.document.findall(nodes.raw)):
            text = raw.astext().replace("<summary>Solution ", "<summary>解答 ")
            raw.replace_self(nodes.raw("", text, format=raw["format"]))


def name_the_fold(app: Sphinx, config: Any) -> None:
    config.nb_code_prompt_show, config.nb_code_prompt_hide = FOLD.get(config.language, FOLD["en"])


def setup(app: Sphinx) -> dict[str, Any]:
    app.setup_extension("myst_nb")
    app.add_source_parser(Parser, override=True)
    app.add_transform(KeepFormulas)
    app.add_transform(TranslateCode)
    app.connect("config-inited", name_the_fold, priority=400)  # before MyST-NB reads its configuration at 500
    app.add_config_value("minivit_fingerprint", "", "env")  # a change reads every page again
    return {"parallel_read_safe": True, "parallel_write_safe": True}
