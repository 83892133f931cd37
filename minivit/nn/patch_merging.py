"""Patch merging between two stages of Swin: half the height and width, twice the channels."""

from __future__ import annotations

from typing import Any

from minivit import functional as F
from minivit.nn.basic import LayerNorm, Linear
from minivit.nn.layer import Layer
from minivit.protocol import Array, Back, Rng, compose
from minivit.random import as_generator


class PatchMerging(Layer):
    """A map (B, H, W, D) -> (B, ceil(H/2), ceil(W/2), 2D): 2x2 neighbors concatenated, normalized and mapped.

    Args:
        dim: D.
        post_norm: normalize after the linear map (Swin v2), over 2D channels, instead of before it, over 4D.
        norm_eps: 1e-5 in Swin.

    Parameters: norm.weight, norm.bias, reduction.weight (2D, 4D), without a bias.
    """

    def __init__(
        self, dim: int, *, post_norm: bool = False, norm_eps: float = 1e-5, dtype: Any = "float32", seed: Any = None
    ) -> None:
        self.norm = LayerNorm(2 * dim if post_norm else 4 * dim, norm_eps, dtype=dtype)
        self.reduction = Linear(4 * dim, 2 * dim, bias=False, dtype=dtype, seed=as_generator(seed))
        self.post_norm = post_norm

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Back]:
        order = (self.reduction, self.norm) if self.post_norm else (self.norm, self.reduction)
        return compose(x, F.patch_merging, *order)  # (B, H/2, W/2, 4D), then (B, H/2, W/2, 2D)
