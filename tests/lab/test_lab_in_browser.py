"""The served lab in a real browser: drawn by mouse and by keyboard, every view, both languages, nothing from outside.

It needs Chromium (`apt-get install chromium`, or MINIVIT_CHROMIUM with its path) and `pip install playwright`; without
one of them it is skipped and says which is missing. `axe-playwright-python` adds the check of barriers.
"""

from __future__ import annotations

import base64
import os
import threading
from collections.abc import Iterator
from typing import Any

import browser_tools
import numpy as np
import pytest
from lab_tools import build

import minivit
from minivit import data, explain, functional as F, optim
from minivit.fast.blas_threads import limit_threads
from minivit.lab import Lab, read, switched
from minivit.lab.lab import Digits
from minivit.lab.server import Server
from minivit.train.presets import QUICK

WIDTHS = (390, 1280)
SEVEN = [(70, 60), (210, 60), (130, 230)]  # on the pad of 280 x 280
ONE = [(140, 40), (140, 240)]
OVERFLOW = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
MEAN, STD = 0.1307, 0.3081


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    yield from browser_tools.chromium()


@pytest.fixture(scope="module")
def trained(browser: Any) -> tuple[minivit.ViT, Digits]:
    """The default ViT after a few epochs of 5,000 digits: it reads clear digits."""
    mnist = data.load_mnist(os.environ.get("MINIVIT_MNIST"), quiet=True)
    model = minivit.ViT(**QUICK, seed=0)
    images, labels = mnist.train_images[:5000], mnist.train_labels[:5000]  # of the subset 4,000
    opt, steps = optim.AdamW(model.parameters(), no_decay=optim.no_decay(model), threads=1), 1000
    with limit_threads(1):  # the products are too small to share
        for step in range(steps):
            epoch, place = divmod(step, len(images) // 50)
            chosen = data.batch_indices(len(images), 50, 0, epoch, place)
            opt.lr = optim.warmup_cosine(step, steps, peak=2e-3, warmup=100)
            opt.zero_grad()
            logits, back = model(data.normalize(images[chosen]))
            _, back_loss = F.softmax_cross_entropy(logits, labels[chosen])
            back(back_loss())
            opt.step()
    answers = model.predict(data.normalize(mnist.test_images[:2000])).argmax(axis=1)
    right = answers == mnist.test_labels[:2000]
    assert right.mean() > 0.85
    # the first test image of each digit is one that the model reads
    order = np.argsort(~right, kind="stable")
    return model, Digits(mnist.test_images[:2000][order], mnist.test_labels[:2000][order], mnist.kind)


def served(lab: Lab) -> Iterator[Server]:
    with Server(lambda report: lab, site="http://127.0.0.1:9/") as server:
        thread = threading.Thread(target=server.serve, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def vit(trained: Any) -> Iterator[Server]:
    model, digits = trained
    yield from served(Lab(model, list("0123456789"), (MEAN,), (STD,), digits, "a test"))


@pytest.fixture
def swin() -> Iterator[Server]:
    yield from served(Lab(build("swin"), list("0123456789"), (MEAN,), (STD,), None, "a test"))


class Visit:
    """A page of the lab, what went wrong in it, and where it wanted to go."""

    def __init__(
        self, browser: Any, server: Server, width: int = 1280, theme: str = "light", locale: str = "en"
    ) -> None:
        self.server = server
        self.context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=theme, locale=locale, reduced_motion="reduce"
        )
        self.page, self.faults, self.hosts = self.context.new_page(), [], set()
        self.page.on("console", lambda message: self.faults.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("requestfailed", lambda request: self.faults.append(f"{request.url}: {request.failure}"))
        self.page.on(
            "request", lambda request: self.hosts.add(request.url.split("/")[2] if "//" in request.url else "")
        )
        self.page.goto(server.address)
        self.page.wait_for_selector("body[data-ready]")

    def settle(self) -> None:
        self.page.wait_for_selector("body:not([data-busy])")

    def draw(self, *points: tuple[int, int]) -> None:
        pad = self.page.locator("#pad")
        pad.scroll_into_view_if_needed()
        box = pad.bounding_box()
        (x, y), *others = [(box["x"] + x * box["width"] / 280, box["y"] + y * box["width"] / 280) for x, y in points]
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        for x, y in others:
            self.page.mouse.move(x, y, steps=8)
        self.page.mouse.up()
        self.settle()

    def evaluate(self, code: str) -> Any:
        """An expression in which `state` is the page's, arrays as lists."""
        scope = "const { state } = await import('./lab.js'); const flat = a => [...a.data];"
        return self.page.evaluate(f"async () => {{ {scope} return {code}; }}")

    def image(self) -> np.ndarray:
        """(1, 1, 28, 28), the model's input of what the page shows."""
        pixels = np.array(self.evaluate("flat(state.reading.pixels)"), dtype="float32").reshape(1, 1, 28, 28)
        return (pixels - np.float32(MEAN)) / np.float32(STD)

    def probabilities(self) -> list[float]:
        return [float(each.get_attribute("data-p")) for each in self.page.locator("#bars button").all()]

    def end(self) -> None:
        self.context.close()
        assert not self.faults, self.faults
        assert self.hosts <= {self.server.host, ""}, self.hosts  # "" is the page's own data: icon


def test_a_drawn_seven_is_read_and_the_numbers_are_the_librarys(browser, vit):
    visit = Visit(browser, vit)
    visit.draw(*SEVEN)
    assert visit.page.locator("body").get_attribute("data-answer") == "7"
    assert "reads 7" in visit.page.locator("#status").inner_text()
    model, x = vit.lab.model, visit.image()
    np.testing.assert_allclose(visit.probabilities(), model.predict_proba(x)[0], atol=1e-6)
    np.testing.assert_allclose(visit.evaluate("flat(state.reading.logits)"), model.predict(x)[0], atol=1e-6)
    for block, theirs in enumerate(explain.head_maps(model, x)):
        maps = visit.evaluate(f"flat(state.reading.maps[{block}])")
        np.testing.assert_allclose(maps, theirs[0].ravel(), atol=1e-6)
    rollout = visit.evaluate("flat(state.reading.rollout)")
    np.testing.assert_allclose(rollout, explain.attention_rollout(model, x)[0].ravel(), atol=1e-6)
    logits, back = model(x)
    _, back_loss = F.softmax_cross_entropy(logits, np.array([7]))
    dpixels = back(back_loss())[0] / np.float32(STD)
    np.testing.assert_allclose(visit.evaluate("flat(state.reading.dpixels)"), dpixels.ravel(), atol=1e-6)
    visit.page.click("#clear")
    visit.draw(*ONE)
    assert visit.page.locator("body").get_attribute("data-answer") == "1"
    visit.end()


def test_a_patch_and_a_head_are_chosen(browser, vit):
    visit = Visit(browser, vit)
    visit.draw(*SEVEN)
    visit.page.locator("#patches .cells button").nth(6).click()
    visit.page.wait_for_selector("#patches .cells button:nth-child(7)[aria-pressed='true']")
    visit.page.locator('#heads button[data-block="2"][data-head="1"]').click()
    assert visit.page.locator("#head").input_value() == "1" and visit.page.locator("#block").input_value() == "2"
    assert visit.page.locator("#whole").get_attribute("aria-pressed") == "false"
    weights = explain.attention_weights(vit.lab.model, visit.image())[2].weights[0, 1, 1 + 6, 1:]
    np.testing.assert_allclose(visit.evaluate("flat(state.reading.maps[2]).slice(16, 32)"), weights, atol=1e-6)
    row, column = divmod(int(weights.argmax()), 4)
    label = visit.page.locator("#heat canvas").get_attribute("aria-label")
    assert f"row {row + 1}, column {column + 1}" in label
    assert visit.page.locator("#lines svg line").count() == (weights / weights.max() > 0.02).sum()
    visit.page.click("#whole")
    visit.page.wait_for_selector("#whole[aria-pressed='true']")
    visit.end()


def test_the_backward_pass_is_played_and_a_step_makes_it_say_another_digit(browser, vit):
    visit = Visit(browser, vit)
    visit.draw(*SEVEN)
    visit.page.click("#back-one")
    assert visit.page.locator("#stage").inner_text().startswith("1 of ")
    assert visit.page.locator("#stages .waiting").count() == visit.page.locator("#stages button").count() - 1
    visit.page.click("#play")
    visit.page.wait_for_function("() => document.querySelectorAll('#stages .waiting').length === 0", timeout=20_000)
    visit.page.locator("#bars button").nth(2).click()
    visit.settle()
    found = read(vit.lab.model, visit.image(), 2)
    for button in visit.page.locator("#stages button").all():
        size = np.linalg.norm(found.parts[button.get_attribute("data-part")].dy.astype("float64"))
        assert float(button.get_attribute("data-dy")) == pytest.approx(size, rel=1e-6, abs=1e-6)
    before = visit.probabilities()[2]
    visit.page.locator("#nudge").fill("40")
    visit.settle()
    assert visit.probabilities()[2] > before
    assert "with this step" in visit.page.locator("#nudge-note").inner_text()
    visit.page.locator("#nudge").fill("0")
    visit.settle()
    assert visit.probabilities()[2] == pytest.approx(before, abs=1e-6)
    visit.end()


def test_one_training_step_lowers_the_loss_and_is_undone(browser, vit):
    visit = Visit(browser, vit)
    visit.draw(*SEVEN)
    before = visit.probabilities()
    visit.page.locator("#label").select_option("1")
    visit.page.click("#train")
    visit.page.wait_for_selector("#step-result table")
    visit.settle()
    result = visit.page.locator("#step-result")
    losses = [float(result.get_attribute(name)) for name in ("data-before", "data-after")]
    assert losses[1] < losses[0] and losses[0] == pytest.approx(-np.log(before[1]), rel=1e-6, abs=1e-6)
    assert visit.page.locator("#step-result .falls").is_visible()
    assert visit.probabilities()[1] == pytest.approx(np.exp(-losses[1]), rel=1e-6, abs=1e-6)
    visit.page.click("#undo")
    visit.page.wait_for_selector("#step-result:has-text('Undone')")
    visit.settle()
    assert visit.probabilities() == pytest.approx(before, abs=1e-6)
    assert visit.page.locator("#undo").is_disabled()
    visit.end()


def test_every_switch_changes_the_answer_and_measures_its_accuracy(browser, vit):
    visit = Visit(browser, vit)
    visit.draw(*SEVEN)
    whole, digits = visit.probabilities(), vit.lab.digits
    images = data.normalize(digits.images[:1000, None], MEAN, STD)
    boxes = visit.page.locator("#switch-list input").all()
    assert len(boxes) == 6
    for box in boxes:
        name = box.get_attribute("value")
        box.check()
        head = "1" if name == "heads" else "0"
        if name == "heads":
            visit.page.locator("#only-head").select_option("1")
        row = visit.page.locator(f"""#accuracies tr[data-key='[["{name}"],{head}]']""")
        row.wait_for()
        visit.settle()
        assert np.abs(np.subtract(visit.probabilities(), whole)).max() > 1e-4, name
        if name != "shuffle":
            network = switched(vit.lab.model, [name], head=int(head))
            share = (network.predict(images, 125).argmax(axis=1) == digits.labels[:1000]).mean()
            assert float(row.get_attribute("data-accuracy")) == pytest.approx(share, abs=1e-6), name
        box.uncheck()
        visit.settle()
        visit.page.wait_for_timeout(50)
    assert (
        float(visit.page.locator("#accuracies tr[data-key='[[],0]']").get_attribute("data-accuracy")) > 0.85
    )  # of 4,000 images, 0.91
    visit.end()


def test_any_tensor_opens_with_its_code_and_any_number_is_read(browser, vit):
    visit = Visit(browser, vit)
    visit.draw(*SEVEN)
    for name in ("blocks.1.attn.qkv", "blocks.0.norm1", "patch_embed.proj", "loss", ""):
        visit.page.locator(f'#parts button[data-part="{name}"]').click()
        visit.page.wait_for_selector(f'#tensor h3:has-text("{name or "the model"}:")')
    visit.page.locator('#parts button[data-part="head"]').click()
    visit.page.wait_for_selector("#tensor h3:has-text('head: Linear')")
    shown = visit.page.locator("#tensor").inner_text()
    assert "x @ weight.T" in shown and "dx = dy @ weight" in shown
    link = visit.page.locator("#tensor a.doc").get_attribute("href")
    assert link == "http://127.0.0.1:9/derivations/linear.html"
    value = visit.page.locator("#tensor canvas").first
    value.focus()
    for _ in range(3):
        visit.page.keyboard.press("ArrowRight")
    cell = visit.page.locator("#cell")
    found = read(vit.lab.model, visit.image())
    assert cell.get_attribute("data-column") == "3"
    assert float(cell.get_attribute("data-value")) == pytest.approx(found.logits[3], abs=1e-6)
    assert float(cell.get_attribute("data-gradient")) == pytest.approx(found.parts["head"].dy[0, 3], abs=1e-6)
    box = value.bounding_box()
    visit.page.mouse.click(box["x"] + 0.75 * box["width"], box["y"] + box["height"] / 2)
    assert cell.get_attribute("data-column") == "7"
    visit.page.locator("#tensor .params button").first.click()
    visit.page.wait_for_selector("#tensor h3:has-text('head.weight: Parameter')")
    visit.page.click("#open-attention")
    visit.page.wait_for_selector("#tensor h3:has-text('blocks.0.attn: Attention')")
    visit.end()


@pytest.mark.parametrize(
    ("locale", "title", "lesson"), [("en", "1 of 8: Pixels", "/"), ("zh-CN", "1 / 8：像素", "/zh/")]
)
def test_the_tour_leads_through_eight_steps(browser, vit, locale, title, lesson):
    visit = Visit(browser, vit, locale=locale)
    visit.page.click("#tour-start")
    visit.page.wait_for_selector("#draw.toured")
    assert visit.page.locator("#tour-title").inner_text() == title
    seen = []
    for number in range(8):
        visit.page.wait_for_selector(f"#tour-title:has-text('{number + 1} {'of' if locale == 'en' else '/'} 8')")
        visit.settle()
        seen.append(visit.page.locator("section.toured").get_attribute("id"))
        link = visit.page.locator("#tour-link").get_attribute("href")
        assert link.startswith(f"http://127.0.0.1:9{lesson}lessons/") and link.endswith(".html"), link
        assert len(visit.page.locator("#tour-text").inner_text()) > 40
        visit.page.keyboard.press("Tab")  # from the title, which has the focus, to the link
        visit.page.click("#tour-next")
        visit.page.wait_for_timeout(60)
    assert seen == ["draw", "see", "positions", "attention", "attention", "classes", "backward", "training"]
    assert visit.page.locator("#tour").is_hidden()
    assert visit.page.locator("body").get_attribute("data-answer") == "7"
    visit.end()


def test_everything_is_reached_by_the_keyboard(browser, vit):
    visit = Visit(browser, vit)
    page = visit.page
    page.focus("#pad")
    page.keyboard.press(" ")
    for _ in range(10):
        page.keyboard.press("ArrowDown")
    page.keyboard.press(" ")
    visit.settle()
    assert max(visit.evaluate("flat(state.reading.pixels)")) > 0.5
    page.keyboard.press("Delete")
    visit.settle()
    assert max(visit.evaluate("flat(state.reading.pixels)")) == 0
    page.focus("#digit")
    page.locator("#digit").select_option("3")
    page.wait_for_function("() => document.body.dataset.answer === '3'")
    page.locator("#patches .cells button[tabindex='0']").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.wait_for_selector("#patches .cells button[aria-pressed='true']")
    assert page.evaluate("() => document.activeElement.getAttribute('aria-pressed')") == "true"
    page.locator("#bars button").nth(4).focus()
    page.keyboard.press("Enter")
    visit.settle()
    assert page.evaluate("() => document.activeElement.dataset.class") == "4"
    reached = set()
    page.evaluate("() => document.activeElement.blur()")
    for _ in range(160):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("() => document.activeElement.id || document.activeElement.closest('[id]')?.id"))
    wanted = {
        "pad",
        "clear",
        "digit",
        "center",
        "file",
        "whole",
        "open-tokens",
        "block",
        "head",
        "play",
        "target",
        "nudge",
    }
    assert wanted | {"label", "train", "measure", "bars", "heads", "stages", "parts", "language", "theme"} <= reached
    visit.end()


def test_an_image_file_is_read(browser, vit):
    visit = Visit(browser, vit)
    visit.page.locator("#digit").select_option("5")
    visit.page.wait_for_function("() => document.body.dataset.answer === '5'")
    picture = base64.b64decode(
        visit.page.evaluate("() => document.querySelector('#pad').toDataURL('image/png')").split(",")[1]
    )
    visit.page.click("#clear")
    visit.settle()
    visit.page.locator("#file").set_input_files({"name": "five.png", "mimeType": "image/png", "buffer": picture})
    visit.page.wait_for_function("() => document.body.dataset.answer === '5'")
    visit.page.locator("#file").set_input_files({"name": "no.png", "mimeType": "image/png", "buffer": b"no image"})
    visit.page.wait_for_selector("#status.bad:has-text('this is no image')")
    visit.end()


def test_a_swin_shows_its_windows_shift_and_mask(browser, swin):
    visit = Visit(browser, swin)
    visit.draw(*SEVEN)
    assert visit.page.locator("#windows").is_visible() and visit.page.locator("#positions").is_hidden()
    assert visit.page.locator("#rollout-figure").is_hidden() and visit.page.locator("#measure").is_disabled()
    visit.page.locator("#patches .cells button").nth(0).click()
    visit.page.locator("#block").select_option("1")
    visit.page.wait_for_selector("#window-note:has-text('shifted by 2, 2')")
    note = visit.page.locator("#window-note").inner_text()
    # the corner's window after the roll holds four regions; its own is the first 2 x 2 pixels
    assert "attends to 4 of" in note and visit.page.locator("#window-map svg rect[stroke='#ef4444']").count() > 0
    visit.page.locator("#block").select_option("0")
    visit.page.wait_for_selector("#window-note:has-text('not shifted')")
    assert visit.page.locator("#window-map svg rect[stroke='#ef4444']").count() == 0
    visit.end()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_nothing_is_cut_off_and_axe_finds_no_barrier(browser, vit, width, theme):
    visit = Visit(browser, vit, width, theme)
    visit.draw(*SEVEN)
    visit.page.locator('#parts button[data-part="head"]').click()
    visit.page.wait_for_selector("#tensor h3")
    visit.page.click("#train")
    visit.page.wait_for_selector("#step-result table")
    visit.settle()
    assert visit.page.evaluate(OVERFLOW) <= 0
    visit.page.click("#language")
    visit.settle()
    assert visit.page.evaluate(OVERFLOW) <= 0
    assert visit.page.locator("html").get_attribute("lang") == "zh-CN"
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs pip install axe-playwright-python")
    result = axe.Axe().run(visit.page, options={"resultTypes": ["violations"]})
    faults = [
        f"{fault['id']}: {node['target']}" for fault in result.response["violations"] for node in fault["nodes"][:3]
    ]
    assert not faults, faults
    visit.end()


def test_a_wrong_address_says_what_to_do(browser, vit):
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"http://{vit.host}/#wrong")
    page.wait_for_selector("#status.bad:has-text('the token is wrong')")
    context.close()
