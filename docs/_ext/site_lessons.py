"""Lessons: Python scripts with prose, read as notebooks, run once for all languages, translated paragraph by paragraph.

A lesson's cells run again only when its code or the library changes. Next: `site_sources.py`.
"""

from __future__ import annotations

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


def read(text: str) -> nbformat.NotebookNode:
    """The notebook of a script in jupytext's percent format."""
    notebook = jupytext.reads(text, fmt="py:percent")
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return notebook


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


class TranslateLessons(SphinxTransform):
    """What Sphinx leaves in English: comments in a lesson's code, and the word over a folded solution."""

    default_priority = 21  # after Sphinx's own translations

    def apply(self, **options: Any) -> None:
        lesson = Path(self.env.doc2path(self.env.docname)).suffix == ".py"
        if self.config.language == "en" or not lesson:
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


def setup(app: Sphinx) -> dict[str, Any]:
    app.setup_extension("myst_nb")
    app.add_source_parser(Parser, override=True)
    app.add_transform(KeepFormulas)
    app.add_transform(TranslateLessons)
    app.add_config_value("minivit_fingerprint", "", "env")  # a change reads every page again
    return {"parallel_read_safe": True, "parallel_write_safe": True}
