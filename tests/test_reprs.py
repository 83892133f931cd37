"""Every object that a program holds says what it is: none prints as an address, or as pages of numbers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import minivit
from minivit import data, explain, optim, parallel
from minivit.io.weights import read_weights
from minivit.pretrained.recognition import recognize
from minivit.train import CountingLoss, Run
from minivit.train.finetuning import Best
from minivit.train.tasks import Part, Task


def tiny() -> minivit.ViT:
    return minivit.ViT(img_size=8, patch_size=4, in_chans=1, num_classes=3, embed_dim=8, depth=2, num_heads=2)


def test_optimizers() -> None:
    model = tiny()
    params = model.parameters()
    assert repr(optim.AdamW(params)) == f"AdamW(lr=0.001, weight_decay=0.05, {len(params)} parameters in 1 group)"
    opt = optim.AdamW(params, lr=0.1, betas=(0.9, 0.95), no_decay=optim.no_decay(model), threads=2)
    opt.steps = 7
    text = "AdamW(lr=0.1, weight_decay=0.05, steps=7, betas=(0.9, 0.95), 32 parameters in 2 groups)"
    assert repr(opt) == text
    sgd = optim.SGD(params, 0.1, momentum=0.9, lr_scale=optim.layer_decay(model, 0.5))
    assert repr(sgd) == "SGD(lr=0.1, weight_decay=0, momentum=0.9, 32 parameters in 4 groups)"
    assert repr(optim.AdamW.__new__(optim.AdamW)) == "AdamW(...)"


def task() -> Task:
    images, labels = np.zeros((30, 8, 8), np.uint8), np.zeros(30, np.int64)
    part = Part(images, labels)
    return Task("digits", ("a", "b"), part, part, None, data.Preprocess(8, mean=(0.5,), std=(0.5,)), abs, abs, "f")


AUGMENT = data.chain(
    partial(data.affine, degrees=10),
    data.flip,
    partial(data.shift, max_shift=2),
    mix=partial(data.mixup, num_classes=3),
)

OBJECTS: dict[str, tuple[Callable[[], Any], str]] = {
    "average": (lambda: optim.ModelEma(tiny(), 0.99), "ModelEma(ViT, decay=0.99, steps=0)"),
    "threads": (lambda: parallel.DataParallel(tiny(), 2), "DataParallel(ViT, threads=2)"),
    "shards": (lambda: parallel.DataParallel(tiny(), 1, 4), "DataParallel(ViT, threads=1, shards=4)"),
    "augmentation": (
        lambda: AUGMENT,
        "chain(affine(degrees=10), flip, shift(max_shift=2), mix=mixup(num_classes=3))",
    ),
    "folder": (
        lambda: data.ImageFolder(Path("x"), ("a", "b"), np.array(["a/1.png"] * 1200), np.zeros(1200, np.int64)),
        "ImageFolder('x', 1,200 images of 2 classes)",
    ),
    "task": (task, "Task('digits', 30 training, 30 held-out images of 2 classes)"),
    "loss": (CountingLoss, "CountingLoss(0 correct)"),
    "best": (lambda: Best(tiny(), "best"), "Best(ViT, keep='best', epoch=0, score=-1)"),
    "attention": (
        lambda: explain.attention_weights(tiny(), np.zeros((1, 1, 8, 8), np.float32))[0],
        "BlockAttention('blocks.0', weights (1, 2, 5, 5), values (1, 2, 5, 4))",
    ),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_objects_say_what_they_are(name: str) -> None:
    make, text = OBJECTS[name]
    assert repr(make()) == text


def test_a_captured_step() -> None:
    step = parallel.CapturedStep.__new__(parallel.CapturedStep)  # building one takes a GPU
    step.model, step._graphs, step.dtype = tiny(), {"a batch": SimpleNamespace()}, np.dtype("float32")
    assert repr(step) == "CapturedStep(ViT, graphs=1)"
    step.dtype = np.dtype("float16")
    assert repr(step) == "CapturedStep(ViT, precision='float16', graphs=1)"


def test_a_run(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", {}, {"model": tiny()}, quiet=True)
    assert repr(run) == f"Run({str(tmp_path / 'run')!r}, epoch=0, position=0, iteration=0)"


def test_what_a_file_holds_prints_without_its_arrays(tmp_path: Path) -> None:
    minivit.save(tiny(), tmp_path / "vit.safetensors")
    weights = read_weights(tmp_path / "vit.safetensors")
    for thing in (weights, recognize(weights)):
        assert "array(" not in repr(thing) and " at 0x" not in repr(thing) and "vit.safetensors" in repr(thing)


def test_augmentation_runs_its_functions_in_order_and_mixes_last() -> None:
    calls: list[str] = []

    def named(name: str, result: Any) -> Any:
        return lambda *args: (calls.append(name), result(*args))[1]

    augment = data.chain(named("a", lambda x, rng: x + 1), named("b", lambda x, rng: 2 * x))
    images, labels = augment(np.ones(2), np.zeros(2), np.random.default_rng(0))
    assert calls == ["a", "b"] and images.tolist() == [4, 4] and labels.tolist() == [0, 0]
    mixed = data.chain(mix=named("mix", lambda x, y, rng: (x, y + 5)))
    assert mixed(np.ones(2), np.zeros(2), np.random.default_rng(0))[1].tolist() == [5, 5]
