"""Sphinx's configuration of the documentation site, in English and, with -D language=zh_CN, in Chinese.

`python docs/build.py` builds both; what is particular to this site stands in `docs/_ext/`.
"""

import os
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path[:0] = [str(DOCS / "_ext"), str(ROOT)]
# the lessons' kernels import the library from this checkout too
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))

import site_lessons  # noqa: E402
import site_sources  # noqa: E402

from minivit import __version__  # noqa: E402

project = "minivit"
author = "The minivit authors"
release = version = __version__
language = "en"

extensions = [
    "site_lessons",
    "site_code",
    "site_math",
    "site_sources",
    "site_pictures",
    "site_citations",
    "site_breaks",
    "site_access",
    "site_search",
    "site_pages",
    "site_docstrings",
    "sphinx.ext.autodoc",
    "sphinx.ext.linkcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "_ext", "_templates", "locale"]
exclude_patterns += ["conf.py", "build.py", "build_lab.py", "translate.py", "write_*.py"]  # programs, not lessons

# --- pages ----------------------------------------------------------------------------------------------------------

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
myst_update_mathjax = False

nb_custom_formats = {".py": ["site_lessons.read", {}]}
nb_execution_mode = os.environ.get("MINIVIT_DOCS_RUN", "cache")  # "off" shows the lessons without their output
minivit_fingerprint = site_lessons.fingerprint()
nb_execution_cache_path = str(DOCS / "_build" / "lessons" / minivit_fingerprint)
nb_execution_raise_on_error = True
nb_execution_timeout = 600  # seconds for a cell; the slowest lesson takes 2 minutes as a whole
nb_execution_in_temp = True  # what a lesson writes does not land beside it
nb_merge_streams = True
nb_output_stderr = "remove"  # matplotlib, for one, says there that it builds its cache of fonts

# --- the reference --------------------------------------------------------------------------------------------------

autodoc_member_order = "bysource"
autodoc_type_aliases = {"Array": "Array", "Back": "Back", "Loss": "Loss", "Augment": "Augment", "Params": "Params"}
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
linkcode_resolve = site_sources.resolve

# --- languages ------------------------------------------------------------------------------------------------------

locale_dirs = ["locale"]
gettext_compact = False  # a file of messages for each page
gettext_location = False  # line numbers would change with every edit
figure_language_filename = "{root}{ext}"

# --- looks ----------------------------------------------------------------------------------------------------------

html_theme = "furo"
html_title = f"minivit {release}"
html_static_path = ["_static"]
html_favicon = "_static/favicon.svg"
html_css_files = ["site.css"]
templates_path = ["_templates"]
html_math_renderer = "mathml"
html_copy_source = False
smartquotes = False  # "(..., N, d)" is a shape, with three dots
html_show_copyright = False
html_use_index = False
html_domain_indices = False
html_sidebars = {
    "**": [
        "sidebar/brand.html",
        "sidebar/search.html",
        "sidebar/scroll-start.html",
        "sidebar/navigation.html",
        "sidebar/scroll-end.html",
    ]
}
copybutton_prompt_text = ">>> "
pygments_style = "a11y-high-contrast-light"  # every color has a contrast of 4.5 and more
pygments_dark_style = "a11y-high-contrast-dark"
