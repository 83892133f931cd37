"""`minivit probe`: the accuracy of classifiers on a model's features."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minivit
from minivit import data
from minivit.__main__ import main

Image = pytest.importorskip("PIL.Image")

VIT = {"img_size": 16, "patch_size": 8, "num_classes": 6, "embed_dim": 64, "depth": 1, "num_heads": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty images of each of two classes, which differ in brightness; a tenth is held out."""
    top, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name, low in (("dark", 0), ("light", 150)):
        (top / name).mkdir()
        for number in range(20):
            pixels = rng.integers(low, low + 100, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(top / name / f"{number}.png")
    return top


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    minivit.save(minivit.ViT(**VIT), path)
    return path


def printed(capsys: Any, *options: Any) -> str:
    assert main(["probe", *map(str, options)]) == 0, capsys.readouterr().err
    return str(capsys.readouterr().out)


def test_a_folder_of_images(folder: Path, weights: Path, capsys: Any) -> None:
    out = printed(capsys, "--weights", weights, "--data", folder, "--k", 5, "--epochs", 30)
    assert re.search(rf"^model: ViT, [\d,]+ parameters, from {re.escape(str(weights))}$", out, re.MULTILINE)
    assert "36 training images, 4 tested" in out and "features: 64 channels" in out
    assert re.search(r"^5 nearest neighbors: 100\.00%$", out, re.MULTILINE), out
    assert re.search(r"^linear probe: 100\.00%$", out, re.MULTILINE), out
    assert "starts at 0" not in out, "there is no head"


@pytest.mark.parametrize(("name", "other"), [("knn", "linear probe"), ("linear", "neighbors")])
def test_one_classifier(name: str, other: str, folder: Path, weights: Path, capsys: Any) -> None:
    options = ["--data", folder, "--classifier", name, "--k", 3, "--epochs", 2, "--limit", 10]
    out = printed(capsys, "--weights", weights, *options)
    assert "10 training images" in out and other not in out and out.count("%") == 1


def test_mnist_with_random_weights(tmp_path: Path, capsys: Any) -> None:
    """Digits whose class is the row of a bar; the 1,000 images held out of the training images are not used."""
    rng = np.random.default_rng(0)
    for stem, count in (("train", 1500), ("t10k", 50)):
        labels = np.arange(count, dtype=np.uint8) % 10
        images = rng.integers(60, size=(count, 28, 28), dtype=np.uint8)
        for image, label in zip(images, labels):
            image[2 * label + 4 : 2 * label + 6] = 255
        data.write_idx(tmp_path / f"{stem}-images-idx3-ubyte", images)
        data.write_idx(tmp_path / f"{stem}-labels-idx1-ubyte", labels)
    out = printed(capsys, "--data", tmp_path, "--epochs", 20)
    assert "from random weights" in out and "500 training images, 50 tested" in out
    for line in ("20 nearest neighbors", "linear probe"):
        (share,) = re.findall(rf"^{line}: (\d+\.\d\d)%$", out, re.MULTILINE)
        assert float(share) > 50, "chance is 10 %"


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ([], 2, "choose the images: --data"),
        (["--data", "{folder}"], 2, "choose a model: --weights FILE, or --model NAME"),
        (["--data", "{folder}", "--weights", "{weights}", "--k", "37"], 2, "--k 37: there are 36 training images"),
        (["--data", "{folder}", "--weights", "{weights}", "--limit", "9"], 2, "multiple of 2"),
        (["--data", "{folder}/dark", "--weights", "{weights}"], 1, "holds no folders"),
        (["--data", "nowhere", "--weights", "{weights}"], 1, "nowhere is not a folder"),
        (["--data", "{folder}", "--weights", "{weights}", "--temperature", "0"], 2, "not a number above 0"),
        (["--classifier", "svm"], 2, "svm"),
        (["--data", "{folder}", "--weights", "missing.safetensors"], 1, "missing.safetensors"),
    ],
)
def test_refusals(options: list[str], code: int, message: str, folder: Path, weights: Path, capsys: Any) -> None:
    given = [option.format(folder=folder, weights=weights) for option in options]
    assert main(["probe", *given]) == code
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1, err
