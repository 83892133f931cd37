"""The site: nothing comes from elsewhere, formulas are drawn, both languages are level, and every page can be reached.

Most tests read the pages that `python docs/build.py` has made, and are skipped where there are none. The checks that
keep the Chinese texts level with the English ones are tested here too; the build runs them.
"""

from __future__ import annotations

import importlib.util
import posixpath
import re
import sys
from dataclasses import dataclass, field
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
SITE = DOCS / "_build" / "html"
built = pytest.mark.skipif(not (SITE / "index.html").exists(), reason="no built site: run python docs/build.py first")


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- the built pages ------------------------------------------------------------------------------------------------

RESOURCES = {("script", "src"), ("img", "src"), ("source", "src"), ("iframe", "src"), ("video", "src"), ("use", "href")}
UNREAD = {"script", "style", "code", "pre", "math", "svg"}  # where dollars and backslashes are no formula


@dataclass
class Page:
    """What the tests ask of a page.

    Attributes:
        loaded: addresses that a browser fetches by itself.
        links: addresses that a reader can follow.
        others: addresses of the same page in another language.
        sidebar: links of the navigation.
        formulas, signs: how many there are, and the characters in them.
    """

    loaded: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    sidebar: list[str] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)
    images: list[dict[str, str | None]] = field(default_factory=list)
    formulas: int = 0
    signs: set[str] = field(default_factory=set)
    text: str = ""
    language: str | None = None


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.page = Page()
        self.open: list[str] = []
        self.sidebar = 0  # how many open elements stand around the navigation

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        page, values = self.page, dict(attributes)
        page.loaded += [value for name, value in attributes if value and (tag, name) in RESOURCES]
        if tag == "link" and values.get("rel") in ("stylesheet", "icon", "preload", "preconnect", "modulepreload"):
            page.loaded.append(values.get("href") or "")
        page.loaded += re.findall(r"url\(['\"]?([^'\")]+)", values.get("style") or "")
        if values.get("id"):
            page.anchors.add(values["id"] or "")
        if tag in ("a", "form"):
            target = values.get("href") or values.get("action") or ""
            page.links.append(target)
            if values.get("hreflang"):
                page.others.append(target)
            if self.sidebar:
                page.sidebar.append(target)
        page.formulas += tag == "math"
        if tag == "html":
            page.language = values.get("lang")
        if tag == "img":
            page.images.append(values)
        if tag not in ("meta", "link", "img", "input", "br", "hr", "col", "wbr", "source"):
            self.open.append(tag)
            if "sidebar-tree" in (values.get("class") or "").split():
                self.sidebar = len(self.open)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            while self.open.pop() != tag:
                pass
        if len(self.open) < self.sidebar:
            self.sidebar = 0

    def handle_data(self, data: str) -> None:
        if "math" in self.open:
            self.page.signs |= set(data)
        if not UNREAD & set(self.open):
            self.page.text += data


@cache
def pages() -> dict[str, Page]:
    """Every page of the site by its path. What a source page shows is left out: it is long, and code.

    The lab too: it is one page in both languages, with tests of its own.
    """
    result = {}
    for file in sorted(SITE.rglob("*.html")):
        if file.parent == SITE / "lab":
            continue
        html = file.read_text(encoding="utf-8")
        if "/source/" in f"/{file.relative_to(SITE).as_posix()}":
            html = re.sub(r'<div class="highlight">.*?</pre></div>', "", html, flags=re.DOTALL)
        reader = Reader()
        reader.feed(html)
        result[file.relative_to(SITE).as_posix()] = reader.page
    return result


def local(page: str, address: str) -> str | None:
    """The path in the site that an address on a page means; None for one outside the site."""
    parts = urlsplit(address)
    if parts.scheme or parts.netloc:
        return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), unquote(parts.path))) if parts.path else page
    return path


def named(faults: list[str]) -> str:
    return "\n".join([f"{len(faults)} faults:", *faults[:20]])


@built
def test_nothing_is_loaded_from_elsewhere() -> None:
    faults = []
    for name, page in pages().items():
        for address in page.loaded:
            path = local(name, address)
            if not address.startswith("data:") and (path is None or not (SITE / path).exists()):
                faults.append(f"{name} loads {address}")
    for file in SITE.rglob("*.css"):
        style = re.sub(r"/\*.*?\*/", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)
        addresses = re.findall(r"url\(\s*['\"]?([^'\")]+)|@import\s+['\"]([^'\"]+)", style)
        for address in (one or other for one, other in addresses):
            if not address.startswith(("data:", "#")) and not (file.parent / address.split("?")[0]).exists():
                faults.append(f"{file.relative_to(SITE)} loads {address}")
    assert not faults, named(faults)


