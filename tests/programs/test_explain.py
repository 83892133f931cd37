"""`minivit explain`: which image it explains, what it draws, and what it refuses."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import minivit
from minivit import data, functional as F
from minivit.__main__ import main

Image = pytest.importorskip("PIL.Image")
ROOT = Path(minivit.__file__).resolve().parents[1]
MODEL = {"img_size": 28, "patch_size": 7, "in_chans": 1, "num_classes": 10, "embed_dim": 16, "depth": 2, "num_heads": 2}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with weights, four files of MNIST's form and two image files."""
    home = tmp_path_factory.mktemp("home")
    model = minivit.ViT(**MODEL)
    rng = np.random.default_rng(1)
    for param in model.parameters().values():
        param.data = param.data + 0.3 * rng.standard_normal(param.shape).astype(param.data.dtype)
    minivit.save(model, home / "model.safetensors")
    (home / "digits").mkdir()
    for stem in ("train", "t10k"):
        images = rng.integers(0, 256, (40, 28, 28), dtype=np.uint8)
        data.write_idx(home / "digits" / f"{stem}-images-idx3-ubyte", images)
        data.write_idx(home / "digits" / f"{stem}-labels-idx1-ubyte", (np.arange(40) % 10).astype(np.uint8))
    for name in ("one.png", "two.png"):
        Image.fromarray(rng.integers(0, 256, (30, 40), dtype=np.uint8)).save(home / name)
    return home


@pytest.fixture
def explain(home, tmp_path, monkeypatch, capsys):
    """(exit code, stdout, stderr) of the command in an empty folder; weights and digits are given."""
    monkeypatch.chdir(tmp_path)

    def start(*options, weights=home / "model.safetensors"):
        capsys.readouterr()
        code = main(["explain", *map(str, options), "--weights", str(weights)])
        return code, *capsys.readouterr()

    return start


def answer(home, image):
    """The percentage and class that the model gives an image (H, W) uint8 of its size."""
    model = minivit.from_pretrained(home / "model.safetensors")
    shares = 100 * F.softmax(model.predict(data.normalize(image[None, None])))[0][0]
    return f"{shares.max():7.2f}%  class {shares.argmax()}"


@pytest.mark.parametrize("nth", [1, 3])
@pytest.mark.parametrize("inverted", [False, True])
def test_a_digit_is_the_nth_test_image_that_shows_it(home, explain, tmp_path, nth, inverted):
    pytest.importorskip("matplotlib")
    options = ["--digit", 7, "--nth", nth, "--data", home / "digits", *(["--invert"] if inverted else [])]
    code, out, err = explain(*options)
    assert (code, err) == (0, "")
    image = data.load_mnist(home / "digits").test_images[7 + 10 * (nth - 1)]
    assert answer(home, 255 - image if inverted else image) in out.splitlines()
    file = tmp_path / "runs" / "explain" / f"digit_7-{nth}.png"
    assert f"drawn to {file.relative_to(tmp_path)}" in out and file.read_bytes().startswith(b"\x89PNG")


def test_figures_are_written_to_the_given_paths_and_none_replaces_another(home, explain, tmp_path):
    pytest.importorskip("matplotlib")
    assert explain(home / "one.png", "--out", "why.svg", "--class", 4, "--block", 0)[0] == 0
    words = re.findall(r">([^<>\n]+)</(?:text|tspan)>", (tmp_path / "why.svg").read_text(encoding="utf-8"))
    assert "class 4" in " ".join(words) and {"Attention rollout", "Grad-CAM", "Attention of each head"} <= set(words)
    assert explain(home / "one.png", home / "one.png")[0] == 0
    made = sorted(path.name for path in (tmp_path / "runs" / "explain").iterdir())
    assert made == ["one-1.png", "one-2.png"]


@pytest.mark.parametrize(
    ("code", "options", "words"),
    [
        (2, [], "choose what to explain: the files of images, or --digit N"),
        (2, ["one.png", "--digit", "3"], "choose what to explain"),
        (
            2,
            ["--digit", "3", "--nth", "5", "--data", "digits"],
            "--nth 5: files in .* has 4 test images of the digit 3",
        ),
        (1, ["--digit", "3", "--data", "nowhere"], "nowhere is not a folder"),
        (1, ["nowhere.png"], "nowhere.png: no such file"),
        (2, ["one.png", "--class", "10"], "--class 10 does not exist: the model has 10 classes, 0 to 9"),
        (2, ["one.png", "--block", "2"], "block=2: the model has 2 blocks"),
        (2, ["one.png", "--out", "why.pdf"], "must be a .png or .svg file"),
    ],
)
def test_a_mistake_is_one_line_with_a_remedy(home, explain, code, options, words):
    pytest.importorskip("matplotlib")
    here = [str(home / each) if (home / each).exists() or "nowhere" in each else each for each in options]
    found, _, err = explain(*here)
    assert found == code and err.count("\n") == 1 and err.startswith("error: ") and re.search(words, err), err


@pytest.mark.parametrize(
    ("missing", "command"),
    [
        ("PIL", ["classify", "{home}/one.png", "--weights", "{home}"]),
        ("PIL", ["explain", "{home}/one.png", "--weights", "{home}"]),
        ("PIL", ["explain", "--digit", "3", "--data", "{home}/digits", "--weights", "{home}"]),
        ("matplotlib", ["explain", "{home}/one.png", "--weights", "{home}"]),
        ("matplotlib", ["classify", "{home}/one.png", "--weights", "{home}", "--explain", "why.png"]),
        ("mlxtend", ["explain", "--digit", "3", "--weights", "{home}"]),
        ("mlxtend", ["train", "--epochs", "1"]),
    ],
)
def test_without_an_optional_package_one_line_says_how_to_install_it(home, tmp_path, missing, command):
    (tmp_path / "blocker" / missing).mkdir(parents=True)
    (tmp_path / "blocker" / missing / "__init__.py").write_text(f"raise ImportError('no {missing} here')")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "minivit", *(word.format(home=home) for word in command)],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(tmp_path / "blocker"), str(ROOT), *filter(None, sys.path)]),
            "MINIVIT_CACHE": str(tmp_path / "cache"),
            **dict.fromkeys(("http_proxy", "https_proxy", "HTTPS_PROXY"), "http://127.0.0.1:9"),
            "no_proxy": "",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    packages = {"PIL": ("Pillow", "matplotlib")}.get(missing, (missing,))  # matplotlib needs Pillow itself
    assert any(f"pip install {package}" in done.stderr for package in packages), done.stderr
