"""What is measured: one table of models and batch sizes. A new case is one more line in it.

`train` is one step of training: zero the gradients, forward, loss, backward, AdamW. `infer` is one forward pass.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

LABEL_SMOOTHING = 0.1
LEARNING_RATE = 1e-4  # small, so that hundreds of steps on one batch stay an ordinary stretch of training
WEIGHT_DECAY = 0.05
WARM_UP = 3  # steps before anything is timed; their losses are compared too


@dataclass(frozen=True)
class Case:
    """One model with one batch size; `model` holds arguments of `minivit.ViT`, and `task` is "train" or "infer"."""

    name: str
    task: str
    batch: int
    model: dict[str, Any]


def _mnist(dim: int, depth: int, heads: int) -> dict[str, Any]:
    size = {"embed_dim": dim, "depth": depth, "num_heads": heads}
    return {"img_size": 28, "patch_size": 4, "in_chans": 1, "num_classes": 10, **size}


def _imagenet(dim: int, heads: int) -> dict[str, Any]:
    size = {"embed_dim": dim, "depth": 12, "num_heads": heads}
    return {"img_size": 224, "patch_size": 16, "in_chans": 3, "num_classes": 1000, **size}


CASES = {
    case.name: case
    for case in (
        Case("flagship", "train", 128, _mnist(64, 6, 4)),
        Case("small", "train", 100, _mnist(32, 3, 4)),
        Case("vit-ti16", "train", 8, _imagenet(192, 3)),
        Case("vit-s16", "train", 4, _imagenet(384, 6)),
        Case("vit-b16-b1", "infer", 1, _imagenet(768, 12)),
        Case("vit-b16-b8", "infer", 8, _imagenet(768, 12)),
    )
}


@dataclass(frozen=True)
class Start:
    """Where both sides start: the same weights and the same batch, handed over in one .npz file."""

    images: np.ndarray
    labels: np.ndarray
    no_decay: Collection[str] = ()
    weights: dict[str, np.ndarray] = field(default_factory=dict)  # empty: each side draws its own (only to warm up)


def write_start(path: Path, weights: dict[str, np.ndarray], no_decay: Collection[str], case: Case) -> None:
    """Draw the case's batch and save it with the weights and the names of those that take no weight decay."""
    rng = np.random.default_rng(0)
    side, channels = case.model["img_size"], case.model["in_chans"]
    images = rng.standard_normal((case.batch, channels, side, side), dtype=np.float32)
    labels = rng.integers(0, case.model["num_classes"], case.batch)
    named = {f"weight:{name}": array for name, array in weights.items()}
    np.savez(path, images=images, labels=labels, no_decay=np.array(sorted(no_decay)), **named)


def read_start(path: Path) -> Start:
    with np.load(path) as file:
        weights = {key.removeprefix("weight:"): file[key] for key in file.files if key.startswith("weight:")}
        return Start(file["images"], file["labels"], [str(name) for name in file["no_decay"]], weights)


def tiny(case: Case, start: Start) -> tuple[Case, Start]:
    """The case shrunk to almost nothing: it makes a library do its first-use work without holding memory."""
    model = {**case.model, "embed_dim": 4 * case.model["num_heads"], "depth": 1}
    return replace(case, model=model), Start(start.images[:2], start.labels[:2])
