"""Source files as pages: where a page links to ../minivit/protocol.py, the site shows that file, with its colors.

On GitHub the same link opens the file itself. Next: `site_pictures.py`.
"""

from __future__ import annotations

import inspect
import posixpath
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from pygments import highlight
from pygments.lexers import get_lexer_for_filename
from pygments.lexers.special import TextLexer
from pygments.util import ClassNotFound
from site_code import Lines
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms import SphinxTransform

ROOT = Path(__file__).resolve().parents[2]
FOLDER = "source"  # of the site, where these pages stand
TEXT = {".py", ".md", ".toml", ".cfg", ".txt", ".cff", ""}  # what a page can show of a linked folder


def page_name(path: Path) -> str:
    """source/minivit/protocol.py for ROOT/minivit/protocol.py; the builder appends .html."""
    return posixpath.join(FOLDER, path.relative_to(ROOT).as_posix())


class LinkSources(SphinxTransform):
    """Links to files and folders outside docs/ become links to their pages."""

    default_priority = 30  # after translations took their place at 20, before files are collected for download

    def apply(self, **options: Any) -> None:
        kinds = (addnodes.pending_xref, addnodes.download_reference)
        for node in [node for kind in kinds for node in self.document.findall(kind)]:
            path = self._file(node)
            if path is None:
                continue
            sources = self.env.metadata[self.env.docname].setdefault("sources", [])
            sources.append(path.relative_to(ROOT).as_posix())
            here = posixpath.dirname(self.env.docname)
            uri = posixpath.relpath(page_name(path) + ".html", here or ".")
            link = nodes.reference("", "", *node.children, refuri=uri, internal=True, classes=["source-link"])
            node.replace_self(link)

    def _file(self, node: nodes.Element) -> Path | None:
        """The file or folder outside docs/ that a link of MyST's means, or None."""
        target = node.get("reftarget", "").split("#")[0]
        if node.get("reftype") != "myst" or not target:
            return None
        base = Path(self.env.doc2path(self.env.docname)).parent
        candidates = [base / target] if not target.startswith("/") else []
        if target.startswith("/"):  # MyST took the file for a page and its ending away; or a path within docs/
            candidates = [Path(target + ending) for ending in (".py", ".md")] + [Path(self.env.srcdir) / target[1:]]
        for path in candidates:
            path = path.resolve()
            if path.exists() and path.is_relative_to(ROOT) and not path.is_relative_to(self.env.srcdir):
                return path
        return None


def linked(env: BuildEnvironment) -> set[Path]:
    """The library's files, and every file or folder that a page links to, with the files of such folders."""
    found = set((ROOT / "minivit").rglob("*.py"))
    for metadata in env.metadata.values():
        for name in metadata.get("sources", []):
            path = ROOT / name
            found.add(path)
            if path.is_dir():
                found.update(file for file in path.iterdir() if file.is_file() and file.suffix in TEXT)
    return found


def file_html(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    try:
        lexer = get_lexer_for_filename(path.name, stripnl=False)
    except ClassNotFound:
        lexer = TextLexer(stripnl=False)
    code = highlight(text, lexer, Lines(lineanchors="L", anchorlinenos=True, linenos="inline", wrapcode=True))
    return f'<div class="highlight-source notranslate" translate="no">{code}</div>'


def folder_html(path: Path) -> str:
    files = sorted(file.name for file in path.iterdir() if file.is_file() and file.suffix in TEXT)
    rows = "".join(f'<li><a href="{path.name}/{name}.html"><code>{name}</code></a></li>' for name in files)
    return f"<ul>{rows}</ul>"


def collect(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """One page for each file or folder."""
    for path in sorted(linked(app.env)):
        name = path.relative_to(ROOT).as_posix()
        body = folder_html(path) if path.is_dir() else file_html(path)
        context = {"title": name, "body": f"<h1><code>{name}</code></h1>\n{body}", "is_source": True}
        yield page_name(path), context, "page.html"


def resolve(domain: str, info: dict[str, str]) -> str | None:
    """Where sphinx.ext.linkcode's [source] links of the API pages lead: to the line of the definition."""
    value: Any = sys.modules.get(info["module"])
    for part in info["fullname"].split("."):
        value = getattr(value, part, None)
    if isinstance(value, property):
        value = value.fget
    try:
        path = Path(inspect.getsourcefile(inspect.unwrap(value)) or "").resolve()
        line = inspect.getsourcelines(inspect.unwrap(value))[1]
    except (TypeError, OSError):  # a constant has no source of its own
        return None
    return f"../{page_name(path)}.html#L-{line}" if path.is_relative_to(ROOT) else None


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_transform(LinkSources)
    app.connect("html-collect-pages", collect)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
