"""What differs between projects beside names: settings of the model, and how each resamples its tables.

A difference between two projects is a line here, not a mystery in the logits. Next:
`architecture.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Profile:
    """How a project computes with the weights it publishes.

    Attributes:
        vit: arguments of `ViT` that differ from minivit's defaults.
        swin: arguments of `Swin` and `SwinV2` that do.
        resize: how tables are resampled for another size, arguments of `F.resize_grid`.
    """

    vit: dict[str, Any] = field(default_factory=dict)
    swin: dict[str, Any] = field(default_factory=dict)
    resize: dict[str, Any] = field(default_factory=lambda: {"mode": "bicubic", "antialias": True})


_PLAIN = {"mode": "bicubic", "antialias": False}

PROFILES = {
    # minivit's own defaults are timm's: eps 1e-6 in ViT and 1e-5 in Swin, exact GELU, mask -100
    "timm": Profile(),
    # Flax's GELU is the tanh approximation; its examples resample linearly
    "google": Profile(vit={"gelu": "tanh"}, resize={"mode": "bilinear", "antialias": False}),
    "torchvision": Profile(resize=_PLAIN),
    # its configurations say 1e-12 where the weights they hold were trained with 1e-6: what config.json says is used
    "huggingface": Profile(vit={"norm_eps": 1e-12}, resize=_PLAIN),
    "microsoft": Profile(resize=_PLAIN),
}
