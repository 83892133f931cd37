"""The site in a real browser, as readers see it: nothing cut off, no error in the console, no barrier that axe finds.

It needs a site that `python docs/build.py` has made, Chromium (`apt-get install chromium`, or MINIVIT_CHROMIUM with its
path) and `pip install playwright axe-playwright-python`; without one of them it is skipped and says which is missing.
Nothing is fetched from outside of the site. axe-core takes up to a minute for a long page, so it reads the pages of
`PAGES`, or those that MINIVIT_PAGES names; the widths are checked on every page of the documentation.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser_tools
import pytest

SITE = Path(os.environ.get("MINIVIT_SITE") or Path(__file__).resolve().parents[2] / "docs" / "_build" / "html")
LESSONS = [
    *(
        "01_from_rnn_to_attention",
        "02_embedding",
        "03_self_attention",
        "04_many_heads",
        "05_order",
        "06_vit_in_numbers",
    ),
    *("07_pretraining", "08_swin", "08b_shifted_windows", "09_backpropagation", "10_break_it", "11_after_vit"),
]
PAGES = [
    "index",
    *(f"lessons/{name}" for name in ("index", *LESSONS)),
    "derivations/layer_norm",
    "derivations/convolution",
    "performance",
    "published_weights",
    "inference",
    "lab",
    "concepts",
    "gradcheck",
    "notation",
    "glossary",
    "bibliography",
    "api/index",
    "api/nn",
    "api/gradcheck",
    "source/minivit/functional/norm.py",
    "search",
]
if os.environ.get("MINIVIT_PAGES"):  # other pages instead, without .html and with spaces between them
    PAGES = os.environ["MINIVIT_PAGES"].split()
WIDTHS = (390, 1280)
NARROWEST_TEXT = 9  # CSS pixels, of the words in a drawing on a phone

pytestmark = pytest.mark.skipif(
    not (SITE / "index.html").exists(), reason="no built site: run python docs/build.py first"
)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with browser_tools.hosted(SITE) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    yield from browser_tools.chromium()


@pytest.fixture
def open_page(browser: Any, address: str) -> Iterator[Any]:
    """open_page(name, width, theme) -> the page and what went wrong while it was loaded."""
    contexts = []

    def open_one(
        name: str, width: int = 1280, theme: str = "light", query: str = "", **options: Any
    ) -> tuple[Any, list[str]]:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme, **options)
        contexts.append(context)
        page, faults = context.new_page(), []
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("requestfailed", lambda request: faults.append(f"{request.url}: {request.failure}"))
        page.on("response", lambda answer: faults.append(f"{answer.url}: {answer.status}") if not answer.ok else None)
        page.goto(f"{address}/{name}.html{query}", wait_until="load")
        return page, faults

    yield open_one
    for context in contexts:
        context.close()


# blocks that are wider than their box, and cannot be scrolled there by a visible bar that the keyboard reaches too
CUT_OFF = """() => [...document.querySelectorAll("article pre, article .formula, article table, article img")]
    .filter(element => element.checkVisibility())
    .flatMap(element => {
        const screen = document.documentElement.clientWidth;
        let box = element;
        while (box && !["auto", "scroll"].includes(getComputedStyle(box).overflowX)) box = box.parentElement;
        const scrolls = box && box !== document.documentElement && box !== document.body;
        const wide = element.tagName === "PRE" ? element.scrollWidth > element.clientWidth + 1 : false;
        const right = element.getBoundingClientRect().right;
        if (scrolls && box.getBoundingClientRect().right <= screen + 1) return [];
        return wide || right > screen + 1 ? [`${element.tagName}: ${element.textContent.trim().slice(0, 60)}`] : [];
    })"""
# what is code, and not the columns that a program printed, wraps: at no width does a reader have to scroll it
SCROLLED_CODE = """() => [...document.querySelectorAll("article div.highlight pre")]
    .filter(element => !element.closest(".cell_output") && element.scrollWidth > element.clientWidth + 1)
    .map(element => element.textContent.trim().slice(0, 60))"""
OVERFLOW = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"


def every_page() -> list[str]:
    """The pages of the documentation, and the source file in PAGES for all of them."""
    files = (path.relative_to(SITE).with_suffix("").as_posix() for path in SITE.rglob("*.html"))
    mine = (name for name in files if not name.startswith(("zh/", "source/", "lab/", "_", "genindex", "py-modindex")))
    return sorted({*PAGES, *mine})


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("language", ["", "zh/"], ids=["en", "zh"])
def test_nothing_is_cut_off_and_nothing_fails(open_page: Any, language: str, width: int) -> None:
    found = {}
    for name in every_page():
        page, faults = open_page(language + name, width)
        faults += page.evaluate(CUT_OFF) + page.evaluate(SCROLLED_CODE)
        if page.evaluate(OVERFLOW) > 0:
            faults.append(f"the page is {page.evaluate(OVERFLOW)} pixels wider than the screen")
        if faults:
            found[name] = faults
        page.close()
    assert not found, found


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("language", ["", "zh/"], ids=["en", "zh"])
def test_axe_finds_no_barrier(open_page: Any, language: str, theme: str, width: int) -> None:
    """Contrast, names of controls, texts of images, order of headings: the rules of axe-core."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs pip install axe-playwright-python")
    found = {}
    for name in PAGES:
        page, _ = open_page(language + name, width, theme, reduced_motion="reduce")
        result = axe.Axe().run(page, options={"resultTypes": ["violations"]})
        faults = [
            f"{fault['id']}: {node['target']}" for fault in result.response["violations"] for node in fault["nodes"][:3]
        ]
        if faults:
            found[name] = faults
        page.close()
    assert not found, found


