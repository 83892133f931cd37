"""The site's navigation, its two languages, and what each page's template needs to know.

The table below is the order of the pages; on GitHub the lists on the pages themselves do its work. Next:
`site_docstrings.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import site_notebooks
from sphinx.application import Sphinx

DOCS = Path(__file__).resolve().parents[1]

NAVIGATION = {
    "Lessons": ["Overview <lessons/index>", "lessons/[0-9]*"],
    "How it works": ["protocol", "formulas", "gradcheck", "add_a_layer", "hybrid", "why_swin_is_linear"],
    "Derivations": [
        "derivations/linear",
        "derivations/gelu",
        "derivations/softmax",
        "derivations/layer_norm",
        "derivations/dropout",
        "derivations/attention",
        "derivations/patch_embed",
        "derivations/convolution",
        "derivations/group_norm",
        "derivations/windows",
        "derivations/position_bias",
        "derivations/patch_merging",
        "derivations/cosine_attention",
        "derivations/cross_entropy",
    ],
    "Guides": [
        "published_weights",
        "classify_an_image",
        "finetuning",
        "families",
        "features",
        "inference",
        "scaling",
        "trace",
        "lab",
        "coming_from",
    ],
    "Measured": ["pretraining", "positions", "performance", "gpu"],
    "Reference": [
        "API <api/index>",
        "notation",
        "glossary",
        "concepts",
        "model_list",
        "reading_order",
        "bibliography",
        "migration",
        "contents",
    ],
}
API = [
    "minivit",
    "functional",
    "nn",
    "models",
    "optim",
    "parallel",
    "distributed",
    "gradcheck",
    "data",
    "weights",
    "explain",
    "sklearn",
]


def chinese_pages() -> set[str]:
    """The pages that must have a Chinese text for every paragraph."""
    lessons = {f"lessons/{file.stem}" for file in (DOCS / "lessons").glob("[0-9]*.py")}
    return {"index", "contents", "notation", "glossary", "concepts", "gradcheck", "families", "lessons/index"} | lessons


def add_navigation(app: Sphinx, docname: str, source: list[str]) -> None:
    """Append what the sidebar shows: hidden lists of pages, which would be noise on GitHub."""
    trees = ""
    if docname == "index":
        for caption, pages in NAVIGATION.items():
            trees += _tree(pages, f":caption: {caption}\n:glob:\n")
    elif docname == "api/index":
        trees = _tree([f"/api/{name}" for name in API])
    source[0] += trees


def _tree(pages: list[str], options: str = "") -> str:
    return "\n\n```{toctree}\n:hidden:\n" + options + "\n" + "\n".join(pages) + "\n```\n"


def add_context(app: Sphinx, pagename: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """The same page in the other language, whether this one is in English by default, and a lesson's files."""
    chinese = app.config.language == "zh_CN"
    up = "../" * pagename.count("/")
    file = app.builder.get_target_uri(pagename)
    context["is_chinese"] = chinese
    context["other_uri"] = f"{up}../{file}" if chinese else f"{up}zh/{file}"
    context["only_english"] = chinese and doctree is not None and pagename not in chinese_pages()
    context["is_lesson"] = (DOCS / f"{pagename}.py").exists()
    if context["is_lesson"]:
        context["services"] = site_notebooks.services(pagename.split("/")[-1], site_notebooks.repository())


def write_lessons(app: Sphinx, error: Exception | None) -> None:
    """Beside each lesson's page: the script, and the notebook without output."""
    if error is None and app.builder.name == "html":
        site_notebooks.write(Path(app.outdir) / "lessons")


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("source-read", add_navigation)
    app.connect("html-page-context", add_context)
    app.connect("build-finished", write_lessons)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
