"""Attention as products with a softmax between them: cuBLAS and tensor cores multiply, softmax.cu does the rest."""

from __future__ import annotations

from math import inf, prod
from typing import Any

import cupy

from minivit import functional as F
from minivit.fast.cupy.add import chunk
from minivit.fast.cupy.launch import column_sums, element_grid, in_real, launch, real
from minivit.fast.cupy.products import product
from minivit.fast.cupy.softmax import Scores, softmax_backward
from minivit.functional.attention import sum_to
from minivit.functional.dropout import dropout
from minivit.protocol import Array, Back, Rng, once


def attend(
    q: Array, k: Array, v: Array, mask: Array | None, bias: Array | None, scale: float, mask_value: float
) -> tuple[Array, Back]:
    """y (..., N, d), and back(dy, dq, dk, dv), which fills these and returns dbias.

    Nothing of N x M is kept: the backward pass multiplies q k^T again, which tensor cores do faster than memory would
    give the weights back. Scores, their softmax and its gradient are float32 in half precision.
    """
    computed, scores = real(q.dtype), Scores(mask, in_real(bias), scale, mask_value)
    y = product(scores.weights(product(q, _transposed(k), dtype=computed), q.dtype), v)

    def back(dy: Array, dq: Array, dk: Array, dv: Array) -> Array | None:
        products = product(q, _transposed(k), dtype=computed)
        dweights = product(dy, _transposed(v), dtype=computed)
        weights, dscores = scores.weights_again(products, dweights, q.dtype)
        del products, dweights
        product(_transposed(weights), dy, out=dv)
        product(dscores, k, scale, out=dq)
        product(_transposed(dscores), q, scale, out=dk)
        return None if bias is None else _sum_to(dscores, bias)

    return y, back


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
    """scaled_dot_product_attention that keeps its weights, because some are dropped."""
    scale = float(q.shape[-1] ** -0.5 if scale is None else scale)
    if not q.size or not k.size:
        return F.scaled_dot_product_attention.plain(
            q, k, v, mask, bias, scale=scale, mask_value=mask_value, dropout_rate=dropout_rate, rng=rng
        )
    computed, scores = real(q.dtype), Scores(mask, in_real(bias), scale, mask_value)
    weights = scores.weights(product(q, _transposed(k), dtype=computed), q.dtype)  # (..., N, M)
    dropped, back_dropout = dropout(weights, dropout_rate, rng)
    y = product(dropped, v)  # (..., N, d)

    @once
    def vjp(dy: Array) -> tuple[Array, Array, Array, Array | None]:
        dv = product(_transposed(dropped), dy)
        dscores = softmax_backward(back_dropout(product(dy, _transposed(v), dtype=computed)), weights)
        dbias = None if bias is None else _sum_to(dscores, bias)
        return product(dscores, k, scale), product(_transposed(dscores), q, scale), dv, dbias

    return y, vjp


def to_heads(x: Array, parts: int, heads: int) -> Array:
    """(..., N, P H d) -> (P, ..., H, N, d), a copy; kernels/heads.cu."""
    *lead, tokens, channels = x.shape
    y = cupy.empty((parts, *lead, heads, tokens, channels // (parts * heads)), x.dtype)
    _move(cupy.ascontiguousarray(x), y, y, to_tokens=False)
    return y


def to_tokens(x: Array) -> Array:
    """(P, ..., H, N, d) -> (..., N, P H d), a copy."""
    parts, *lead, heads, tokens, size = x.shape
    y = cupy.empty((*lead, tokens, parts * heads * size), x.dtype)
    _move(x, y, x, to_tokens=True)
    return y


def _move(x: Array, y: Array, by_heads: Array, to_tokens: bool) -> None:
    parts, *lead, heads, tokens, size = by_heads.shape
    lanes = chunk(x.dtype, size, x, y)
    launch(
        "heads", "move_heads", x.dtype, *element_grid(x.size // lanes), x, y, prod(lead), tokens, parts, heads,
        size // lanes, to_tokens, CHUNKED=int(lanes > 1),
    )  # fmt: skip


def _transposed(x: Array) -> Array:
    return x.swapaxes(-1, -2)


def _sum_to(dscores: Array, bias: Any) -> Array:
    """The gradient of a bias that was broadcast to the scores; over the batch in a fixed order."""
    axes = min(dscores.ndim, 3)  # heads, queries, keys
    if bias.ndim > axes:
        return sum_to(in_real(dscores), bias.shape).astype(bias.dtype, copy=False)
    last = dscores.shape[-axes:]
    sums = column_sums(dscores.reshape(-1, prod(last))).reshape(last)
    return sum_to(sums, bias.shape).astype(bias.dtype, copy=False)
