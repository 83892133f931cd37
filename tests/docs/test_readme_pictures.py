"""The README's figures: what they show is what the model computes, and their program runs from a run's folder."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest

import minivit
from minivit import data, functional as F
from minivit.train.run import METRICS

pytest.importorskip("matplotlib")
from matplotlib.figure import Figure  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "docs"))
import write_readme_pictures as pictures  # noqa: E402

SIZES = {"img_size": 28, "patch_size": 7, "in_chans": 1, "num_classes": 10, "embed_dim": 8, "depth": 3, "num_heads": 2}


def test_the_arrays_are_those_of_the_model() -> None:
    model = minivit.ViT(**SIZES, seed=0)
    image = np.random.default_rng(0).standard_normal((1, 1, 28, 28), dtype=np.float32)
    figure = Figure()
    pictures.draw_pass(figure, model, image, 3)

    logits, back = model(image)
    _, back_loss = F.softmax_cross_entropy(logits, np.array([3]))
    dlogits = back_loss()
    forward, backward = figure.axes[:4], figure.axes[4:8]
    np.testing.assert_allclose([bar.get_height() for bar in forward[3].patches], logits[0], rtol=1e-5)
    np.testing.assert_allclose([bar.get_height() for bar in backward[3].patches], dlogits[0], rtol=1e-5)
    np.testing.assert_array_equal(forward[0].images[0].get_array(), image[0, 0])
    np.testing.assert_allclose(backward[0].images[0].get_array(), back(dlogits)[0, 0], rtol=1e-4, atol=1e-7)
    assert forward[1].images[0].get_array().shape == backward[1].images[0].get_array().shape == (17, 8)
    assert len(forward[2].child_axes) == len(backward[2].child_axes) == SIZES["depth"]


def test_the_digit_is_classified_correctly_with_doubt() -> None:
    labels = np.arange(40) % 10
    logits = np.full((40, 10), -1.0)
    logits[np.arange(40), labels] = np.linspace(3, 9, 40)  # the first are the most doubtful
    logits[5, 9] = 20  # and one of them is wrong
    assert pictures.doubtful_digit(logits, labels) == pictures.RANK


def test_the_program_writes_both_figures(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for stem, count in (("train", 20), ("t10k", 30)):
        data.write_idx(tmp_path / f"{stem}-images-idx3-ubyte.gz", rng.integers(256, size=(count, 28, 28)).astype("u1"))
        data.write_idx(tmp_path / f"{stem}-labels-idx1-ubyte.gz", (np.arange(count) % 10).astype("u1"))
    minivit.save(minivit.ViT(**SIZES, seed=0), tmp_path / "model.safetensors")
    with (tmp_path / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, METRICS)
        writer.writeheader()
        writer.writerows(dict.fromkeys(METRICS, 0.5) | {"epoch": epoch} for epoch in (1, 2))
    pictures.main(tmp_path, tmp_path, tmp_path)
    assert "<svg" in (tmp_path / "pass.svg").read_text()
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
