"""Softmax in one launch each way, and attention that keeps its weights, where attention.cu does not fit."""

from __future__ import annotations

from math import inf

import cupy

from minivit import functional as F
from minivit.device import constant
from minivit.fast.cupy.launch import launch, numbers, row_threads
from minivit.fast.cupy.products import product
from minivit.functional.attention import sum_to
from minivit.functional.dropout import dropout
from minivit.protocol import Array, Back, Rng, once


def softmax(x: Array) -> tuple[Array, Back]:
    """kernels/softmax.cu."""
    if not x.size or not x.ndim:
        return F.softmax.plain(x)
    return _softmax(cupy.ascontiguousarray(x), None, None, 1.0, -inf)


def attention_with_weights(
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
    """scaled_dot_product_attention, with one launch between its products, and dropout's."""
    if not q.size or not k.size:
        return F.scaled_dot_product_attention.plain(
            q, k, v, mask, bias, scale=scale, mask_value=mask_value, dropout_rate=dropout_rate, rng=rng
        )
    scale = float(q.shape[-1] ** -0.5 if scale is None else scale)
    weights, back_softmax = _softmax(product(q, k.swapaxes(-1, -2)), mask, bias, scale, mask_value)  # (..., N, M)
    dropped, back_dropout = dropout(weights, dropout_rate, rng)
    y = product(dropped, v)  # (..., N, d)

    @once
    def vjp(dy: Array) -> tuple[Array, Array, Array, Array | None]:
        dv = product(dropped.swapaxes(-1, -2), dy)
        dscores = back_softmax(back_dropout(product(dy, v.swapaxes(-1, -2))))
        dbias = None if bias is None else sum_to(dscores, bias.shape)
        return product(dscores, k, scale), product(dscores.swapaxes(-1, -2), q, scale), dv, dbias

    return y, vjp


def _softmax(x: Array, mask: Array | None, bias: Array | None, scale: float, mask_value: float) -> tuple[Array, Back]:
    """softmax(scale x + bias + what the mask adds) for a contiguous x (..., N, M), and vjp(dy) -> d(scale x)."""
    *lead, count = (1,) * (5 - x.ndim) + x.shape
    rows, threads, dtype = x.size // count, row_threads(count), x.dtype
    inner, heads, queries = lead[-3:]
    scores = (rows // (inner * heads * queries), inner, heads, queries, count)

    def along(array: Array | None) -> tuple[Array | None, tuple[int, ...]]:
        """The array with the axes of the scores, and its strides along them."""
        if array is None:
            return None, (0,) * 5
        whole = cupy.broadcast_to(array, x.shape).reshape(scores)
        return whole, tuple(step // whole.itemsize for step in whole.strides)

    (mask5, mask_strides), (bias5, bias_strides) = along(mask), along(bias)
    layout = constant(numbers((*mask_strides, *bias_strides)), x)
    y = cupy.empty(x.shape, dtype)
    launch(
        "softmax", "softmax_forward", dtype, (rows,), (threads,), x, mask5, bias5, y, layout, inner, heads, queries,
        count, scale, float(mask_value),
    )  # fmt: skip

    @once
    def vjp(dy: Array) -> Array:
        dx, dy = cupy.empty(x.shape, dtype), cupy.ascontiguousarray(dy)
        launch("softmax", "softmax_backward", dtype, (rows,), (threads,), dy, y, dx, count)
        return dx

    return y, vjp