@built
def test_every_formula_is_drawn() -> None:
    faults = []
    for name, page in pages().items():
        left = re.findall(r"\$[^$\n]{1,80}\$|\\[a-z]+\{.{0,40}|\\\(", page.text)
        faults += [f"{name}: {formula!r} is not drawn" for formula in left]
        source = DOCS / Path(name.removeprefix("zh/")).with_suffix(".md")
        if source.exists():
            displayed = source.read_text(encoding="utf-8").count("$$") // 2
            if page.formulas < displayed:
                faults.append(f"{name} shows {page.formulas} formulas, its source has {displayed} displayed ones")
    assert not faults, named(faults)
    assert sum(page.formulas for page in pages().values()) > 500  # the derivations alone have more


@built
def test_the_font_of_formulas_has_every_sign() -> None:
    """Formulas then look the same everywhere, whatever fonts the reader has."""
    style = (DOCS / "_static" / "site.css").read_text(encoding="utf-8")
    ranges = re.findall(r"U\+([0-9A-F]+)(?:-([0-9A-F]+))?", style)
    held = {chr(code) for first, last in ranges for code in range(int(first, 16), int(last or first, 16) + 1)}
    # spaces, and operators that MathML writes and no browser shows
    unseen = set("\u2061\u2062\u2063\u2064\u200b\n")
    missing = {name: sorted(page.signs - held - unseen) for name, page in pages().items()}
    faults = [f"{name}: {signs}" for name, signs in missing.items() if signs]
    assert not faults, named(faults)


@built
def test_every_image_has_alt_text() -> None:
    faults = [
        f"{name}: {(image.get('src') or '')[:60]}"
        for name, page in pages().items()
        for image in page.images
        if not (image.get("alt") or "").strip() or (image["alt"] or "").endswith((".png", ".svg"))
    ]
    assert not faults, named(faults)


@built
def test_every_page_leads_to_itself_in_the_other_language() -> None:
    faults = []
    for name, page in pages().items():
        chinese = name.startswith("zh/")
        expected = name.removeprefix("zh/") if chinese else f"zh/{name}"
        if not page.others or {local(name, address) for address in page.others} != {expected}:
            faults.append(f"{name} leads to {page.others}, not to {expected}")
        if expected not in pages():
            faults.append(f"{expected} is missing")
        if page.language != ("zh-CN" if chinese else "en"):
            faults.append(f"{name} says that its language is {page.language}")
    assert not faults, named(faults)


@built
def test_links_lead_somewhere() -> None:
    faults = []
    for name, page in pages().items():
        for address in page.links:
            path = local(name, address)
            if path is None:
                continue
            fragment = unquote(urlsplit(address).fragment)
            if not (SITE / path).exists():
                faults.append(f"{name}: {address} leads nowhere")
            elif fragment and path in pages() and "source/" not in path and fragment not in pages()[path].anchors:
                faults.append(f"{name}: {address}: there is no such place on that page")
    assert not faults, named(faults)


@built
@pytest.mark.parametrize("start", ["index.html", "zh/index.html"])
def test_every_page_can_be_reached(start: str) -> None:
    root = posixpath.dirname(start)
    mine = {name for name in pages() if name.startswith("zh/") == bool(root)}
    seen, queue = {start}, [start]
    while queue:
        name = queue.pop()
        for path in {local(name, address) for address in pages()[name].links} & mine - seen:
            seen.add(path or "")
            queue.append(path or "")
    assert seen == mine, f"no link leads to {sorted(mine - seen)}"


@built
def test_the_navigation_shows_every_page_of_the_documentation() -> None:
    shown = {local("index.html", address) for address in pages()["index.html"].sidebar}
    sources = [*DOCS.rglob("*.md"), *(DOCS / "lessons").glob("[0-9]*.py")]
    written = {file.relative_to(DOCS).with_suffix(".html").as_posix() for file in sources if "_build" not in file.parts}
    assert written - {"index.html"} <= shown, f"not in the sidebar: {sorted(written - shown)}"


@built
def test_the_article_begins_with_its_own_words() -> None:
    """Search shows the first words of an article: its heading, not the switch of languages."""
    faults = []
    for name in pages():
        html = (SITE / name).read_text(encoding="utf-8")
        article = html.partition('<article role="main"')[2].partition("</article>")[0]
        text = re.sub(r"<[^>]*>", "", article.partition(">")[2]).strip()
        if "hreflang" in article or text.startswith(("English", "Download", "下载", "本页目前")):
            faults.append(f"{name}: the article begins with {text[:40]!r}")
        if html.count('<nav class="page-bar"') != 1:
            faults.append(f"{name}: not one switch of languages")
    assert not faults, named(faults)


