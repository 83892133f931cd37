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
import published_families
import pytest

import minivit
from minivit import Swin, SwinV2, ViT, functional as F
from minivit.__main__ import main
from minivit.data import Preprocess
from minivit.io.safetensors import save_arrays
from minivit.pretrained import export, from_pretrained
from minivit.pretrained.preprocessing import preprocessing

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
        (float(share), label) for share, label in re.findall(r"^ *(\d+\.\d\d)%  (.+)$", printed, flags=re.MULTILINE)
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
    gelu = "tanh" if layout == "google" else "none"
    export(restless(kind(**(VIT if kind is ViT else SWIN), gelu=gelu)), path, layout)
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


@pytest.mark.parametrize(("paper", "options", "noted"), [(255, [], 1), (255, ["--invert"], 0), (0, [], 0)])
def test_dark_ink_for_a_model_of_light_digits_is_noted(paper, options, noted, tmp_path, classify):
    model = ViT(img_size=28, patch_size=7, in_chans=1, num_classes=10, embed_dim=16, depth=2, num_heads=2)
    minivit.save(model, tmp_path / "model.safetensors")
    pixels = np.full((28, 28), paper, np.uint8)
    pixels[6:22, 12:16] = 255 - paper
    Image.fromarray(pixels).save(tmp_path / "one.png")
    printed = classify(tmp_path / "one.png", "--weights", tmp_path, *options)
    assert printed.count("is --invert missing?") == noted
    assert "keep the middle" not in printed, "nothing is cut off"


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
    assert abs(float(title.split()[-1].rstrip("%")) - share) < 0.06 and "class 4" in " ".join(words)
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


CLIP = {**VIT, "embed_dim": 16, "num_heads": 2, "pre_norm": True, "norm_eps": 1e-5, "gelu": "quick"}


def clip_folder(tmp_path, **beside):
    """A file of openai/CLIP with such arrays beside the image tower, and class vectors of 4 classes, D = 6."""
    model = restless(ViT(**CLIP))
    model.parameters()["head.bias"].data[:] = 0
    save_arrays(tmp_path / "model.safetensors", {**published_families.clip(model.state_dict(), model), **beside}, None)
    vision = {"num_attention_heads": 2, "image_size": 32, "hidden_size": 16, "num_hidden_layers": 2}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": vision}))
    np.save(tmp_path / "vectors.npy", np.random.default_rng(4).standard_normal((4, 6)).astype(np.float16))
    return model


@pytest.mark.parametrize("source", ["the file's", "CLIP's, as the file has no logit_scale"])
def test_class_vectors_name_what_an_image_shows(source, picture, tmp_path, classify):
    model, weights = clip_folder(tmp_path, logit_scale=np.array(1.5, np.float32)), tmp_path
    prepare, scale = preprocessing(tmp_path, model), np.exp(1.5)
    if source != "the file's":
        weights, scale = tmp_path / "own", 100
        weights.mkdir()
        minivit.save(model, weights / "model.safetensors")
        prepare = preprocessing(weights, model)
    (tmp_path / "names.txt").write_text("cat\ndog\nowl\nant\n")
    options = ["--weights", weights, "--class-vectors", tmp_path / "vectors.npy", "--top", 4]
    printed = classify(picture, *options, "--labels", tmp_path / "names.txt")
    x, vectors = model.predict(prepare(picture)[None])[0], np.load(tmp_path / "vectors.npy").astype(np.float64)
    cosines = [(x * v).sum() / np.sqrt((x * x).sum() * (v * v).sum()) for v in vectors]
    powers = np.exp(scale * (np.array(cosines) - max(cosines)))
    expected = dict(zip(("cat", "dog", "owl", "ant"), 100 * powers / powers.sum()))
    assert all(abs(expected[label] - share) < 0.01 for share, label in answers(printed)) and len(answers(printed)) == 4
    assert f"classes: 4 vectors, similarities times {scale:.4g} ({source})" in printed
    assert {label for _, label in answers(classify(picture, *options))} == {f"class {k}" for k in range(4)}


@pytest.mark.parametrize(
    "vectors, code, word",
    [
        (np.ones((4, 5)), 2, "class vectors have 5 channels, and the model's output 6: take the text embeddings"),
        (np.ones(6), 1, "vectors.npy holds (6,) of float64: write an array (n, D) of floats"),
        (np.ones((0, 6)), 1, "vectors.npy holds (0, 6) of float64: write an array"),
        (np.ones((4, 6), int), 1, "vectors.npy holds (4, 6) of int64: write an array"),
        (np.diag([1.0, 1, 1, 0, 1, 1]), 1, "the vector of class 3 is 0 or not finite: embed that class again"),
        (np.diag([1.0, np.nan, 1, 1, 1, 1]), 1, "the vector of class 1 is 0 or not finite"),
        (np.array([[None] * 6]), 1, "vectors.npy: no class vectors could be read"),
        (None, 1, "vectors.npy: no class vectors could be read (No such file or directory): write an array"),
    ],
)
def test_class_vectors_that_fit_no_image_are_one_line_with_a_remedy(vectors, code, word, picture, tmp_path, refusal):
    clip_folder(tmp_path)
    (tmp_path / "vectors.npy").unlink()
    if vectors is not None:
        np.save(tmp_path / "vectors.npy", vectors)
    found, line = refusal(picture, "--weights", tmp_path, "--class-vectors", tmp_path / "vectors.npy")
    assert found == code and word in line


def test_a_cut_file_of_vectors_a_wild_scale_and_a_figure_of_vectors_are_refused(picture, tmp_path, refusal):
    clip_folder(tmp_path, logit_scale=np.array(1e4, np.float32))
    options = [picture, "--weights", tmp_path, "--class-vectors", tmp_path / "vectors.npy"]
    assert "logit_scale is not one number of moderate size" in refusal(*options)[1]
    assert "--explain draws the logits of a model's own head" in refusal(*options, "--explain", "out.png")[1]
    clip_folder(tmp_path)
    assert "names.txt holds 1 labels, and the model has 4" in refusal(*options, "--labels", names(tmp_path))[1]
    np.savez(tmp_path / "vectors.npz", np.ones((4, 6)))
    (tmp_path / "vectors.npy").write_bytes((tmp_path / "vectors.npz").read_bytes())
    assert "vectors.npy holds several arrays" in refusal(*options)[1]
    np.save(tmp_path / "vectors.npy", np.ones((4, 6)))
    (tmp_path / "vectors.npy").write_bytes((tmp_path / "vectors.npy").read_bytes()[:-8])
    assert "vectors.npy: no class vectors could be read" in refusal(*options)[1]


def names(folder):
    (folder / "names.txt").write_text("cat\n")
    return folder / "names.txt"


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
