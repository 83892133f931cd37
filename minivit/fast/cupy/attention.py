"""Attention whose weights (N, M) never reach the GPU's memory; kernels/attention.cu."""

from __future__ import annotations

from math import inf, prod
from typing import Any

import cupy
import numpy as np

from minivit import functional as F
from minivit.device import constant
from minivit.fast.blocks import in_blocks_where_large
from minivit.fast.cupy.attention_by_products import attend, attention_with_weights, to_heads, to_tokens
from minivit.fast.cupy.launch import column_sums, launch, numbers, real
from minivit.fast.dispatch import with_parts
from minivit.functional.attention import sum_to
from minivit.functional.heads import split_qkv
from minivit.protocol import Array, Back, Rng, once

_MOST_CHANNELS = 64  # of a head: its tiles fill a block's shared memory
# tiles of attention.cu by dtype: WIDE, of which as few and as small ones as possible are taken, and NARROW; the sums of
# the largest fill the registers of 128 threads, and other large ones were no faster on an H200; a class token needs 16
_WIDE = {"float32": (64, 56, 16), "float64": (32, 16)}
_NARROW = {"float32": 32, "float64": 16}
_THREADS = 128


_in_blocks = in_blocks_where_large(attention_with_weights)  # where weights are dropped, or scores would be too many
_by_parts = with_parts(F.self_attention.plain, scaled_dot_product_attention=_in_blocks)
_FEW_SCORES = 1 << 23  # bytes, 8 MiB: so few take less time than 13 launches, by estimate; not measured on a GPU
_MOST_SCORES = 1 << 29  # bytes that products may need for a short while, 512 MiB; a ViT-S/16 step took 0.94 of its time


def scaled_dot_product_attention(
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None = None,
    bias: Array | None = None,
    *,
    scale: float | None = None,
    mask_value: float = -inf,
    dropout_rate: float = 0.0,
    rng: Rng = None,
) -> tuple[Array, Back]:
    """By products, by the kernel, or in blocks, whichever fits."""
    compute = _choose(q, k, v, bias, rng is not None and dropout_rate > 0)
    if compute is None:
        return _in_blocks(q, k, v, mask, bias, scale=scale, mask_value=mask_value, dropout_rate=dropout_rate, rng=rng)
    y, back = compute(q, k, v, mask, bias, q.shape[-1] ** -0.5 if scale is None else scale, mask_value)

    @once
    def vjp(dy: Array) -> tuple[Array, Array, Array, Array | None]:
        into = tuple(cupy.empty(x.shape, x.dtype) for x in (q, k, v))
        return (*into, back(dy, *into))

    return y, vjp


