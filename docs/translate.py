"""Keeps the Chinese texts level with the English ones: `python docs/translate.py` after an English page has changed.

It writes the new English paragraphs, and the comments in the code of pages, into
docs/locale/zh_CN/LC_MESSAGES/*.po, where a translator fills in `msgstr` and takes the mark `fuzzy` away where a
paragraph has changed. `--check` changes nothing and fails where a Chinese page, or README.zh-CN.md, is older than its
English one. Next: `build.py`.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
MESSAGES = DOCS / "locale" / "zh_CN" / "LC_MESSAGES"
BUILD = DOCS / "_build"

# what a translation must keep: code, formulas, and where links lead
MARKUP = re.compile(r"`+[^`]+`+|\$[^$]+\$|(?<=\])\([^()\s]+\)")

WORD = re.compile(r"[A-Za-z]{2}")  # what has none, such as the name of a shape, is the same in Chinese


# --- pages ----------------------------------------------------------------------------------------------------------


def extract() -> Path:
    """Read every page's paragraphs, without running lessons; returns the folder of the .pot files."""
    target = BUILD / "messages"
    command = [sys.executable, "-m", "sphinx", "-q", "-b", "gettext", "-d", str(BUILD / "doctrees" / "messages")]
    subprocess.run([*command, str(DOCS), str(target)], check=True, env={**os.environ, "MINIVIT_DOCS_RUN": "off"})
    for page in pages():
        add_comments(target / f"{page}.pot", page)
    return target


def add_comments(template: Path, page: str) -> None:
    """The comments in a page's code become messages too."""
    from babel.messages import pofile
    from site_comments import CELL, FENCE, comments

    script = DOCS / f"{page}.py"
    file, code = (script, CELL) if script.exists() else (DOCS / f"{page}.md", FENCE)
    catalog = read_catalog(template)
    for words in comments(file.read_text(encoding="utf-8"), code):
        catalog.add(words)
    with template.open("wb") as file:
        pofile.write_po(file, catalog, width=120)


def pages() -> list[str]:
    sys.path.insert(0, str(DOCS / "_ext"))
    from site_pages import chinese_pages

    return sorted(chinese_pages())


def read_catalog(path: Path) -> Any:
    from babel.messages import Catalog, pofile

    if not path.exists():
        return Catalog(locale="zh_CN")
    with path.open("rb") as file:
        return pofile.read_po(file, locale="zh_CN")


def update(templates: Path, page: str) -> None:
    """Bring a page's .po file level: new paragraphs come in empty, changed ones are marked fuzzy."""
    from babel.messages import pofile

    path = MESSAGES / f"{page}.po"
    catalog = read_catalog(path)
    catalog.update(read_catalog(templates / f"{page}.pot"), no_fuzzy_matching=False)
    for message in catalog:  # Babel takes every % and { for a format of strings; ours are prose
        message.flags -= {"python-format", "python-brace-format"}
    catalog.fuzzy = False
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        pofile.write_po(file, catalog, width=120, omit_header=True, ignore_obsolete=True)


def faults(templates: Path, page: str) -> list[str]:
    """What is missing in a page's Chinese text, a line for each paragraph."""
    have = read_catalog(MESSAGES / f"{page}.po")
    result = []
    for message in read_catalog(templates / f"{page}.pot"):
        if not message.id:
            continue
        fault = fault_of(message.id, have.get(message.id))
        if fault:
            text = message.id if len(message.id) <= 90 else message.id[:87] + "..."
            result.append(f"docs/{page}: {fault}: {text}")
    return result


def fault_of(text: str, translation: Any) -> str | None:
    if translation is None or not translation.string:
        return None if not WORD.search(MARKUP.sub("", text)) else "no Chinese for the paragraph"
    if translation.fuzzy:
        return "the Chinese is older than the paragraph"
    if Counter(MARKUP.findall(text)) != Counter(MARKUP.findall(translation.string)):
        return "the Chinese has other code, formulas or links than the paragraph"
    if "**" in MARKUP.sub("", _as_seen(translation.string)):
        return "Markdown leaves a ** of the Chinese as it is: put a space in front of it or behind it"
    return None


def _as_seen(text: str) -> str:
    from markdown_it import MarkdownIt

    return MarkdownIt().renderInline(text)


# --- README ---------------------------------------------------------------------------------------------------------


def sections(text: str) -> dict[str, str]:
    """Heading -> the text under it; what stands in front of the first `##` has the heading ''."""
    found = {}
    for part in re.split(r"^(?=## )", text, flags=re.MULTILINE):
        heading, _, body = part.partition("\n") if part.startswith("## ") else ("", "", part)
        found[heading.removeprefix("## ")] = body
    return found


def stamp(text: str) -> str:
    """Changes with the words of a section; not with its line breaks, nor with the line that links the languages."""
    text = "\n".join(line for line in text.splitlines() if "README.zh-CN.md" not in line)
    return hashlib.sha256(" ".join(text.split()).encode()).hexdigest()[:12]


def readme_faults(english: str, chinese: str) -> list[str]:
    """Each section of README.zh-CN.md says in a comment of which English text it is the translation."""
    result = []
    translated, wanted = list(sections(chinese).items()), list(sections(english).items())
    if len(translated) != len(wanted):
        return [f"README.zh-CN.md has {len(translated)} sections, README.md {len(wanted)}"]
    for (heading, text), (title, body) in zip(translated, wanted):
        found = re.search(r"<!-- en: (\w+) -->", text)
        if not found or found[1] != stamp(body):
            where = f"section {heading!r}" if heading else "the top"
            result.append(
                f"README.zh-CN.md: {where} is older than {title or 'the top'!r} of README.md: "
                f"translate what has changed, then write <!-- en: {stamp(body)} --> there"
            )
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail where the Chinese is older")
    check = parser.parse_args().check
    templates = extract()
    found = readme_faults(*((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md")))
    for page in pages():
        if not check:
            update(templates, page)
        found += faults(templates, page)
    print("\n".join(found) or "every Chinese page is level with its English one")
    return 1 if found and check else 0


if __name__ == "__main__":
    sys.exit(main())
