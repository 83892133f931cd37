"""Try the installed command `minivit` as its user would: train, classify, explain, in an empty folder without network.

    python .ci/try_program.py

The package is that of the Python which runs this file, with the extra `examples`; the checkout is not used. Prints each
command, and ends with an exit code other than 0 at the first that does not do what it should.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import minivit
from minivit import data

NO_NETWORK = dict.fromkeys(("http_proxy", "https_proxy", "HTTPS_PROXY"), "http://127.0.0.1:9")


def write_digits(folder: Path) -> None:
    """Four files of MNIST's form: a digit is a brightness and the position of a square, which is soon learned."""
    folder.mkdir()
    for stem, count in (("train", 1200), ("t10k", 40)):
        rng = np.random.default_rng(count)
        labels = np.arange(count) % 10
        images = rng.integers(30, size=(count, 28, 28)) + 20 * labels[:, None, None]
        for image, label in zip(images, labels):
            row, column = 2 + 13 * (label // 5), 1 + 5 * (label % 5)
            image[row : row + 10, column : column + 6] = 255
        data.write_idx(folder / f"{stem}-images-idx3-ubyte.gz", images.astype(np.uint8))
        data.write_idx(folder / f"{stem}-labels-idx1-ubyte.gz", labels.astype(np.uint8))


def command() -> list[str]:
    """The console script of this installation: where scripts go, or in the folder bin of `pip install --target`."""
    beside = Path(minivit.__file__).parents[1] / "bin"
    found = shutil.which("minivit", path=os.pathsep.join([str(beside), sysconfig.get_path("scripts")]))
    if found is None:
        raise SystemExit("no command `minivit` is installed with this Python")
    return [found]


def called(home: Path, *words: str, start: list[str], note: str = "") -> str:
    """What a command printed; it must succeed, and say nothing on stderr but a note that is expected."""
    print("$ minivit", *words, flush=True)
    environment = {**os.environ, **NO_NETWORK, "no_proxy": "", "MINIVIT_CACHE": str(home / "cache")}
    done = subprocess.run([*start, *words], cwd=home, env=environment, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr, sep="", flush=True)
    check(done.returncode == 0, f"minivit {words[0]} succeeds, and not with exit code {done.returncode}")
    check(bool(done.stderr) == bool(note) and note in done.stderr, f"stderr has {note or 'nothing'}")
    return done.stdout


def check(held: bool, what: str) -> None:
    """End with what should hold and does not."""
    if not held:
        raise SystemExit(f"it should be that {what}")


def main() -> None:
    """Every command in turn."""
    print(f"minivit {minivit.__version__} from {Path(minivit.__file__).parent}, Python {sys.version.split()[0]}")
    with tempfile.TemporaryDirectory() as folder:
        home, minivit_script, module = Path(folder), command(), [sys.executable, "-m", "minivit"]
        write_digits(home / "digits")

        version = f"minivit {minivit.__version__}\n"
        check(called(home, "--version", start=minivit_script) == version, "both ways of starting say the version")
        check(called(home, "--version", start=module) == version, "both ways of starting say the version")
        names = called(home, "models", "deit_tiny", start=minivit_script)
        check("deit_tiny_patch16_224" in names, "the models are listed")

        train = ["train", "--data", "digits", "--limit", "200", "--epochs", "1", "--batch-size", "10", "--lr", "0.003"]
        printed = called(home, *train, start=minivit_script)
        check("test accuracy: " in printed.splitlines()[-1], "the test accuracy is the last line")
        made = {path.name for path in (home / "runs" / "mnist_vit").iterdir()}
        wanted = {"model.safetensors", "MODEL_CARD.md", "metrics.csv", "curves.png", "mistakes.png"}
        check(wanted <= made, f"the run leaves {', '.join(wanted - made)}")

        Image.fromarray(data.load_mnist(home / "digits").test_images[7]).save(home / "seven.png")
        weights = ["--weights", str(Path("runs", "mnist_vit"))]
        printed = called(home, "classify", "seven.png", *weights, "--top", "3", start=minivit_script)
        check(sum("%  class" in line for line in printed.splitlines()) == 3, "three classes are named")
        called(home, "explain", "seven.png", *weights, "--out", "why.svg", start=minivit_script)
        called(home, "explain", "--digit", "7", "--data", "digits", *weights, start=minivit_script)
        pictures = (home / "why.svg").read_bytes(), (home / "runs" / "explain" / "digit_7-1.png").read_bytes()
        check(b"Attention rollout" in pictures[0] and pictures[1].startswith(b"\x89PNG"), "the pictures are drawn")

        out = ["--limit", "100", "--epochs", "1", "--out", "tuned"]
        called(home, "finetune", "--data", "digits", *weights, *out, start=module)
        called(home, "summary", "tuned", start=module)
        called(home, "inspect", "tuned", start=module)
        convert = ["convert", "tuned", "timm.safetensors", "--layout", "timm"]
        called(home, *convert, start=module, note="the file does not say num_heads=4")
    print("all of it did what it should")


if __name__ == "__main__":
    main()
