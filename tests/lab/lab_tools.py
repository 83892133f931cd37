"""Small models with random weights for the lab's tests, and drawings for them."""

from __future__ import annotations

from typing import Any

import numpy as np

import minivit
from minivit.models import Model
from minivit.protocol import Array

DIGITS: dict[str, Any] = {"img_size": 28, "in_chans": 1, "num_classes": 10, "mlp_ratio": 2.0}
KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "vit": (minivit.ViT, {**DIGITS, "patch_size": 7, "embed_dim": 16, "depth": 2, "num_heads": 2}),
    "average": (
        minivit.ViT,
        {**DIGITS, "patch_size": 7, "embed_dim": 16, "depth": 2, "num_heads": 2, "class_token": False,
         "global_pool": "avg", "pos_embed": "relative"},
    ),
    "layer_scale": (
        minivit.ViT,
        {**DIGITS, "patch_size": 7, "embed_dim": 16, "depth": 2, "num_heads": 2, "init_values": 0.5},
    ),
    "hybrid": (
        minivit.ViT,
        {**DIGITS, "patch_size": 1, "embed_dim": 16, "depth": 2, "num_heads": 2, "resnet_layers": (1, 1),
         "resnet_width": 8, "resnet_groups": 2},
    ),
    "swin": (
        minivit.Swin,
        {**DIGITS, "patch_size": 4, "embed_dim": 12, "depths": (2, 2), "num_heads": (3, 6), "window_size": 4,
         "drop_path_rate": 0.0},
    ),
    "swin_v2": (
        minivit.SwinV2,
        {**DIGITS, "patch_size": 4, "embed_dim": 12, "depths": (2, 2), "num_heads": (3, 6), "window_size": 4,
         "drop_path_rate": 0.0, "cpb_hidden": 8},
    ),
}  # fmt: skip


def build(kind: str, dtype: str = "float32") -> Model:
    """A model with weights far from the small initial ones."""
    make, options = KINDS[kind]
    model: Model = make(**options, dtype=dtype, seed=0)
    rng = np.random.default_rng(1)
    for param in model.parameters().values():
        param.data = param.data + 0.15 * rng.standard_normal(param.shape)
    return model


def image(seed: int = 0, dtype: str = "float32") -> Array:
    """(1, 1, 28, 28)."""
    return np.random.default_rng(seed).standard_normal((1, 1, 28, 28)).astype(dtype)
