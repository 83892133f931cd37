"""Moves that change no number: cutting images into patches, splitting channels into heads.

Each element goes to exactly one position, so the Jacobian is a permutation matrix, its transpose is its inverse, and
the backward pass is the same move undone. This is said once, in `permutation`; every function here is two moves.

Alphabet: B batch, C image channels, P patch size, gh x gw the grid of patches, N = gh gw tokens, H heads, d head size;
"..." stands for any leading axes (the batch, or the batch and its windows).
"""

from __future__ import annotations

from collections.abc import Callable

from minivit.device import array_module
from minivit.protocol import Array, Back, once
from minivit.sizes import Size, pair

Move = Callable[[Array], Array]


def permutation(x: Array, move: Move, undo: Move) -> tuple[Array, Back]:
    """y = move(x), and vjp = undo."""
    return move(x), once(undo)


def split_heads(x: Array, heads: int) -> tuple[Array, Back]:
    """(..., N, H d) -> (..., H, N, d): the channels cut into H equal parts, head by head.

    Raises:
        ValueError: if the heads do not divide the channels.
    """
    return permutation(x, lambda a: _split(a, heads), _merge)


def check_split_heads(x: Array, heads: int) -> None:
    if heads < 1 or x.shape[-1] % heads:
        raise ValueError(f"split_heads: {heads} heads do not divide {x.shape[-1]} channels")


def merge_heads(x: Array) -> tuple[Array, Back]:
    """(..., H, N, d) -> (..., N, H d): the heads' outputs side by side again."""
    heads = x.shape[-3]
    return permutation(x, _merge, lambda a: _split(a, heads))


def split_qkv(qkv: Array, heads: int, parts: int = 3) -> tuple[tuple[Array, ...], Back]:
    """(..., N, 3 H d) -> q, k, v, each (..., H, N, d), as views; vjp(dq, dk, dv) -> dqkv.

    The rows of timm's fused weight are q's, then k's, then v's, each head after head.

    Args:
        parts: how many are fused; with 2, k and v.

    Raises:
        ValueError: if the heads do not divide the channels of a part.
    """
    *lead, tokens, channels = qkv.shape
    split = qkv.reshape(*lead, tokens, parts, heads, channels // (parts * heads)).swapaxes(-4, -2)  # (..., H, 3, N, d)

    @once
    def vjp(*dparts: Array) -> Array:
        dsplit = array_module(dparts[0]).stack(dparts, axis=-3)  # (..., H, 3, N, d)
        return dsplit.swapaxes(-4, -2).reshape(*lead, tokens, channels)

    return tuple(split[..., part, :, :] for part in range(parts)), vjp


def check_split_qkv(qkv: Array, heads: int, parts: int = 3) -> None:
    if heads < 1 or parts < 1 or qkv.shape[-1] % (parts * heads):
        raise ValueError(f"split_qkv: {heads} heads do not divide {qkv.shape[-1]} / {parts} channels")


def _split(x: Array, heads: int) -> Array:
    *lead, tokens, channels = x.shape
    return x.reshape(*lead, tokens, heads, channels // heads).swapaxes(-3, -2)  # (..., H, N, d)


def _merge(x: Array) -> Array:
    *lead, heads, tokens, size = x.shape
    return x.swapaxes(-3, -2).reshape(*lead, tokens, heads * size)  # (..., N, H d)


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
