"""Patch embedding: the image cut into patches, each mapped to a vector by one linear map.

This is a convolution whose kernel is as large as its stride, so no patch overlaps another and no unfolding is needed.

Alphabet: B batch, C image channels, P patch size, N patches, D embedding channels.
"""

from __future__ import annotations

from minivit.functional.linear import linear
from minivit.functional.permutations import check_patchify, patchify
from minivit.protocol import Array, Back, once


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
    patches, back_patchify = patchify(images, weight.shape[2:])  # (B, N, C Ph Pw)
    y, back_linear = linear(patches, weight.reshape(len(weight), -1), bias)  # (B, N, D)

    @once
    def vjp(dy: Array) -> tuple[Array, Array, Array | None]:
        dpatches, dweight, dbias = back_linear(dy)
        return back_patchify(dpatches), dweight.reshape(weight.shape), dbias

    return y, vjp


def check_patch_embed(images: Array, weight: Array, bias: Array | None = None) -> None:
    if images.ndim == 4 and images.shape[1] != weight.shape[1]:
        raise ValueError(
            f"patch_embed: got images with {images.shape[1:2]} channels, expected {weight.shape[1]}: build the model "
            f"with in_chans={images.shape[1]}, or convert the images"
        )
    check_patchify(images, weight.shape[2:])
