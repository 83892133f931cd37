"""Lessons as notebooks that run anywhere: in Jupyter outside of the repository, in Colab and in Binder.

A downloaded notebook has a cell that installs the library, links that lead to the project's repository, and what a
lesson imports from examples/. Colab and Binder open the notebooks of the published site, whose files are on the branch
gh-pages of the repository. Next: `site_pages.py`.
"""

from __future__ import annotations

import configparser
import posixpath
import re
from pathlib import Path

import jupytext
import nbformat

ROOT = Path(__file__).resolve().parents[2]
LESSONS = "docs/lessons"
LINK = re.compile(r"\]\((?![a-z]+:|#)([^()\s]+)\)")  # the end of a Markdown link to another file
GITHUB = re.compile(r"https://github\.com/([\w.-]+/[\w.-]+?)/?")

INSTALL = """\
# Installs minivit and Matplotlib if one of them is missing.
import importlib.util

if not all(importlib.util.find_spec(name) for name in ("minivit", "matplotlib")):
    %pip install --quiet "minivit[examples] @ git+{url}"
"""


def repository() -> str:
    """The address of the project, which stands in one line of setup.cfg."""
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    return settings["metadata"]["url"].rstrip("/")


def absolute(target: str, url: str) -> str:
    """Where a lesson's relative link leads for somebody who has the notebook alone."""
    path, mark, part = target.partition("#")
    return f"{url}/blob/main/{posixpath.normpath(posixpath.join(LESSONS, path))}{mark}{part}"


def notebook(script: Path, url: str) -> nbformat.NotebookNode:
    """The notebook of a lesson, without output."""
    text = script.read_text(encoding="utf-8")
    result = jupytext.reads(text, fmt="py:percent")
    result.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    for cell in result.cells:
        if cell.cell_type == "markdown":
            cell.source = LINK.sub(lambda link: f"]({absolute(link[1], url)})", cell.source)
        elif "hide-cell" in cell.metadata.get("tags", []):  # a solution: folded in Jupyter and in Colab
            cell.metadata.update(jupyter={"source_hidden": True, "outputs_hidden": True}, cellView="form")
    before = [nbformat.v4.new_code_cell(INSTALL.format(url=url), id="install")]
    for program in sorted((ROOT / "examples").glob("*.py")):
        if re.search(rf"^import {program.stem}\b", text, flags=re.MULTILINE):
            source = f"%%writefile {program.name}\n{program.read_text(encoding='utf-8')}"
            before.append(nbformat.v4.new_code_cell(source, id=program.stem.replace("_", "-")))
    result.cells[1:1] = before  # after the title
    return result


def services(name: str, url: str) -> dict[str, str]:
    """Colab's and Binder's addresses of a lesson; none while the project is not on GitHub."""
    found = GITHUB.fullmatch(url)
    if found is None:
        return {}
    file = f"lessons/{name}.ipynb"
    return {
        "Colab": f"https://colab.research.google.com/github/{found[1]}/blob/gh-pages/{file}",
        "Binder": f"https://mybinder.org/v2/gh/{found[1]}/gh-pages?labpath={file}",
    }


def write(folder: Path) -> None:
    """Every lesson's script and notebook."""
    url = repository()
    for script in sorted((ROOT / LESSONS).glob("[0-9]*.py")):
        (folder / script.name).write_text(script.read_text(encoding="utf-8"), encoding="utf-8")
        nbformat.write(notebook(script, url), folder / f"{script.stem}.ipynb")
