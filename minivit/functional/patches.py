"""Patches: images split into patches, and the patch embedding, one linear map from each patch to a vector.

It is a convolution whose stride equals its kernel size, so patches do not overlap and need no unfolding.

Notation: B batch, C image channels, P patch size, gh x gw the grid of patches, N = gh gw patches, D embedding channels.
"""

from __future__ import annotations

from minivit.argument_checks import check_images, layout_remedy, looks_channels_last
from minivit.functional.linear import linear
from minivit.protocol import Array, Back, once, permutation
from minivit.sizes import Size, pair


def patchify(images: Array, patch_size: int | Size) -> tuple[Array, Back]:
    """(B, C, gh Ph, gw Pw) -> (B, gh gw, C Ph Pw): one row per patch, patches in reading order.

    A row holds channel after channel, each in reading order, as a convolution kernel (C, Ph, Pw) is stored.

    Raises:
        ValueError: if the patch does not divide the image.
    """
    patch = pair(patch_size)
    _, channels, height, width = images.shape
    grid = (height // patch[0], width // patch[1])
    return permutation(images, lambda a: _cut(a, patch), lambda a: _glue(a, patch, grid, channels))


def check_patchify(images: Array, patch_size: int | Size) -> None:
    patch = pair(patch_size)
    if images.ndim != 4:
        raise ValueError(f"images must be (B, C, H, W), got shape {images.shape}")
    height, width = images.shape[2:]
    if height % patch[0] or width % patch[1]:
        if looks_channels_last(images.shape):
            raise ValueError(
                f"images must be (B, C, H, W), got shape {images.shape}: {layout_remedy(images.shape, images.shape[3])}"
            )
        raise ValueError(
            f"image {height}x{width} is not divisible by patch {patch[0]}x{patch[1]}: pad or resize it, "
            f"or choose a patch whose height divides {height} and whose width divides {width}"
        )


def unpatchify(rows: Array, patch_size: int | Size, grid: Size) -> tuple[Array, Back]:
    """(B, gh gw, C Ph Pw) -> (B, C, gh Ph, gw Pw): the inverse of `patchify`."""
    patch = pair(patch_size)
    channels = rows.shape[2] // (patch[0] * patch[1])
    return permutation(rows, lambda a: _glue(a, patch, grid, channels), lambda a: _cut(a, patch))


def check_unpatchify(rows: Array, patch_size: int | Size, grid: Size) -> None:
    patch = pair(patch_size)
    if rows.ndim != 3 or rows.shape[1] != grid[0] * grid[1] or rows.shape[2] % (patch[0] * patch[1]):
        raise ValueError(f"unpatchify: rows of shape {rows.shape} do not make a grid {grid} of patches {patch}")


def _cut(images: Array, patch: Size) -> Array:
    batch, channels, height, width = images.shape
    gh, gw = height // patch[0], width // patch[1]
    cut = images.reshape(batch, channels, gh, patch[0], gw, patch[1])  # (B, C, gh, Ph, gw, Pw)
    return cut.transpose(0, 2, 4, 1, 3, 5).reshape(batch, gh * gw, channels * patch[0] * patch[1])  # (B, N, C Ph Pw)


def _glue(rows: Array, patch: Size, grid: Size, channels: int) -> Array:
    batch = rows.shape[0]
    cut = rows.reshape(batch, grid[0], grid[1], channels, patch[0], patch[1])  # (B, gh, gw, C, Ph, Pw)
    return cut.transpose(0, 3, 1, 4, 2, 5).reshape(batch, channels, grid[0] * patch[0], grid[1] * patch[1])


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
    check_images("patch_embed", images, weight.shape[1])
    check_patchify(images, weight.shape[2:])