def self_attention(
    qkv: Array,
    num_heads: int,
    mask: Array | None = None,
    bias: Array | None = None,
    *,
    mask_value: float = -inf,
    dropout_rate: float = 0.0,
    rng: Rng = None,
) -> tuple[Array, Back]:
    """The kernel reads q, k and v where they stand in `qkv`, and writes their gradients where they stand in `dqkv`."""
    qkv = cupy.ascontiguousarray(qkv)
    (q, k, v), _ = split_qkv(qkv, num_heads)
    compute = _choose(q, k, v, bias, rng is not None and dropout_rate > 0)
    if compute is None:
        return _by_parts(qkv, num_heads, mask, bias, mask_value=mask_value, dropout_rate=dropout_rate, rng=rng)
    if compute is attend:
        return _self_attention_by_products(qkv, num_heads, mask, bias, mask_value)
    heads, back = _attend(q, k, v, mask, bias, q.shape[-1] ** -0.5, mask_value)  # (..., H, N, d)
    y = heads.swapaxes(-3, -2).reshape(*qkv.shape[:-1], qkv.shape[-1] // 3)  # (..., N, D), a view

    @once
    def vjp(dy: Array) -> tuple[Array, Array | None]:
        dqkv = cupy.empty(qkv.shape, qkv.dtype)
        dparts, _ = split_qkv(dqkv, num_heads)
        dheads = dy.reshape(*dy.shape[:-1], num_heads, heads.shape[-1]).swapaxes(-3, -2)
        return dqkv, back(dheads, *dparts)

    return y, vjp


def _self_attention_by_products(
    qkv: Array, num_heads: int, mask: Array | None, bias: Array | None, mask_value: float
) -> tuple[Array, Back]:
    """cuBLAS needs q, k and v each in one piece; they are moved there and back once each way."""
    parts = to_heads(qkv, 3, num_heads)  # (3, ..., H, N, d)
    q, k, v = parts
    heads, back = attend(q, k, v, mask, bias, q.shape[-1] ** -0.5, mask_value)
    y = to_tokens(heads[None])  # (..., N, D)

    @once
    def vjp(dy: Array) -> tuple[Array, Array | None]:
        dparts = cupy.empty_like(parts)
        dbias = back(to_heads(dy, 1, num_heads)[0], *dparts)
        return to_tokens(dparts), dbias

    return y, vjp


def _choose(q: Array, k: Array, v: Array, bias: Array | None, drops: bool) -> Any:
    """What computes this attention from q, k, v, mask, bias, scale and mask value; None: the formula's parts."""
    if drops or not q.size or not k.size:
        return None
    scores = q[..., 0].size * k.shape[-2] * real(q.dtype).itemsize  # bytes
    if not _FEW_SCORES < scores <= _MOST_SCORES and _fits(q, k, v, bias):
        return _attend
    return attend if scores <= _MOST_SCORES else None


def _fits(q: Array, k: Array, v: Array, bias: Array | None) -> bool:
    """Whether the kernel computes this attention: at most two batch axes before the heads, one bias for all of them."""
    batched = bias is not None and bias.ndim > 3 and prod(bias.shape[:-3]) != 1
    sizes = q.shape[-1] == v.shape[-1] <= _MOST_CHANNELS and q.dtype.name in _WIDE
    return sizes and 2 <= q.ndim <= 5 and not batched


def _attend(
    q: Array, k: Array, v: Array, mask: Array | None, bias: Array | None, scale: float, mask_value: float
) -> tuple[Array, Back]:
    """y of q's shape, laid out so that merging the heads is a view; back(dy, dq, dk, dv) fills these, returns dbias."""
    dtype, shape = q.dtype, (1,) * (5 - q.ndim) + q.shape
    outer, inner, heads, queries, size = shape
    keys = k.shape[-2]
    scores = (outer, inner, heads, queries, keys)
    q5, k5, v5 = (_five(x, dtype) for x in (q, k, v))
    mask5 = None if mask is None else cupy.broadcast_to(mask, scores)
    bias5 = None if bias is None else cupy.broadcast_to(bias, scores)
    y5 = cupy.empty((outer, inner, queries, heads, size), dtype).swapaxes(2, 3)
    lse = cupy.empty(scores[:-1], dtype)
    counts = (inner, heads, queries, keys, size, float(scale), float(mask_value))
    head = -(-size // 16) * 16
    batches = outer * inner * heads
    known = (q5, k5, v5, y5, mask5, bias5)
    defines = {"HEAD": head, "NARROW": _NARROW[dtype.name], "THREADS": _THREADS}

    def run(name: str, rows: int, tiles: tuple[int, int], *arguments: Any) -> None:
        """A block for each `wide` of the rows; it keeps so many wide and narrow tiles, and one of scores."""
        wide, narrow = min(_WIDE[dtype.name], key=lambda wide: (-(-rows // wide), wide)), _NARROW[dtype.name]
        lanes = 16 // dtype.itemsize
        reals = (tiles[0] * wide + tiles[1] * narrow) * (head + lanes) + wide * (narrow + lanes)
        grid = (batches * -(-rows // wide),)
        launch(
            "attention", name, dtype, grid, (_THREADS,), *arguments, *counts, shared=reals * dtype.itemsize,
            WIDE=wide, **defines,
        )  # fmt: skip

    run("attention_forward", queries, (1, 2), q5, k5, v5, mask5, bias5, y5, lse, _layout(*known))

    def back(dy: Array, dq: Array, dk: Array, dv: Array) -> Array | None:
        dy5 = _five(dy, dtype)
        d5 = [gradient.reshape((1,) * (5 - q.ndim) + gradient.shape) for gradient in (dq, dk, dv)]
        layout = _layout(*known, dy5, *d5)
        delta = cupy.empty_like(lse)
        launch(
            "attention", "attention_delta", dtype, (-(-delta.size // (_THREADS // 32)),), (_THREADS,), dy5, y5, delta,
            layout, inner, heads, queries, size, delta.size, WIDE=_WIDE[dtype.name][0], **defines,
        )  # fmt: skip
        ds: Any = None if bias is None else cupy.empty(scores, dtype)
        inputs = (dy5, q5, k5, v5, mask5, bias5, lse, delta)
        run("attention_backward_queries", queries, (2, 2), *inputs, d5[0], ds, layout)
        run("attention_backward_keys", keys, (2, 2), *inputs, *d5[1:], layout)
        if bias is None:
            return None
        per_head = column_sums(ds.reshape(outer * inner, heads * queries * keys)).reshape(scores[2:])
        return sum_to(per_head, bias.shape[-3:]).reshape(bias.shape)

    return y5.reshape(q.shape), back


def _five(x: Array, dtype: np.dtype[Any]) -> Array:
    """x with five axes and its channels next to each other."""
    if x.strides[-1] != x.dtype.itemsize and x.shape[-1] > 1:
        x = cupy.ascontiguousarray(x)
    return x.reshape((1,) * (5 - x.ndim) + x.shape)


def _layout(like: Array, *others: Array | None) -> Array:
    """The strides of q, k, v, y, mask, bias, dy, dq, dk and dv, as attention.cu numbers them."""
    strides: list[int] = []
    for number, array in enumerate((like, *others)):
        axes = 5 if number in (4, 5) else 4
        strides += (0,) * axes if array is None else [step // array.itemsize for step in array.strides[:axes]]
    return constant(numbers(tuple(strides)), like)
