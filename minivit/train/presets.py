"""The models and hyperparameters that MNIST is trained with, by name: for the examples and for `minivit train`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from minivit import data
from minivit.models import Swin, ViT
from minivit.protocol import Array
from minivit.tables import aligned

_DIGITS: dict[str, Any] = {"img_size": 28, "in_chans": 1, "num_classes": 10, "mlp_ratio": 2.0}
_VIT = _DIGITS | {"num_heads": 4, "embed_dim": 64}
QUICK = _VIT | {"patch_size": 7, "depth": 4}  # 16 patches of 7x7 pixels: every step is cheap
FINE = _VIT | {"patch_size": 4, "depth": 6, "drop_path_rate": 0.05}  # 49 patches of 4x4 pixels: more detail
# three strides of 2 reduce 28x28 pixels to a feature map of 4x4, whose positions are the tokens
HYBRID = _VIT | {"resnet_layers": (1, 1), "resnet_width": 16, "resnet_groups": 4, "patch_size": 1, "depth": 3}
# 28x28 pixels -> a map of 7x7 patches, padded to 8x8: four windows of 4x4, in place in the first block, shifted by
# 2 in the second -> the odd map merged to 4x4, which one window covers
SWIN = _DIGITS | {"patch_size": 4, "embed_dim": 48, "depths": (2, 2), "num_heads": (3, 6), "window_size": 4}
SWIN |= {"drop_path_rate": 0.0}  # a network this small needs every path


@dataclass(frozen=True)
class Preset:
    """A model and its hyperparameters.

    Attributes:
        model: arguments of `minivit.ViT` or `minivit.Swin`.
        epochs: passes over the training images.
        batch_size: images per step.
        lr: peak of the schedule.
        weight_decay: of AdamW; not for biases, norms and position embeddings.
        warmup_epochs: in which the learning rate rises.
        label_smoothing: share of each target that is spread over all classes.
        max_shift: augmentation: pixels by which a digit moves,
        degrees: by which it rotates,
        scale: and the share by which it shrinks or grows.
        ema: decay of the averaged weights.
        held_out: training images held out to watch the run.
    """

    model: dict[str, Any]
    epochs: int = 16
    batch_size: int = 128
    lr: float = 2e-3
    weight_decay: float = 0.05
    warmup_epochs: float = 1.0
    label_smoothing: float = 0.1
    max_shift: int = 2
    degrees: float = 0.0
    scale: float = 0.0
    ema: float = 0.99
    held_out: int = 1000

    def augment(self, images: Array, labels: Array, rng: np.random.Generator) -> tuple[Array, Array]:
        """Images (B, 1, H, W), each moved, and rotated and scaled where the preset says so; labels (B,) as they are."""
        if self.degrees or self.scale:
            scale = (1 - self.scale, 1 + self.scale)
            return data.affine(images, rng, degrees=self.degrees, scale=scale, max_shift=self.max_shift), labels
        return data.shift(images, rng, self.max_shift), labels


# "default" is for all of MNIST, "subset" for the 5,000 images that are found without a network
PRESETS = {
    "vit": {
        "default": Preset(QUICK),
        "subset": Preset(QUICK, epochs=60, batch_size=64, held_out=200),
        "accurate": Preset(FINE, epochs=36, lr=1.5e-3, degrees=10, scale=0.1, ema=0.999),
    },
    "hybrid": {
        "default": Preset(HYBRID, epochs=14),
        "subset": Preset(HYBRID, epochs=40, batch_size=64, held_out=200),
    },
    "swin": {
        "default": Preset(SWIN, epochs=14),
        "subset": Preset(SWIN, epochs=40, batch_size=64, held_out=200),
    },
}
CLASSES = {"vit": ViT, "hybrid": ViT, "swin": Swin}
TITLES = {
    "vit": "A Vision Transformer",
    "hybrid": "A hybrid of ResNet and Vision Transformer",
    "swin": "A Swin Transformer",
}


def table() -> str:
    """The defaults of every preset as text, one a line."""
    rows = [("model", "preset", "epochs", "batch size", "lr", "held out")]
    for model, presets in PRESETS.items():
        for name, each in presets.items():
            rows.append((model, name, str(each.epochs), str(each.batch_size), f"{each.lr:g}", str(each.held_out)))
    return "\n".join(aligned(rows, left=(0, 1)))
