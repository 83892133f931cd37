"""What is measured: one table of models and batch sizes. A new case is one more line in it.

`train` is one step of training: zero the gradients, forward, loss, backward, AdamW. `infer` is one forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

LABEL_SMOOTHING = 0.1
LEARNING_RATE = 1e-4  # small, so that hundreds of steps on one batch stay an ordinary stretch of training
WEIGHT_DECAY = 0.05
WARM_UP = 3  # steps before anything is timed; their losses are compared too


Arguments = dict[str, Any]


@dataclass(frozen=True)
class Architecture:
    """A kind of model: all that differs between kinds stands here, so that nothing else has to ask which one it is.

    Both sides look their class up by `name`, minivit's in `minivit.models` and PyTorch's in `torch_side.py`.

    Args:
        name: of minivit's class.
        variants: in which ways minivit computes it, each with what is added to the model's arguments for it. "every
            token" does the same arithmetic as PyTorch.
        tiny: takes the arguments of a model to those of one that is almost nothing.
        agreement: the largest difference within a gradient, relative to that gradient's largest element.
    """

    name: str
    variants: dict[str, Arguments]
    tiny: Callable[[Arguments], Arguments]
    agreement: float = 1e-3


def _tiny_vit(model: Arguments) -> Arguments:
    return {**model, "embed_dim": 4 * model["num_heads"], "depth": 1}


def _tiny_swin(model: Arguments) -> Arguments:
    # two blocks in each stage: the second one shifts its windows
    return {**model, "embed_dim": 4 * model["num_heads"][0], "depths": (2,) * len(model["depths"])}


# what a ViT's head does not read, minivit need not compute; Swin's head reads the mean of every token
VIT = Architecture("ViT", {"class token only": {}, "every token": {"skip_unused_tokens": False}}, _tiny_vit)
# of its many ReLUs and maxima some stand so near a kink that rounding decides, and the gradient jumps: in float32 each
# side is 3e-2 from its own gradient in float64, where both sides agree to 1e-9 (tests/parity/test_torch_hybrid.py), and
# PyTorch with its compiler is 0.12 from PyTorch without
HYBRID = replace(VIT, agreement=0.2)
SWIN = Architecture("Swin", {"every token": {}}, _tiny_swin)


@dataclass(frozen=True)
class Case:
    """One model with one batch size; `model` holds the arguments of its class, and `task` is "train" or "infer"."""

    name: str
    architecture: Architecture
    task: str
    batch: int
    model: Arguments


def _mnist(dim: int, depth: int, heads: int) -> Arguments:
    size = {"embed_dim": dim, "depth": depth, "num_heads": heads}
    return {"img_size": 28, "patch_size": 4, "in_chans": 1, "num_classes": 10, **size}


def _imagenet(dim: int, heads: int) -> Arguments:
    size = {"embed_dim": dim, "depth": 12, "num_heads": heads}
    return {"img_size": 224, "patch_size": 16, "in_chans": 3, "num_classes": 1000, **size}


SWIN_MNIST = {
    "img_size": 28, "patch_size": 2, "in_chans": 1, "num_classes": 10, "embed_dim": 24, "depths": (2, 2),
    "num_heads": (2, 4), "window_size": 7, "drop_path_rate": 0.0,
}  # fmt: skip
SWIN_T = {  # timm's swin_tiny_patch4_window7_224
    "img_size": 224, "patch_size": 4, "in_chans": 3, "num_classes": 1000, "embed_dim": 96, "depths": (2, 2, 6, 2),
    "num_heads": (3, 6, 12, 24), "window_size": 7, "drop_path_rate": 0.0,
}  # fmt: skip

HYBRID_S = {  # timm's vit_small_r26_s32_224
    **_imagenet(384, 6), "patch_size": 1, "resnet_layers": (2, 2, 2, 2),
}  # fmt: skip

INFERENCE = (
    ("vit-ti16", VIT, _imagenet(192, 3)), ("vit-s16", VIT, _imagenet(384, 6)), ("vit-b16", VIT, _imagenet(768, 12)),
    ("hybrid-s", HYBRID, HYBRID_S), ("swin-t", SWIN, SWIN_T),
)  # fmt: skip

CASES = {
    case.name: case
    for case in (
        Case("flagship", VIT, "train", 128, _mnist(64, 6, 4)),
        Case("small", VIT, "train", 100, _mnist(32, 3, 4)),
        Case("vit-ti16", VIT, "train", 8, _imagenet(192, 3)),
        Case("vit-s16", VIT, "train", 4, _imagenet(384, 6)),
        Case("swin-mnist", SWIN, "train", 128, SWIN_MNIST),
        Case("hybrid-s", HYBRID, "train", 4, HYBRID_S),
        Case("swin-t", SWIN, "train", 4, SWIN_T),
        *(
            Case(f"{name}-b{batch}", architecture, "infer", batch, model)
            for name, architecture, model in INFERENCE
            for batch in (1, 2, 8, 32)
        ),
    )
}


@dataclass(frozen=True)
class Start:
    """Where both sides start: the same weights and the same batch, handed over in one .npz file."""

    images: np.ndarray
    labels: np.ndarray
    no_decay: Collection[str] = ()
    weights: dict[str, np.ndarray] = field(default_factory=dict)  # empty: each side draws its own (only to warm up)
    path: Path | None = None  # of the file


def draw_batch(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Images (B, C, H, W) in float32 and labels (B,), always the same ones."""
    rng = np.random.default_rng(0)
    side, channels = case.model["img_size"], case.model["in_chans"]
    images = rng.standard_normal((case.batch, channels, side, side), dtype=np.float32)
    return images, rng.integers(0, case.model["num_classes"], case.batch)


def write_start(path: Path, weights: dict[str, np.ndarray], no_decay: Collection[str], case: Case) -> None:
    """Draw the case's batch and save it with the weights and the names of those that take no weight decay."""
    images, labels = draw_batch(case)
    named = {f"weight:{name}": array for name, array in weights.items()}
    np.savez(path, images=images, labels=labels, no_decay=np.array(sorted(no_decay)), **named)


def read_start(path: Path) -> Start:
    with np.load(path) as file:
        weights = {key.removeprefix("weight:"): file[key] for key in file.files if key.startswith("weight:")}
        return Start(file["images"], file["labels"], [str(name) for name in file["no_decay"]], weights, path)


def tiny(case: Case, start: Start) -> tuple[Case, Start]:
    """The case at its smallest sizes: it makes a library do its first-use work without holding memory."""
    return replace(case, model=case.architecture.tiny(case.model)), Start(start.images[:2], start.labels[:2])
