"""Adds the lab to a built site: page, worker, library, weights, and Python for the browser, each file with its hash.

`build.py` calls it. Python is Pyodide 0.27.7 with NumPy 2.0.2. Its files come from their public addresses when the page
is read, or from a folder that is copied beside the page: `python docs/build.py --pyodide FOLDER`, with the files of the
npm package pyodide@0.27.7 and NumPy's wheel for it. A file with another hash is refused, here and by the browser.

Half of the time until the lab is ready would go into compiling Python's sources to bytecode. Where the build finds
Python 3.12, whose bytecode Pyodide 0.27.7 runs, that is done here: for this library, and with FOLDER also for NumPy and
the standard library.
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
from functools import lru_cache
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
RUNTIME = "https://cdn.jsdelivr.net/npm/pyodide@0.27.7/"
PACKAGES = "https://cdn.jsdelivr.net/pyodide/v0.27.7/full/"
NUMPY = "numpy-2.0.2-cp312-cp312-pyodide_2024_0_wasm32.whl"
STDLIB = "python_stdlib.zip"
BYTECODE = (3, 12)  # the version of Python that Pyodide 0.27.7 is
# SHA-256 of what Pyodide published
PINNED = {
    "pyodide.asm.js": "6b4c90de5b7172873f04f21884d0e9d2274e305fe32116558fe3e4fbe3618d51",
    "pyodide.asm.wasm": "a50dd1843f805a0b7c45b61037ee0d7b26dfe85efe0e18ef95a34ad24e401f5f",
    "pyodide.mjs": "04c052c815abb0bf2981fa38c2dfa58e3120ee5288c956df2b2a15e301782c5f",
    STDLIB: "16611534726e5d8ac2bd8f926410b2dcb8d6f49aa24913463533b457a2115c16",
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
    if python_of_the_browser() is None:
        print(f"the lab will start slower: no Python {'.'.join(map(str, BYTECODE))} was found to compile for it")
    write_library(out / "minivit.zip")
    write_weights(out / "model.npz", model)
    files = {name: entry(out / name, name) for name in ("minivit.zip", "model.npz")}
    for name, digest in PINNED.items():
        if pyodide is None:
            address = (PACKAGES if name == NUMPY else RUNTIME) + name
            files[name] = {"url": address, "integrity": integrity(digest)}
        else:
            (out / "pyodide").mkdir(exist_ok=True)
            check(pyodide / name, digest)
            shutil.copyfile(pyodide / name, out / "pyodide" / name)
    if pyodide is not None:
        compile_hosted(out / "pyodide")
        files |= {file.name: entry(file, f"pyodide/{file.name}") for file in sorted((out / "pyodide").iterdir())}
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
    """The package's Python files, those of the lab with their bytecode."""
    sources = {path.relative_to(ROOT).as_posix(): path.read_bytes() for path in (ROOT / "minivit").rglob("*.py")}
    compiled = compile_sources({name: text for name, text in sources.items() if name in imported_files()})
    write_zip(file, sources | {cached(name): code for name, code in compiled.items()})


def compile_hosted(folder: Path) -> None:
    """Replace the sources in the standard library's archive by bytecode, and put NumPy's bytecode beside its wheel."""
    if python_of_the_browser() is None:
        return
    with zipfile.ZipFile(folder / STDLIB) as archive:
        files = {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}
    compiled = compile_sources({name: text for name, text in files.items() if name.endswith(".py")})
    others = {name: data for name, data in files.items() if name not in compiled}
    write_zip(folder / STDLIB, others | {f"{name}c": code for name, code in compiled.items()})
    with zipfile.ZipFile(folder / NUMPY) as wheel:
        sources = {name: wheel.read(name) for name in wheel.namelist() if name in imported_files()}
    write_zip(folder / "numpy_bytecode.zip", {cached(name): code for name, code in compile_sources(sources).items()})


def write_zip(file: Path, files: dict[str, bytes]) -> None:
    """With a fixed date and order, so that equal files give an equal hash."""
    with zipfile.ZipFile(file, "w") as archive:
        for name in sorted(files):
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, files[name])


# --- bytecode -------------------------------------------------------------------------------------------------------

# unchecked hash-based files (PEP 552): what is in the archive is not compared with the date of a source
COMPILE = """
import base64, importlib.util, json, marshal, sys
compiled = {}
for name, text in json.load(sys.stdin).items():
    source = base64.b64decode(text)
    code = marshal.dumps(compile(source, name, "exec", dont_inherit=True))
    head = importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little") + importlib.util.source_hash(source)
    compiled[name] = base64.b64encode(head + code).decode()
json.dump(compiled, sys.stdout)
"""


@lru_cache(maxsize=1)
def python_of_the_browser() -> str | None:
    """A Python on this machine with the browser's bytecode, None if there is none."""
    version = ".".join(map(str, BYTECODE))
    for python in filter(None, (sys.executable, shutil.which(f"python{version}"))):
        asked = [python, "-c", "import sys; print(*sys.version_info[:2], sep='.')"]
        if subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip() == version:
            return python
    return None


def compile_sources(sources: dict[str, bytes]) -> dict[str, bytes]:
    """Bytecode files of sources by their names; none where no Python can make them."""
    python = python_of_the_browser()
    if python is None:
        return {}
    texts = {name: base64.b64encode(sources[name]).decode() for name in sorted(sources)}
    done = subprocess.run(
        [python, "-I", "-c", COMPILE], input=json.dumps(texts), capture_output=True, text=True, check=True
    )
    return {name: base64.b64decode(code) for name, code in json.loads(done.stdout).items()}


@lru_cache(maxsize=1)
def imported_files() -> frozenset[str]:
    """The files of this library and of NumPy that the lab imports in the browser, as their archives name them."""
    program = "import minivit.lab.browser, sys; print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    paths = [name.replace(".", "/") for name in done.stdout.split()]
    return frozenset(f"{path}{end}" for path in paths for end in (".py", "/__init__.py"))


def cached(name: str) -> str:
    """Where Python looks for the bytecode of a source."""
    folder, _, file = name.rpartition("/")
    return f"{folder}/__pycache__/{file.removesuffix('.py')}.cpython-{''.join(map(str, BYTECODE))}.pyc"


# --- weights and links ------------------------------------------------------------------------------------------------


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
