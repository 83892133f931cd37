"""Softmax in one launch each way, and attention that keeps its weights, where attention.cu does not fit."""

from __future__ import annotations

from math import inf, prod
from typing import Any

import cupy
import numpy as np

from minivit import functional as F
from minivit.device import constant
from minivit.fast.cupy.launch import column_sums, in_real, launch, numbers, real
from minivit.fast.cupy.products import product
from minivit.functional.attention import sum_to
from minivit.functional.dropout import dropout
from minivit.protocol import Array, Back, Rng, once

_ROWS = 4  # of a block, one for each warp


def softmax(x: Array) -> tuple[Array, Back]:
    """kernels/softmax.cu."""
    if not x.size or not x.ndim:
        return F.softmax.plain(x)
    return _softmax(cupy.ascontiguousarray(x), None, None, 1.0, -inf, x.dtype)


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
    """scaled_dot_product_attention, with one launch between its products, and dropout's.

    In half precision scores and their softmax are float32, weights and gradients of scores are rounded.
    """
    if not q.size or not k.size:
        return F.scaled_dot_product_attention.plain(
            q, k, v, mask, bias, scale=scale, mask_value=mask_value, dropout_rate=dropout_rate, rng=rng
        )
    scale = float(q.shape[-1] ** -0.5 if scale is None else scale)
    computed = real(q.dtype)
    scores = product(q, k.swapaxes(-1, -2), dtype=computed)  # (..., N, M)
    weights, back_softmax = _softmax(scores, mask, in_real(bias), scale, mask_value, q.dtype)
    dropped, back_dropout = dropout(weights, dropout_rate, rng)
    y = product(dropped, v)  # (..., N, d)

    @once
    def vjp(dy: Array) -> tuple[Array, Array, Array, Array | None]:
        dv = product(dropped.swapaxes(-1, -2), dy)
        dscores = back_softmax(back_dropout(product(dy, v.swapaxes(-1, -2), dtype=computed)))
        dbias = None if bias is None else _sum_to(dscores, bias)
        return product(dscores, k, scale), product(dscores.swapaxes(-1, -2), q, scale), dv, dbias

    return y, vjp


def _sum_to(dscores: Array, bias: Array) -> Array:
    """The gradient of a bias that was broadcast to the scores; over the batch in a fixed order."""
    axes = min(dscores.ndim, 3)  # heads, queries, keys
    if bias.ndim > axes:
        return sum_to(in_real(dscores), bias.shape).astype(bias.dtype, copy=False)
    last = dscores.shape[-axes:]
    sums = column_sums(dscores.reshape(-1, prod(last))).reshape(last)
    return sum_to(sums, bias.shape).astype(bias.dtype, copy=False)


def _softmax(
    x: Array, mask: Array | None, bias: Array | None, scale: float, mask_value: float, dtype: Any
) -> tuple[Array, Back]:
    """softmax(scale x + bias + what the mask adds) of a contiguous x (..., N, M) in `dtype`, vjp(dy) -> d(scale x)."""
    *lead, count = (1,) * (5 - x.ndim) + x.shape
    rows = x.size // count
    grid, block = (-(-rows // _ROWS),), (32, _ROWS)
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
        "softmax", "softmax_forward", dtype, grid, block, x, mask5, bias5, y, layout, inner, heads, queries, count,
        np.int64(rows), scale, float(mask_value),
    )  # fmt: skip

    @once
    def vjp(dy: Array) -> Array:
        dx, dy = cupy.empty(x.shape, dtype), cupy.ascontiguousarray(dy)
        launch("softmax", "softmax_backward", dtype, grid, block, dy, y, dx, count, np.int64(rows))
        return dx

    return y, vjp
