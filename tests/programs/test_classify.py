"""`minivit classify` and the example that calls it, for small models of every source."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import minivit
from minivit import Swin, SwinV2, ViT, functional as F
from minivit.__main__ import main
from minivit.data import Preprocess
from minivit.pretrained import export, from_pretrained

Image = pytest.importorskip("PIL.Image")
ROOT = Path(minivit.__file__).parents[1]
EXAMPLE = ROOT / "examples" / "classify_image.py"
pytestmark = pytest.mark.skipif(not EXAMPLE.is_file(), reason="the examples are not installed with the package")

VIT = {"img_size": 32, "patch_size": 8, "num_classes": 6, "embed_dim": 64, "depth": 2, "num_heads": 1}
SWIN = {"img_size": 32, "num_classes": 6, "embed_dim": 8, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4}


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def classify(monkeypatch, capsys):
    """What the example prints, run within this process."""

    def start(*options):
        monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *map(str, options)])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(EXAMPLE), run_name="__main__")
        out, err = capsys.readouterr()
        assert (stopped.value.code, err) == (0, "")
        return out

    return start


@pytest.fixture
def refusal(capsys):
    """(exit code, the line on stderr) of a wrong call of `minivit classify`."""

    def start(*options):
        code, err = main(["classify", *map(str, options)]), capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1, err
        return code, err

    return start


def restless(model):
    """Weights for which images differ."""
    rng = np.random.default_rng(1)
    for param in model.parameters().values():
        param.data = param.data + 0.3 * rng.standard_normal(param.shape).astype(param.data.dtype)
    return model


def answers(printed):
    """[(probability in %, label)] of the only image."""
    return [
        (float(share), label) for share, label in re.findall(r"^ *(\d+\.\d\d) %  (.+)$", printed, flags=re.MULTILINE)
    ]


@pytest.mark.parametrize(
    "layout, kind, prepare",
    [
        ("timm", ViT, Preprocess(32, 0.9, mean=(0.5,) * 3, std=(0.5,) * 3)),
        ("huggingface", ViT, Preprocess(32, 1, "bilinear", (0.5,) * 3, (0.5,) * 3, squash=True)),
        ("torchvision", ViT, Preprocess(32, 0.875, "bilinear")),
        ("google", ViT, Preprocess(32, 1, "bilinear", (0.5,) * 3, (0.5,) * 3, squash=True)),
        ("timm", Swin, Preprocess(32, 0.9)),
        ("torchvision", Swin, Preprocess(32, 224 / 232)),
        ("torchvision", SwinV2, Preprocess(32, 256 / 260)),
    ],
)
def test_it_prints_the_prediction_for_the_image_as_its_source_preprocesses_it(
    layout, kind, prepare, picture, tmp_path, classify
):
    path = tmp_path / ("model.npz" if layout == "google" else "model.safetensors")
    export(restless(kind(**(VIT if kind is ViT else SWIN))), path, layout)
    model = from_pretrained(path)
    expected = 100 * F.softmax(model.predict(prepare(picture)[None]))[0][0]
    printed = classify(picture, "--weights", path)
    order = np.argsort(-expected, kind="stable")[:5]
    assert [label for _, label in answers(printed)] == [f"class {k}" for k in order]
    assert np.abs(np.array([share for share, _ in answers(printed)]) - expected[order]).max() < 0.01
    assert f"model: {kind.__name__} of {layout}, 6 classes" in printed and f"images: {prepare}" in printed


def test_a_model_of_digits(tmp_path, classify):
    model = restless(ViT(img_size=28, patch_size=7, in_chans=1, num_classes=10, embed_dim=16, depth=2, num_heads=2))
    minivit.save(model, tmp_path / "model.safetensors")
    pixels = np.random.default_rng(2).integers(0, 256, (28, 28), dtype=np.uint8)
    for name, array, options in (("light", pixels, []), ("dark", 255 - pixels, ["--invert"])):
        Image.fromarray(array).save(tmp_path / f"{name}.png")
        printed = classify(tmp_path / f"{name}.png", "--weights", tmp_path, "--top", 1, *options)
        logits = model.predict(minivit.data.normalize(pixels[None]))[0]
        ((share, label),) = answers(printed)
        assert label == f"class {logits.argmax()}"
        assert abs(share - 100 * F.softmax(logits)[0].max()) < 0.01


def test_labels_come_from_the_option_or_from_beside_the_weights(picture, tmp_path, classify):
    export(restless(ViT(**VIT)), tmp_path / "model.safetensors", "huggingface")
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {str(k): f"animal {k}" for k in range(6)}}))
    (tmp_path / "names.txt").write_text("".join(f"plant {k}\n" for k in range(6)))
    beside = answers(classify(picture, "--weights", tmp_path))
    given = answers(classify(picture, "--weights", tmp_path, "--labels", tmp_path / "names.txt"))
    assert {label[:-1] for _, label in beside} == {"animal "} and {label[:-1] for _, label in given} == {"plant "}
    assert [label[-1] for _, label in beside] == [label[-1] for _, label in given]


@pytest.mark.parametrize("kind", [ViT, Swin])
def test_it_draws(kind, picture, tmp_path, classify):
    pytest.importorskip("matplotlib")
    path = tmp_path / "model.safetensors"
    minivit.save(restless(kind(**(VIT if kind is ViT else SWIN))), path)
    printed = classify(picture, "--weights", path, "--explain", tmp_path / "out.svg", "--class", 4)
    assert f"drawn to {tmp_path / 'out.svg'}" in printed
    words = re.findall(r">([^<>\n]+)</(?:text|tspan)>", (tmp_path / "out.svg").read_text(encoding="utf-8"))
    (share, label), *_ = answers(printed)
    (title,) = (word for word in words if word.startswith(f"{label}: "))
    assert abs(float(title.split()[-2]) - share) < 0.06 and "class 4" in " ".join(words)
    assert ("Attention rollout" in words) == (kind is ViT)
    assert [word for word in words if word.startswith("block")][-1] == f"block {2 if kind is ViT else 4}"
    classify(picture, picture, "--weights", path, "--explain", tmp_path / "two.png")
    for number in (1, 2):
        assert (tmp_path / f"two-{number}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "code, options, word",
    [
        (1, ["--weights", "none.safetensors"], "none.safetensors: no such file or folder"),
        (2, ["--class", "6", "--explain", "out.png"], "--class 6 does not exist: the model has 6 classes, 0 to 5"),
        (2, ["--class", "-1", "--explain", "out.png"], "--class -1 does not exist: the model has 6 classes, 0 to 5"),
        (2, ["--class", "3"], "--class 3 is for the figure of the explanation: add --explain"),
        (2, ["--block", "0"], "--block 0 is for the figure of the explanation: add --explain"),
        (2, ["--explain", "out.pdf"], "the figure must be a .png or .svg file"),
        (1, ["--labels", "none.txt"], "none.txt: no labels could be read"),
        (2, ["--block", "2", "--explain", "out.png"], "block=2: the model has 2 blocks"),
        (2, ["--profile", "unknown"], "profile='unknown': choose one of"),
        (2, ["--top", "0"], "argument --top: 0 is too small"),
    ],
)
def test_a_mistake_is_one_line_with_a_remedy(code, options, word, picture, tmp_path, refusal, capsys):
    export(ViT(**VIT), tmp_path / "model.safetensors")
    options = [tmp_path / each if "." in each and not each.startswith("-") else each for each in options]
    found, line = refusal(picture, *(["--weights", tmp_path / "model.safetensors"] + options))
    assert found == code and word in line
    if "--top" not in options:
        main(["classify", *map(str, [picture, "--weights", tmp_path / "model.safetensors", "--debug", *options])])
        assert "Traceback" in capsys.readouterr().err


def test_a_file_that_is_no_image_or_no_classifier_is_reported(picture, tmp_path, refusal):
    minivit.save(ViT(**VIT | {"num_classes": 0}), tmp_path / "features.safetensors")
    assert (
        "features.safetensors has no classifier" in refusal(picture, "--weights", tmp_path / "features.safetensors")[1]
    )
    minivit.save(ViT(**VIT), tmp_path / "model.safetensors")
    code, line = refusal(tmp_path / "model.safetensors", "--weights", tmp_path / "model.safetensors")
    assert code == 1 and "model.safetensors is not an image that Pillow can read" in line


@pytest.mark.parametrize("missing", ["PIL", "matplotlib"])
def test_without_an_optional_package_the_remedy_is_named(missing, picture, tmp_path):
    minivit.save(ViT(**VIT), tmp_path / "model.safetensors")
    (tmp_path / "blocker" / missing).mkdir(parents=True)
    (tmp_path / "blocker" / missing / "__init__.py").write_text("raise ImportError('not here')")
    path = [str(tmp_path / "blocker"), str(ROOT), *filter(None, sys.path)]
    options = [picture, "--weights", tmp_path / "model.safetensors", "--explain", tmp_path / "out.png"]
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLE), *map(str, options)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert f"pip install {'Pillow' if missing == 'PIL' else missing}" in done.stderr
