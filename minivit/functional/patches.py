"""Patch embedding: the image cut into patches, each mapped to a vector by one linear map.

This is a convolution whose kernel is as large as its stride, so no patch overlaps another and no unfolding is needed.

Alphabet: B batch, C image channels, P patch size, N patches, D embedding channels. Next: `sliding.py`.
"""

from __future__ import annotations

from minivit.functional.linear import linear
from minivit.functional.permutations import patchify
from minivit.protocol import Array, Back, once, refuse


def patch_embed(images: Array, weight: Array, bias: Array | None = None) -> tuple[Array, Back]:
    """One vector for each patch.

    Args:
        images: (B, C, H, W), with H and W multiples of the kernel's.
        weight: (D, C, Ph, Pw), a convolution kernel as PyTorch stores it.
        bias: (D,) or None.

    Returns:
        y (B, N, D), patches in reading order, and vjp(dy) -> (dimages, dweight, dbias).

    Raises:
        ValueError: if channels differ or the patch does not divide the image.

    Source: Dosovitskiy et al. 2021, equation 1. Derivation: docs/derivations/patch_embed.md.
    """
    shape = weight.shape
    refuse(
        images.ndim == 4 and images.shape[1] != shape[1],
        f"patch_embed: got images with {images.shape[1:2]} channels, expected {shape[1]}: build the model with "
        f"in_chans={images.shape[1] if images.ndim > 1 else '?'}, or convert the images",
    )
    rows, back_patchify = patchify(images, shape[2:])  # (B, N, C Ph Pw)
    y, back_linear = linear(rows, weight.reshape(shape[0], -1), bias)  # (B, N, D)

    @once
    def vjp(dy: Array) -> tuple[Array, Array, Array | None]:
        drows, dweight, dbias = back_linear(dy)
        return back_patchify(drows), dweight.reshape(shape), dbias

    return y, vjp
