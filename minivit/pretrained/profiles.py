"""Differences between projects besides names: settings of the model, and the resampling of tables."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

PLAIN = {"mode": "bicubic", "antialias": False}
_CORNERS = {"antialias": False, "align_corners": True}
_DROPS = {"partial_patches": "drop"}
_PLACED = {"no_embed_class": False}  # its class token always has a position


@dataclass(frozen=True)
class Profile:
    """The rules by which a project computes with its published weights.

    Attributes:
        vit: arguments of `ViT` that differ from minivit's defaults.
        swin: such arguments of `Swin` and `SwinV2`.
        swin_v2: further ones of `SwinV2`.
        positions: the resampling of position tables for another grid, arguments of `F.resize_grid`.
        biases: the same for tables of relative biases; None is timm's stretched grid, `adaptation.stretch_matrix`.
    """

    vit: dict[str, Any] = field(default_factory=dict)
    swin: dict[str, Any] = field(default_factory=dict)
    swin_v2: dict[str, Any] = field(default_factory=dict)
    positions: dict[str, Any] = field(default_factory=lambda: PLAIN)
    biases: dict[str, Any] | None = field(default_factory=lambda: PLAIN)

    def settings(self, model: str) -> dict[str, Any]:
        """The arguments of a class, by its name."""
        return self.vit if model == "ViT" else {**self.swin, **(self.swin_v2 if model == "SwinV2" else {})}


PROFILES = {
    # minivit's own defaults are timm's: eps 1e-6 in ViT and 1e-5 in Swin, exact GELU, mask -100; but timm pads a map
    # after it was rolled (its issue 2438), and drops partial patches
    "timm": Profile(swin={"pad_first": False, **_DROPS}, positions={"mode": "bicubic", "antialias": True}, biases=None),
    # Flax's GELU is the tanh approximation; its examples resample with scipy.ndimage.zoom, order 1
    "google": Profile(
        vit={"gelu": "tanh", "resnet_eps": "google", **_PLACED}, positions={"mode": "bilinear", **_CORNERS}
    ),
    "torchvision": Profile(vit=_PLACED, swin={"covered": "stay", **_DROPS}, positions={"mode": "bicubic", **_CORNERS}),
    # its configurations have 1e-12 for weights that were trained with 1e-6: the value of config.json is used;
    # its Swin v2 adds the mask twice
    "huggingface": Profile(
        vit={"norm_eps": 1e-12, **_PLACED}, swin={"covered": "shrink_both"}, swin_v2={"mask_value": -200.0}
    ),
    "openclip": Profile(positions={"mode": "bicubic", "antialias": True}),
    # DINO's and DINOv2's models resample by a factor of (n + 0.1) / the sides of the table, against rounding
    "meta": Profile(positions={**PLAIN, "offset": 0.1}),
    "apple": Profile(),
    "microsoft": Profile(swin={"covered": "shrink_both", **_DROPS}),
    # its Swin shifts a window that covers the map, so its logits are not Microsoft's for the same weights
    "wzmiaomiao": Profile(swin={"covered": "shift"}),
}