@built
def test_pages_are_in_chinese_or_say_that_they_are_not() -> None:
    names = ("index", "contents", "notation", "glossary", "concepts", "gradcheck", "families")
    sources = [*(DOCS / f"{name}.md" for name in names), *(DOCS / "lessons").glob("[i0-9]*.*")]
    chinese = {"zh/" + file.relative_to(DOCS).with_suffix(".html").as_posix() for file in sources}
    for name in chinese:
        assert re.search(r"[\u4e00-\u9fff]{4}", heading(name) + body(name)), f"{name} has no Chinese"
        assert "only-english" not in (SITE / name).read_text(encoding="utf-8"), f"{name} says that it has no Chinese"
    fallback = (SITE / "zh" / "protocol.html").read_text(encoding="utf-8")
    assert "本页目前只有英文版" in fallback


def body(name: str) -> str:
    html = (SITE / name).read_text(encoding="utf-8")
    return html[html.index("<article") : html.index("</article")].partition("</h1>")[2]


def heading(name: str) -> str:
    found = re.search(r"<h1>(.*?)<a class", (SITE / name).read_text(encoding="utf-8"), flags=re.DOTALL)
    return found[1] if found else ""


@built
def test_a_lesson_shows_what_its_code_printed() -> None:
    for script in (DOCS / "lessons").glob("[0-9]*.py"):
        printed = 'class="output' in (SITE / "lessons" / f"{script.stem}.html").read_text(encoding="utf-8")
        assert printed or "print(" not in script.read_text(encoding="utf-8"), f"{script.name} was not run"
        for ending in (".py", ".ipynb"):
            assert (SITE / "lessons" / f"{script.stem}{ending}").stat().st_size > 0


# --- the Chinese texts are level with the English ones --------------------------------------------------------------


@pytest.fixture(scope="module")
def translate() -> ModuleType:
    return load(DOCS / "translate.py")


def test_the_chinese_readme_is_level_with_the_english_one(translate: ModuleType) -> None:
    english, chinese = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md"))
    assert translate.readme_faults(english, chinese) == []


def test_a_changed_section_of_the_readme_is_named(translate: ModuleType) -> None:
    english = "# A\n\nfirst\n\n## One\n\ntext\n\n## Two\n\nmore\n"
    stamps = [translate.stamp(text) for text in translate.sections(english).values()]
    chinese = "# A\n\n<!-- en: {} -->\n\n## 一\n\n<!-- en: {} -->\n\n## 二\n\n<!-- en: {} -->\n".format(*stamps)
    assert translate.readme_faults(english, chinese) == []
    assert translate.readme_faults(english.replace("text", "text\n"), chinese) == []  # only words count
    (fault,) = translate.readme_faults(english.replace("more", "less"), chinese)
    assert "'二'" in fault and "'Two'" in fault
    assert translate.readme_faults(english + "\n## Three\n", chinese) == ["README.zh-CN.md has 3 sections, README.md 4"]


@dataclass
class Translation:
    string: str
    fuzzy: bool = False


@pytest.mark.parametrize(
    ("text", "translation", "fault"),
    [
        ("A word.", Translation("一个词。"), None),
        ("A word.", None, "no Chinese"),
        ("A word.", Translation(""), "no Chinese"),
        ("A word.", Translation("一个词。", fuzzy=True), "older"),
        ("See [x](a.md).", Translation("见 [x](b.md)。"), "links"),
        ("The sum $x + y$.", Translation("和 $x - y$。"), "formulas"),
        ("Call `f(x)`.", Translation("调用 `f`。"), "code"),
        ("A **word**.", Translation("一个**“词”**。"), "**"),
        ("A **word**.", Translation("一个 **词**。"), None),
        ("N", None, None),  # a letter needs no Chinese
    ],
)
def test_a_paragraph_without_current_chinese_is_named(
    translate: ModuleType, text: str, translation: Any, fault: str | None
) -> None:
    pytest.importorskip("markdown_it", reason="belongs to the site's own requirements: pip install -e '.[docs]'")
    found = translate.fault_of(text, translation)
    assert found is None if fault is None else fault in found


