"""Citations lead to the bibliography: "Liu et al. 2021" on any page, lessons and the API included, becomes a link.

The papers are the entries of docs/bibliography.md, `- **Liu et al. 2021**: ...`. Next: `site_breaks.py`.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform

PAGE = "bibliography"
ENTRY = re.compile(r"^- \*\*(?P<name>.+?)\*\*", flags=re.MULTILINE)
CHINESE = re.compile(r" 等，(?=\d{4})")  # how a Chinese page writes "et al."
# words in these stay as they are
UNLINKED = (nodes.reference, nodes.literal, nodes.literal_block, nodes.title, nodes.raw)


@cache
def citations() -> re.Pattern[str]:
    """Matches every name of the bibliography, over a line break too, and as Chinese pages write it."""
    text = (Path(__file__).resolve().parents[1] / f"{PAGE}.md").read_text(encoding="utf-8")
    names = sorted(ENTRY.findall(text), key=len, reverse=True)
    patterns = [re.escape(name).replace(r"\ ", r"\s+") for name in names]
    patterns += [re.escape(name.replace(" et al. ", " 等，")) for name in names if " et al. " in name]
    return re.compile("|".join(patterns))


def anchor(name: str) -> str:
    """The id of an entry: liu-et-al-2021."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


class LinkCitations(SphinxPostTransform):
    default_priority = 300

    def run(self, **options: Any) -> None:
        if self.app.builder.format != "html":
            return
        if self.env.docname == PAGE:
            self._name_entries()
            return
        uri = self.app.builder.get_relative_uri(self.env.docname, PAGE)
        for text in list(self.document.findall(nodes.Text)):
            if not _inside(text, UNLINKED) and citations().search(str(text)):
                text.parent.replace(text, list(_linked(str(text), uri)))

    def _name_entries(self) -> None:
        for item in self.document.findall(nodes.list_item):
            strong = next(iter(item.findall(nodes.strong)), None)
            if strong is not None:
                item["ids"].append(anchor(strong.astext()))


def _inside(node: nodes.Node, kinds: tuple[type[nodes.Node], ...]) -> bool:
    while node.parent is not None:
        node = node.parent
        if isinstance(node, kinds):
            return True
    return False


def _linked(text: str, uri: str) -> Any:
    end = 0
    for match in citations().finditer(text):
        yield nodes.Text(text[end : match.start()])
        name = CHINESE.sub(" et al. ", match[0])
        target = f"{uri}#{anchor(name)}"
        yield nodes.reference("", match[0], internal=True, refuri=target, classes=["citation-link"])
        end = match.end()
    yield nodes.Text(text[end:])


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_post_transform(LinkCitations)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
