"""Patch merging: half the map's height and width, and four times its channels, between two stages of Swin.

Notation: B batch, H x W the map, C channels.
Source: Liu et al. 2021, "Swin Transformer", section 3.1. Derivation: docs/derivations/patch_merging.md.
"""

from __future__ import annotations

from minivit.functional.windows import pad
from minivit.protocol import Array, Back, compose, permutation


def patch_merging(x: Array) -> tuple[Array, Back]:
    """(B, H, W, C) -> (B, ceil(H/2), ceil(W/2), 4C): each 2x2 neighborhood becomes one pixel; odd maps are padded.

    The four vectors are concatenated in the order top left, bottom left, top right, bottom right (down before right),
    as in every published Swin; a convolution's unfolding would give another order.
    """
    batch, height, width, channels = x.shape
    rows, columns = (height + 1) // 2, (width + 1) // 2

    def merge(a: Array) -> Array:
        cut = a.reshape(batch, rows, 2, columns, 2, channels)  # (B, H/2, down, W/2, right, C)
        return cut.transpose(0, 1, 3, 4, 2, 5).reshape(batch, rows, columns, 4 * channels)

    def split(a: Array) -> Array:
        cut = a.reshape(batch, rows, columns, 2, 2, channels)  # (B, H/2, W/2, right, down, C)
        return cut.transpose(0, 1, 4, 2, 3, 5).reshape(batch, 2 * rows, 2 * columns, channels)

    return compose(x, lambda a: pad(a, (2 * rows, 2 * columns)), lambda a: permutation(a, merge, split))


def check_patch_merging(x: Array) -> None:
    if x.ndim != 4:
        raise ValueError(f"patch_merging: the map must be (B, H, W, C), got shape {x.shape}")