def test_boxed_results_have_a_box(open_page: Any) -> None:
    page, _ = open_page("derivations/layer_norm")
    widths = page.evaluate(
        "() => [...document.querySelectorAll('menclose')].map(e => parseFloat(getComputedStyle(e).borderTopWidth))"
    )
    assert widths and min(widths) >= 1, widths


def test_the_animation_of_the_first_page_moves_pauses_and_respects_reduced_motion(open_page: Any) -> None:
    place = "() => document.querySelector('.y-back .value').getBoundingClientRect().left"
    moving = "() => document.getAnimations().filter(a => a.playState === 'running').length"
    page, _ = open_page("index")
    before = page.evaluate(place)
    page.wait_for_timeout(1500)
    assert page.evaluate(place) > before + 20
    page.check("#pause-y_back")
    assert page.evaluate(moving) == 0
    page, _ = open_page("index", reduced_motion="reduce")
    assert page.evaluate(moving) == 0
    assert page.is_visible(".y-back .slip-1"), "without motion the figure shows all parts"
    page, _ = open_page("index", 390)
    heights = page.evaluate(
        "() => [...document.querySelectorAll('.y-back text')].map(e => e.getBoundingClientRect().height)"
    )
    assert min(height for height in heights if height) > NARROWEST_TEXT


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_colors_of_the_animation_follow_the_switch_of_the_page(open_page: Any, theme: str) -> None:
    """The reader's system says one thing and the page's own switch the other: the switch wins."""
    page, _ = open_page("index", theme={"light": "dark", "dark": "light"}[theme])
    page.evaluate(f"() => {{ document.body.dataset.theme = '{theme}' }}")
    ink = page.evaluate("() => getComputedStyle(document.querySelector('.y-back text')).fill")
    red = int(ink.removeprefix("rgb(").partition(",")[0])
    assert red > 150 if theme == "dark" else red < 100, ink


@pytest.mark.parametrize("language", ["", "zh/"], ids=["en", "zh"])
def test_what_search_shows_begins_with_the_words_of_the_page(open_page: Any, language: str) -> None:
    page, faults = open_page(f"{language}search", query="?q=attention")
    page.wait_for_selector("ul.search p.context", timeout=20_000)
    snippets = page.eval_on_selector_all("ul.search p.context", "all => all.map(one => one.textContent.trim())")
    wrong = [text[:60] for text in snippets if text.startswith(("English", "Download", "下载", "本页目前", "…English"))]
    assert snippets and not wrong and not faults, (wrong, faults)


@pytest.mark.parametrize("language", ["", "zh/"], ids=["en", "zh"])
def test_a_page_has_one_switch_of_languages_and_it_can_be_seen(open_page: Any, language: str) -> None:
    for width in WIDTHS:
        page, _ = open_page(f"{language}lessons/08_swin", width)
        switches = page.locator("a[hreflang]")
        assert switches.count() == 1 and switches.first.is_visible() and switches.first.is_enabled()
        assert page.locator("details.hide").count() >= 5, "the code of figures is folded"