def test_a_new_paragraph_of_a_page_is_named(translate: ModuleType, tmp_path: Path, monkeypatch: Any) -> None:
    pytest.importorskip("sphinx", reason="belongs to the site's own requirements: pip install -e '.[docs]'")
    pytest.importorskip("jupytext", reason="belongs to the site's own requirements: pip install -e '.[docs]'")
    monkeypatch.setattr(translate, "MESSAGES", tmp_path / "zh")
    monkeypatch.setattr(sys, "path", [str(DOCS / "_ext"), *sys.path])
    (tmp_path / "page.pot").write_text('msgid ""\nmsgstr ""\n\nmsgid "An old one."\nmsgstr ""\n', encoding="utf-8")
    translate.update(tmp_path, "page")
    file = tmp_path / "zh" / "page.po"
    file.write_text(file.read_text(encoding="utf-8").replace('msgstr ""', 'msgstr "旧的。"'), encoding="utf-8")
    assert translate.faults(tmp_path, "page") == []

    (tmp_path / "page.pot").write_text('msgid ""\nmsgstr ""\n\nmsgid "An old one, changed."\nmsgstr ""\n', "utf-8")
    (fault,) = translate.faults(tmp_path, "page")
    assert fault == "docs/page: no Chinese for the paragraph: An old one, changed."
    translate.update(tmp_path, "page")  # the translator now finds the old Chinese there, marked fuzzy
    (fault,) = translate.faults(tmp_path, "page")
    assert fault == "docs/page: the Chinese is older than the paragraph: An old one, changed."


# --- what the site is made with -------------------------------------------------------------------------------------


def docstring(lines: str) -> list[str]:
    return [line for line in load(DOCS / "_ext" / "site_docstrings.py").to_rst(lines.splitlines()) if line]


def test_docstrings_become_lists_and_code() -> None:
    assert docstring("y = a * b, see `c`.\n\nArgs:\n    q, k: (..., N, d).\n    v: more\n        words.\n") == [
        r"y = a \* b, see ``c``.",
        ":Parameters:",
        "    * **q**, **k**: (..., N, d).",
        "    * **v**: more",
        "      words.",
    ]
    assert docstring("Text:\n\n    x = y * z\n\nmore") == ["Text:", "::", "    x = y * z", "more"]
    assert docstring("Returns:\n    y: a name, and vjp(dy) -> dx.\n") == [
        ":Returns:",
        "    y: a name, and vjp(dy) -> dx.",
    ]
    assert docstring("See docs/derivations/gelu.md.") == ["See :doc:`docs/derivations/gelu.md </derivations/gelu>`."]


