"""What the example trained on MNIST and minivit saved is loaded by a few lines of PyTorch, and gives the same answers.

The lines are `plain_torch_vit.py`; they know nothing of minivit.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parity_tools import torch
from plain_torch_vit import predict

import minivit
from minivit import data

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE, PAGE = ROOT / "examples" / "train_mnist_vit.py", ROOT / "docs" / "published_weights.md"
FOLDER = os.environ.get("MINIVIT_MNIST")
needs_mnist = pytest.mark.skipif(not FOLDER, reason="MINIVIT_MNIST names no folder with the full MNIST")
needs_checkout = pytest.mark.skipif(not EXAMPLE.is_file(), reason="examples and docs are not installed")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that a short run leaves: 300 steps on 19,200 images, some ten seconds on one core."""
    out = tmp_path_factory.mktemp("run") / "out"
    options = ["--data", FOLDER, "--epochs", "2", "--limit", "19200", "--threads", "1", "--out", str(out)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(EXAMPLE), *map(str, options)])
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    return out / "model.safetensors"


@needs_mnist
@needs_checkout
def test_plain_pytorch_reads_the_same_digits(trained: Path) -> None:
    mnist = data.load_mnist(FOLDER)
    assert mnist.test_images.shape == (10_000, 28, 28)
    logits = predict(trained, mnist.test_images).numpy()
    model = minivit.from_pretrained(trained)
    expected = model.predict(data.normalize(mnist.test_images[:, None]), batch_size=1000)
    assert logits.dtype == expected.dtype == np.float32
    assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()
    assert np.array_equal(logits.argmax(axis=1), expected.argmax(axis=1))
    accuracy = (logits.argmax(axis=1) == mnist.test_labels).mean()
    assert accuracy > 0.6, "it has not learned enough for its answers to be a test"


def test_a_model_that_was_never_trained_needs_no_mnist(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"img_size": 28, "in_chans": 1, "num_classes": 10, "patch_size": 7, "embed_dim": 64}
    model = minivit.ViT(**arguments, depth=4, num_heads=4, mlp_ratio=2.0, seed=3)
    rng = np.random.default_rng(0)
    for param in model.parameters().values():
        param.data = param.data + 0.2 * rng.standard_normal(param.shape)
    minivit.save(model, tmp_path / "model.safetensors")
    digits = rng.integers(0, 256, (64, 28, 28)).astype(np.uint8)
    expected = model.predict(data.normalize(digits[:, None]))
    got = predict(tmp_path / "model.safetensors", torch.from_numpy(digits)).numpy()
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()
    assert len(set(got.argmax(axis=1))) > 1


@needs_checkout
def test_the_documentation_shows_these_lines() -> None:
    code = Path(__file__).with_name("plain_torch_vit.py").read_text(encoding="utf-8").partition('"""\n\n')[2]
    assert code.startswith("import torch\n") and code in PAGE.read_text(encoding="utf-8")
