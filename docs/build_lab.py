"""Adds the lab to a built site: page, worker, library, weights, and Python for the browser, each file with its hash.

`build.py` calls it. Python is Pyodide 0.27.7 with NumPy 2.0.2. Its files come from their public addresses when the page
is read, or from a folder that is copied beside the page: `python docs/build.py --pyodide FOLDER`, with the files of the
npm package pyodide@0.27.7 and NumPy's wheel for it. A file with another hash is refused, here and by the browser.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
RUNTIME = "https://cdn.jsdelivr.net/npm/pyodide@0.27.7/"
PACKAGES = "https://cdn.jsdelivr.net/pyodide/v0.27.7/full/"
NUMPY = "numpy-2.0.2-cp312-cp312-pyodide_2024_0_wasm32.whl"
# SHA-256 of what Pyodide published
PINNED = {
    "pyodide.asm.js": "6b4c90de5b7172873f04f21884d0e9d2274e305fe32116558fe3e4fbe3618d51",
    "pyodide.asm.wasm": "a50dd1843f805a0b7c45b61037ee0d7b26dfe85efe0e18ef95a34ad24e401f5f",
    "pyodide.mjs": "04c052c815abb0bf2981fa38c2dfa58e3120ee5288c956df2b2a15e301782c5f",
    "python_stdlib.zip": "16611534726e5d8ac2bd8f926410b2dcb8d6f49aa24913463533b457a2115c16",
    "pyodide-lock.json": "9c45b916001a750f4102fc287494f3eab215909c7535c626a20db80fd6333e2c",
    NUMPY: "ebb61241d962b98b21597d7ce43b67668a6d5bab3acec4fbe958657320d7cd08",
}
MOST_WEIGHTS = 2_000_000  # bytes of weights and test images: a page should not take minutes to open
SHORT = ["--epochs", "6", "--limit", "4000"]


def build(html: Path, model: Path, pyodide: Path | None, short: bool = False) -> None:
    """Write html/lab and link to it from the page lab.html in both languages.

    Args:
        html: the built site.
        model: folder of the weights; trained there if it has none.
        pyodide: folder with the files of `PINNED`, None to link to their public addresses.
        short: train for seconds only.

    Raises:
        ValueError: for a file with another hash, or weights that are too large.
        subprocess.CalledProcessError: if the training fails.
    """
    if not (model / "model.safetensors").exists():
        train(model, short)
    out = html / "lab"
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(ROOT / "minivit" / "lab" / "page", out)
    shutil.copy(DOCS / "lab_in_browser" / "worker.js", out)
    page = (out / "index.html").read_text(encoding="utf-8")
    mark = '<meta name="lab" content="worker">'
    (out / "index.html").write_text(page.replace("<title>", f"{mark}\n<title>"), encoding="utf-8")
    write_library(out / "minivit.zip")
    write_weights(out / "model.npz", model)
    files = {name: entry(out / name, name) for name in ("minivit.zip", "model.npz")}
    for name, digest in PINNED.items():
        if pyodide is None:
            address = (PACKAGES if name == NUMPY else RUNTIME) + name
        else:
            (out / "pyodide").mkdir(exist_ok=True)
            check(pyodide / name, digest)
            shutil.copy(pyodide / name, out / "pyodide")
            address = f"pyodide/{name}"
        files[name] = {"url": address, "integrity": integrity(digest)}
    (out / "files.js").write_text(f"export const FILES = {json.dumps(files, indent=2)};\n", encoding="utf-8")
    for language, path in (("", "lab/"), ("zh", "../lab/")):
        link(html / language / "lab.html", f"{path}index.html")


def train(model: Path, short: bool) -> None:
    """The default ViT, by `minivit train`."""
    data = os.environ.get("MINIVIT_MNIST")
    command = [sys.executable, "-m", "minivit", "train", "--out", str(model), *(SHORT if short else [])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    print("== the lab's model", flush=True)
    subprocess.run([*command, *(["--data", data] if data else [])], check=True, env=environment)


def write_library(file: Path) -> None:
    """The package's Python files in a zip, with a fixed date, so that equal sources give an equal hash."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted((ROOT / "minivit").rglob("*.py")):
            name = zipfile.ZipInfo(path.relative_to(ROOT).as_posix(), (1980, 1, 1, 0, 0, 0))
            name.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(name, path.read_bytes())


def write_weights(file: Path, model: Path) -> None:
    """Weights and 1,000 test images."""
    sys.path.insert(0, str(ROOT))
    import minivit
    from minivit import data
    from minivit.data.batches import MNIST_MEAN, MNIST_STD
    from minivit.lab import browser
    from minivit.lab.lab import TEST_IMAGES, Digits

    mnist = data.load_mnist(os.environ.get("MINIVIT_MNIST"), quiet=True)
    digits = Digits(mnist.test_images[:TEST_IMAGES], mnist.test_labels[:TEST_IMAGES], mnist.kind)
    loaded = minivit.from_pretrained(model)
    browser.write(file, loaded, [str(digit) for digit in range(10)], MNIST_MEAN, MNIST_STD, digits)
    if file.stat().st_size > MOST_WEIGHTS:
        raise ValueError(f"{file} has {file.stat().st_size:,} bytes, more than {MOST_WEIGHTS:,}: train a smaller model")


def entry(file: Path, address: str) -> dict[str, str]:
    return {"url": address, "integrity": integrity(hashlib.sha256(file.read_bytes()).hexdigest())}


def integrity(digest: str) -> str:
    """A hexadecimal SHA-256 as browsers take it."""
    return f"sha256-{base64.b64encode(bytes.fromhex(digest)).decode()}"


def check(file: Path, digest: str) -> None:
    if not file.is_file():
        raise ValueError(f"{file} is missing: the folder needs {', '.join(PINNED)}")
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != digest:
        raise ValueError(f"{file} has SHA-256 {found}, expected {digest}: take the file of Pyodide 0.27.7")


def link(page: Path, address: str) -> None:
    """Make the page's `lab/index.html` a link."""
    if page.exists():
        html = page.read_text(encoding="utf-8")
        shown = re.compile(r'<code[^>]*><span class="pre">lab/index.html</span></code>')
        page.write_text(shown.sub(f'<a href="{address}">lab/index.html</a>', html), encoding="utf-8")