def extension(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    for needed in ("sphinx", "jupytext", "myst_nb"):
        pytest.importorskip(needed, reason="belongs to the site's own requirements: pip install -e '.[docs]'")
    monkeypatch.setattr(sys, "path", [str(DOCS / "_ext"), *sys.path])
    return load(DOCS / "_ext" / f"{name}.py")


def test_a_line_of_code_knows_its_indentation(monkeypatch: pytest.MonkeyPatch) -> None:
    site_code = extension("site_code", monkeypatch)
    from pygments import highlight
    from pygments.lexers.python import PythonLexer

    code = "for x in y:\n    if x:\n\n        print('a < b')\n"
    html = highlight(code, PythonLexer(), site_code.Lines(linenos="inline", lineanchors="L", anchorlinenos=True))
    assert re.findall(r"--in: (\d+)", html) == ["0", "4", "0", "8"]
    text = re.sub(r"<[^>]*>", "", re.sub(r'<span class="linenos">.*?</span>', "", html))
    assert text.strip("\n").replace("&lt;", "<").replace("&#39;", "'") == code.strip("\n")


def test_lines_break_behind_separators_and_not_within_names_dates_and_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    site_breaks, site_code = extension("site_breaks", monkeypatch), extension("site_code", monkeypatch)
    from pygments import highlight
    from pygments.lexers.python import PythonLexer

    code = "y = np.random.default_rng(0).random(3) < x.mean()"
    html = highlight(code, PythonLexer(), site_code.Lines())
    text = re.sub(r"<(?!wbr)[^>]*>", "", html).strip()
    assert text == "y = np.<wbr>random.<wbr>default_<wbr>rng(<wbr>0).<wbr>random(<wbr>3) &lt; x.mean()"
    page = (
        '<p title="2026-11-27"><code><span class="pre">--threads</span></code> 2026-11-27, 0.66 (0.6 to 0.7)</p>'
        '<pre>2026-11-27</pre><code><span class="pre">timm/vit_base_patch16_224</span></code>'
        '<img class="figure" style="max-width: 100%; width: 413px"><img class="figure" style="width: 855px">'
    )
    shown = site_breaks.arranged(page)
    assert shown.startswith('<p title="2026-11-27"><code><span class="pre whole">--threads</span></code> ')
    assert re.findall(r'<span class="whole">(.*?)</span>', shown) == ["2026-11-27", "(0.6 to 0.7)"]
    assert '<span class="pre">timm/<wbr>vit_<wbr>base_<wbr>patch16_<wbr>224</span>' in shown
    assert re.findall(r'class="(figure.*?)"', shown) == ["figure narrow", "figure"]
    assert re.sub(r"<[^>]*>", "", shown) == re.sub(r"<[^>]*>", "", page)
    row = '<tr class="row-even"><td><p>A sentence about attention in windows</p></td><td>1</td><td>2</td></tr>'
    assert '<td class="sentence"><p>A sent' in site_breaks.arranged(row)
    assert 'class="sentence"' not in site_breaks.arranged(row.replace("<td>2</td>", ""))


def test_the_code_of_a_figure_is_folded_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    read = extension("site_lessons", monkeypatch).read
    figure = '# drawn\nfigure, axes = figures.new()\naxes.plot(x)\nfigures.show(\n    figure, "a", alt="b"\n)'
    cells = read(f"# %%\nx = 1\n{figure}\nprint(x)\n\n# %%\nprint('figures.new(')\n").cells
    assert [cell.source for cell in cells] == ["x = 1", figure, "print(x)", "print('figures.new(')"]
    assert ["hide-input" in cell.metadata.get("tags", []) for cell in cells] == [False, True, False, False]
    (whole,) = read(f'# %% tags=["hide-input"]\nx = 1\n{figure}\n').cells
    assert whole.source.startswith("x = 1") and whole.metadata["tags"] == ["hide-input"]


def test_citations_lead_to_their_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    site = extension("site_citations", monkeypatch)
    text = "as in Liu et al.\n2021, not Unknown et al. 2021; Ba, Kiros and Hinton 2016; Liu 等，2022"
    links = [node for node in site._linked(text, "b.html") if not isinstance(node, site.nodes.Text)]
    assert [link["refuri"] for link in links] == [
        "b.html#liu-et-al-2021",
        "b.html#ba-kiros-and-hinton-2016",
        "b.html#liu-et-al-2022",
    ]


def test_boxes_that_scroll_are_reached_by_the_keyboard(monkeypatch: pytest.MonkeyPatch) -> None:
    accessible = extension("site_access", monkeypatch).accessible
    for box in (
        '<div class="output stream highlight-ansi"><div class="highlight"><pre>1</pre>',
        '<div class="output text_html">',
        '<div class="table-wrapper colwidths-auto">',
        '<p><img alt="a" src="b.svg" />\n</p>',
    ):
        assert 'tabindex="0" role="group" aria-label="' in accessible(box, "output", "table", "picture")
    signature = '<dl>\n<dd><em class="sig-param">x</em>,</dd>\n<dd><em class="sig-param">y</em>,</dd>\n</dl>'
    assert "<d" not in accessible(signature, "output", "table", "picture").replace("<div", "")
    assert accessible("<dl><dt>a</dt><dd>b</dd></dl>", "output", "table", "picture") == "<dl><dt>a</dt><dd>b</dd></dl>"


def test_drawings_in_a_page_are_named_in_its_language(monkeypatch: pytest.MonkeyPatch) -> None:
    drawing_html = extension("site_pictures", monkeypatch).drawing_html
    svg = (DOCS / "images" / "y_back.svg").read_text(encoding="utf-8")
    english, chinese = (drawing_html(svg, "y_back", language) for language in ("en", "zh_CN"))
    assert 'aria-label="A call of a layer' in english and "Pause" in english
    assert 'aria-label="调用一个层' in chinese and "暂停" in chinese and "A call of" not in chinese
    with pytest.raises(ValueError, match="title"):
        drawing_html("<svg></svg>", "nothing", "en")


def test_formulas_that_cannot_be_drawn_are_not_passed_on() -> None:
    core = pytest.importorskip("math_core", reason="belongs to the site's own requirements: pip install -e '.[docs]'")
    convert = core.LatexToMathML().convert_with_local_state
    assert "<msup>" in convert("x^2", displaystyle=False)
    with pytest.raises(core.LatexError):
        convert(r"\nosuchcommand{x}", displaystyle=False)


def test_the_overview_lists_every_lesson_once_and_in_order() -> None:
    overview = (DOCS / "lessons" / "index.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\|.*?\]\((\w+\.py)\)", overview, flags=re.MULTILINE)
    assert rows == sorted(set(rows)), f"docs/lessons/index.md lists {rows}"
    missing = {script.name for script in (DOCS / "lessons").glob("[0-9]*.py")} - set(rows)
    assert not missing, f"docs/lessons/index.md: add a row for {sorted(missing)}"
