"""Heads: the channels of each token split into equal parts, and concatenated again.

Each function is a permutation, whose backward pass is the inverse permutation.

Notation: N tokens, H heads, d head size; "..." stands for any leading axes (the batch, or the batch and its windows).
"""

from __future__ import annotations

from minivit.device import array_module
from minivit.protocol import Array, Back, once, permutation


def split_heads(x: Array, heads: int) -> tuple[Array, Back]:
    """(..., N, H d) -> (..., H, N, d): the channels split into H equal parts.

    Raises:
        ValueError: if the heads do not divide the channels.
    """
    return permutation(x, lambda a: _split(a, heads), _merge)


def check_split_heads(x: Array, heads: int) -> None:
    if heads < 1 or x.shape[-1] % heads:
        raise ValueError(f"split_heads: {heads} heads do not divide {x.shape[-1]} channels")


def merge_heads(x: Array) -> tuple[Array, Back]:
    """(..., H, N, d) -> (..., N, H d): the heads' outputs concatenated."""
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
    split = qkv.reshape(*lead, tokens, parts, heads, channels // (parts * heads))  # (..., N, 3, H, d)
    split = split.swapaxes(-4, -2)  # (..., H, 3, N, d)

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
