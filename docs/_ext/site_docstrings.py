"""Docstrings are plain text for readers of the source; here they become what Sphinx reads.

`Args:`, `Returns:` and `Raises:` become lists, deeper lines after an empty one become code, and signs such as `*` mean
themselves. Next: `docs/conf.py`.
"""

from __future__ import annotations

import re
from textwrap import dedent
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

FIELDS = {"Args": "Parameters", "Attributes": "Attributes", "Returns": "Returns", "Raises": "Raises"}
HEAD = re.compile(rf"({'|'.join(FIELDS)})( [^:]*)?:\s*$")  # "Args beyond those of `Swin`:" too
CODE = re.compile(r"(`[^`\n]*`)")
PAGE = re.compile(r"\bdocs/([\w/]+)\.md\b")  # "Derivation: docs/derivations/softmax.md"
ALIAS = re.compile(r"TypeAliasForwardRef\('(\w+)'\)")  # what Python prints where a name of a type is part of another
NAMES = re.compile(r"([A-Za-z_*][\w.*]*(?:, [A-Za-z_*][\w.*]*)*): +")  # in front of what an entry says


def to_rst(lines: list[str]) -> list[str]:
    """A whole docstring: sections at the margin become fields, everything else text and code."""
    result: list[str] = []
    plain: list[str] = []
    place = 0
    while place < len(lines):
        head = HEAD.match(lines[place])
        if head is None:
            plain.append(lines[place])
            place += 1
            continue
        end = place + 1
        while end < len(lines) and (not lines[end].strip() or lines[end].startswith(" ")):
            end += 1
        body = dedent("\n".join(lines[place + 1 : end])).splitlines()
        result += [*text(plain), "", *_section(FIELDS[head[1]], _escape(head[2] or ""), body), ""]
        plain, place = [], end
    return result + text(plain)


def _section(field: str, note: str, lines: list[str]) -> list[str]:
    """:Parameters: and its entries; what is returned, or raised without a name, is one paragraph."""
    entries: list[list[str]] = []
    for line in lines:
        if entries and (not line.strip() or line.startswith(" ")):
            entries[-1].append(line)
        else:
            entries.append([line])
    if field == "Returns" or not NAMES.match(lines[0]):
        return [f":{field}{note}:", *_indented(text(dedent("\n".join(lines)).splitlines()))]
    result = [f":{field}{note}:"]
    for first, *rest in entries:
        names = NAMES.match(first)
        head = ", ".join(f"**{_escape(name)}**" for name in names[1].split(", ")) + ": " if names else ""
        body = text([first[names.end() :] if names else first, *dedent("\n".join(rest)).splitlines()])
        result += [f"    * {head}{body[0]}", *(f"      {line}".rstrip() for line in body[1:])]
    return result


def _indented(lines: list[str]) -> list[str]:
    return [f"    {line}".rstrip() for line in lines]


def text(lines: list[str]) -> list[str]:
    """Paragraphs and lists, with their code blocks marked."""
    result: list[str] = []
    code = False
    for number, line in enumerate(lines):
        deep = line.startswith("    ")
        if line.strip() and not deep:
            code = False
        elif deep and not code and number and not lines[number - 1].strip():
            code = True
            result += ["::", ""]
        result.append(line if code else _escape(line))
    return result


def _escape(line: str) -> str:
    """Names in single quotes become code; outside of them, signs of reStructuredText mean themselves."""
    parts = CODE.split(line)
    for place, part in enumerate(parts):
        if place % 2:
            parts[place] = f"``{part[1:-1]}``" if part[1:-1].strip() else part
        else:
            escaped = re.sub(r"([*|\\]|(?<=\w)_(?=\W|$))", r"\\\1", part)
            parts[place] = PAGE.sub(r":doc:`docs/\1.md </\1>`", escaped)
    return "".join(parts)


def process(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    lines[:] = to_rst(lines)


def name_types(app: Sphinx, what: str, name: str, value: Any, options: Any, *signature: Any) -> tuple[Any, ...]:
    """The arguments and the result with `Array` where the source says `Array`."""
    return tuple(part and ALIAS.sub(r"\1", part) for part in signature)


def setup(app: Sphinx) -> dict[str, Any]:
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-docstring", process)
    app.connect("autodoc-process-signature", name_types)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
