"""The lab inside of the browser: its file of weights, its files' hashes, and the page itself, offline, in Chromium.

The last needs Pyodide: MINIVIT_PYODIDE is a folder with the files of the npm package pyodide@0.27.7 and the wheel of
NumPy for it. Without it, without Chromium or without `pip install playwright` it is skipped.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import re
import shutil
import subprocess
import time
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import browser_tools
import numpy as np
import pytest
from lab_tools import build

import minivit
from minivit import explain, functional as F
from minivit.lab import browser
from minivit.lab.lab import Digits

DOCS = Path(__file__).resolve().parents[2] / "docs"
PYODIDE = os.environ.get("MINIVIT_PYODIDE")
MEAN, STD = np.float32(0.1307), np.float32(0.3081)


@pytest.fixture(scope="module")
def build_lab() -> Any:
    if not (DOCS / "build_lab.py").exists():
        pytest.skip("an installed package has no docs")
    spec = importlib.util.spec_from_file_location("build_lab", DOCS / "build_lab.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def digits() -> Digits:
    rng = np.random.default_rng(0)
    return Digits(rng.integers(0, 256, (40, 28, 28), dtype=np.uint8), np.arange(40) % 10, "random images")


@pytest.mark.parametrize("kind", ["vit", "hybrid", "swin", "swin_v2"])
def test_the_file_gives_the_same_lab(tmp_path, kind):
    model = build(kind)
    browser.write(tmp_path / "model.npz", model, list("0123456789"), 0.1307, 0.3081, digits())
    lab = browser.read_file(tmp_path / "model.npz")
    x = np.random.default_rng(1).standard_normal((1, 1, 28, 28)).astype("float32")
    np.testing.assert_allclose(lab.model.predict(x), model.predict(x), atol=1e-5)
    np.testing.assert_array_equal(lab.digits.images, digits().images)


def test_answers_are_json_and_errors_are_words(tmp_path, monkeypatch):
    assert json.loads(browser.answer("about", "{}"))["error"] == "the lab has not started"
    browser.write(tmp_path / "model.npz", build("vit"), list("0123456789"), 0.1307, 0.3081, digits())
    monkeypatch.setattr(browser, "_lab", None)
    browser.start(tmp_path / "model.npz")
    assert json.loads(browser.answer("about", "{}"))["kind"] == "ViT"
    assert "NoneType" in json.loads(browser.answer("read", "{}"))["error"]
    assert "no 'eval'" in json.loads(browser.answer("eval", "{}"))["error"]
    assert "Expecting" in json.loads(browser.answer("read", "{"))["error"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    minivit.save(build("vit"), folder / "model.safetensors")
    return folder


def test_a_file_with_another_hash_is_not_built_in(build_lab, weights, tmp_path):
    folder = tmp_path / "pyodide"
    folder.mkdir()
    with pytest.raises(ValueError, match=r"pyodide.asm.js is missing: the folder needs pyodide.asm.js, "):
        build_lab.build(tmp_path / "html", weights, folder)
    for name in build_lab.PINNED:
        (folder / name).write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"SHA-256 .* expected 6b4c90de.*: take the file of Pyodide 0.27.7"):
        build_lab.build(tmp_path / "html", weights, folder)


def test_without_a_folder_the_public_files_are_named_with_their_hashes(build_lab, weights, tmp_path):
    html = tmp_path / "html"
    (html / "zh").mkdir(parents=True)
    shown = '<p><code class="docutils"><span class="pre">lab/index.html</span></code></p>'
    for page in (html / "lab.html", html / "zh" / "lab.html"):
        page.write_text(shown)
    build_lab.build(html, weights, None)
    files = json.loads((html / "lab" / "files.js").read_text().removeprefix("export const FILES = ").rstrip(";\n"))
    assert files.keys() == {*build_lab.PINNED, "minivit.zip", "model.npz"}
    assert all(file["integrity"].startswith("sha256-") and len(file["integrity"]) == 51 for file in files.values())
    assert files["pyodide.mjs"]["url"] == "https://cdn.jsdelivr.net/npm/pyodide@0.27.7/pyodide.mjs"
    assert '<a href="lab/index.html">' in (html / "lab.html").read_text()
    assert '<a href="../lab/index.html">' in (html / "zh" / "lab.html").read_text()
    assert (html / "lab" / "model.npz").stat().st_size <= 2_000_000
    assert build_lab.NUMPY in files and "numpy_bytecode.zip" not in files
    first = (html / "lab" / "minivit.zip").read_bytes()
    build_lab.write_library(tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == first


def test_the_library_has_the_bytecode_of_what_the_lab_imports(build_lab, tmp_path, monkeypatch):
    build_lab.write_library(tmp_path / "library.zip")
    names = zipfile.ZipFile(tmp_path / "library.zip").namelist()
    assert "minivit/lab/browser.py" in names and "minivit/pretrained/hub.py" in names
    compiled = {name for name in names if name.endswith(".pyc")}
    if build_lab.python_of_the_browser() is None:
        assert not compiled
    else:
        assert "minivit/lab/__pycache__/browser.cpython-312.pyc" in compiled
        assert "minivit/pretrained/__pycache__/hub.cpython-312.pyc" not in compiled  # the lab does not import it
    monkeypatch.setattr(build_lab, "python_of_the_browser", lambda: None)
    build_lab.write_library(tmp_path / "sources.zip")
    assert not [name for name in zipfile.ZipFile(tmp_path / "sources.zip").namelist() if name.endswith(".pyc")]


def test_bytecode_is_what_python_would_have_written(build_lab):
    """Python takes the file for its own: the number of its version, and no date or source to compare with."""
    if build_lab.python_of_the_browser() is None:
        pytest.skip("needs Python 3.12 on this machine, as the build does for a fast start")
    code = build_lab.compile_sources({"a.py": b"x = 6 * 7\n"})["a.py"]
    run = (
        "import marshal, sys; data = sys.stdin.buffer.read(); exec(marshal.loads(data[16:])); print(data[:8].hex(), x)"
    )
    done = subprocess.run(
        [build_lab.python_of_the_browser(), "-c", run], input=code, capture_output=True, check=True
    ).stdout.split()
    assert done == [b"cb0d0d0a01000000", b"42"]  # 3531 and CR LF, then the flag of an unchecked hash


def test_the_hosted_files_hold_bytecode_for_python_and_numpy(build_lab, tmp_path):
    with zipfile.ZipFile(tmp_path / build_lab.STDLIB, "w") as archive:
        archive.writestr("json/__init__.py", "x = 1")
        archive.writestr("data.txt", "text")
    with zipfile.ZipFile(tmp_path / build_lab.NUMPY, "w") as archive:
        archive.writestr("numpy/version.py", "version = '2.0.2'")
        archive.writestr("numpy/tests/test_public_api.py", "")
    build_lab.compile_hosted(tmp_path)
    names = zipfile.ZipFile(tmp_path / build_lab.STDLIB).namelist()
    if build_lab.python_of_the_browser() is None:
        assert names == ["json/__init__.py", "data.txt"] and not (tmp_path / "numpy_bytecode.zip").exists()
    else:
        assert names == ["data.txt", "json/__init__.pyc"]
        of_numpy = zipfile.ZipFile(tmp_path / "numpy_bytecode.zip").namelist()
        assert of_numpy == ["numpy/__pycache__/version.cpython-312.pyc"]


# --- in Chromium ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def html(build_lab: Any, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not PYODIDE:
        pytest.skip("needs MINIVIT_PYODIDE, a folder with Pyodide's files and NumPy's wheel")
    folder = tmp_path_factory.mktemp("html")
    build_lab.build(folder, weights, Path(PYODIDE))
    return folder


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    yield from browser_tools.chromium()


@pytest.fixture
def visit(chromium: Any, html: Path) -> Iterator[Any]:
    """visit(folder) -> page and faults."""
    served, contexts, hosts, allowed = ExitStack(), [], set(), set()

    def go(folder: Path = html) -> tuple[Any, list[str]]:
        address = served.enter_context(browser_tools.hosted(folder))
        allowed.add(address.removeprefix("http://"))
        context = chromium.new_context(viewport={"width": 1280, "height": 900}, locale="en")
        contexts.append(context)
        page, faults = context.new_page(), []
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: hosts.update(re.findall(r"^https?://([^/]+)", request.url)))
        page.goto(f"{address}/lab/index.html")
        return page, faults

    with served:
        yield go
        for context in contexts:
            context.close()
    assert hosts <= allowed, hosts


def draw(page: Any) -> None:
    box = page.locator("#pad").bounding_box()
    page.mouse.move(box["x"] + 70, box["y"] + 60)
    page.mouse.down()
    for x, y in ((210, 60), (130, 230)):
        page.mouse.move(box["x"] + x, box["y"] + y, steps=5)
    page.mouse.up()
    page.wait_for_selector("body:not([data-busy])")


def state(page: Any, code: str) -> Any:
    scope = "const { state } = await import('./lab.js'); const flat = a => [...a.data];"
    return page.evaluate(f"async () => {{ {scope} return {code}; }}")


def test_the_page_reads_a_drawing_with_the_numbers_of_cpython(visit, weights):
    began = time.perf_counter()
    page, faults = visit()
    page.wait_for_selector("body[data-ready]", timeout=120_000)
    print(f"ready after {time.perf_counter() - began:.1f} s")
    draw(page)
    model = browser.Lab(build("vit"), list("0123456789"), (float(MEAN),), (float(STD),)).model
    pixels = np.array(state(page, "flat(state.reading.pixels)"), dtype="float32").reshape(1, 1, 28, 28)
    x = (pixels - MEAN) / STD
    assert pixels.max() > 0.5
    logits, back = model(x)
    np.testing.assert_allclose(state(page, "flat(state.reading.logits)"), logits[0], atol=1e-5)
    np.testing.assert_allclose(state(page, "flat(state.reading.probabilities)"), model.predict_proba(x)[0], atol=1e-5)
    _, back_loss = F.softmax_cross_entropy(logits, np.array([state(page, "state.reading.target")]))
    dpixels = back(back_loss())[0] / STD
    np.testing.assert_allclose(state(page, "flat(state.reading.dpixels)"), dpixels.ravel(), atol=1e-5)
    for block, maps in enumerate(explain.head_maps(model, x)):
        np.testing.assert_allclose(state(page, f"flat(state.reading.maps[{block}])"), maps[0].ravel(), atol=1e-5)
    page.click("#train")
    page.wait_for_selector("#step-result table")
    page.click("#undo")
    page.wait_for_selector("#step-result:has-text('Undone')")
    page.locator("#switch-list input").nth(1).check()
    page.wait_for_selector("#accuracies tr >> nth=1", timeout=60_000)
    page.locator('#parts button[data-part="head"]').click()
    page.wait_for_selector("#tensor h3:has-text('head: Linear')")
    assert "dx = dy @ weight" in page.locator("#tensor").inner_text()
    assert page.locator("#tensor a.doc").get_attribute("href") == "../derivations/linear.html"
    assert not faults, faults


@pytest.mark.parametrize("name", ["minivit.zip", "model.npz", "pyodide.asm.wasm", "pyodide.mjs"])
def test_a_changed_file_is_refused(visit, html, tmp_path, name):
    shutil.copytree(html, tmp_path / "html")
    file = next((tmp_path / "html").rglob(name))
    changed = bytearray(file.read_bytes())
    changed[-1] ^= 1
    file.write_bytes(bytes(changed))
    page, _ = visit(tmp_path / "html")
    page.wait_for_selector("#status.bad:has-text('is not the file that it should be')", timeout=60_000)
    assert page.locator("#main").is_hidden()


def test_the_pixels_travel_exactly():
    pixels = np.random.default_rng(0).random((1, 28, 28), dtype=np.float32)
    text = base64.b64encode(pixels.astype("<f4").tobytes()).decode()
    from minivit.lab.wire import unpacked_pixels

    np.testing.assert_array_equal(unpacked_pixels(text, (1, 28, 28)), pixels)
