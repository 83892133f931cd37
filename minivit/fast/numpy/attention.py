"""Attention with the normalization applied to its output, and q, k and v read and written in place in one array."""

from __future__ import annotations

from math import inf
from typing import Any

import numpy as np

from minivit.fast.blocks import in_blocks_where_large
from minivit.fast.numpy.activation import exponentials
from minivit.functional.attention import sum_to
from minivit.functional.dropout import dropout_factor
from minivit.functional.heads import merge_heads, split_qkv
from minivit.protocol import Array, Back, Rng, once


def attend(
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
    y: Array | None = None,
) -> tuple[Array, Back]:
    """Attention for all queries in one step. Its vjp takes arrays `dq`, `dk`, `dv` to write into; None makes new ones.

    Args:
        y: the output, if it is known and only the vjp is needed.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    weights = (q if scale == 1 else q * scale) @ k.swapaxes(-1, -2)  # (..., N, M): scores, soon their exponentials
    if bias is not None:
        weights += bias
    # softmax = weights * norm; norm multiplies the output (N x d) instead of the weights (N x M)
    norm = exponentials(weights, mask, mask_value)  # (..., N, 1)
    keep = dropout_factor(rng, dropout_rate, weights.shape, weights)  # (..., N, M) or None
    if y is None:
        y = _by_token(weights if keep is None else weights * keep, v)  # (..., N, d)
        y *= norm

    @once
    def vjp(
        dy: Array, dq: Array | None = None, dk: Array | None = None, dv: Array | None = None
    ) -> tuple[Array, Array, Array, Array | None]:
        dsum = dy * norm  # y = norm * ((weights * keep) @ v)
        dv = np.matmul((weights if keep is None else weights * keep).swapaxes(-1, -2), dsum, out=dv)
        dsum *= scale  # the rest is linear in it, and dq and dk have this factor
        dscores = dsum @ v.swapaxes(-1, -2)  # (..., N, M)
        if keep is not None:
            dscores *= keep
        # softmax: dscores = softmax * (dsoftmax - sum over M of softmax dsoftmax); the sum is the product of dy and y
        dscores -= np.einsum("...nd,...nd->...n", dsum, y)[..., None]
        dscores *= weights
        # scores = scale q k^T + bias
        dq = np.matmul(dscores, k, out=dq)
        dk = np.matmul(dscores.swapaxes(-1, -2), q, out=dk)
        dbias = None if bias is None else sum_to(dscores, bias.shape) / scale
        return dq, dk, dv, dbias

    return y, vjp


def _by_token(weights: Array, v: Array) -> Array:
    """weights (..., H, N, M) @ v (..., H, M, d) -> (..., H, N, d), in memory as (..., N, H, d).

    In this order, concatenating the heads' outputs needs no copy.
    """
    if weights.ndim < 3:
        return weights @ v
    *lead, heads, queries, _ = weights.shape
    y = np.empty((*lead, queries, heads, v.shape[-1]), np.result_type(weights, v)).swapaxes(-3, -2)
    return np.matmul(weights, v, out=y)


scaled_dot_product_attention = in_blocks_where_large(attend, reuse=True)


def self_attention(
    qkv: Array, num_heads: int, mask: Array | None = None, bias: Array | None = None, **options: Any
) -> tuple[Array, Back]:
    """The gradients of q, k and v are written into one array, so no copy is needed to stack them."""
    shape = qkv.shape
    (q, k, v), _ = split_qkv(qkv, num_heads)  # views, each (..., H, N, d)
    heads, back_attention = scaled_dot_product_attention(q, k, v, mask, bias, **options)  # (..., H, N, d)
    y, back_merge = merge_heads(heads)  # (..., N, D), a view

    @once
    def vjp(dy: Array) -> tuple[Array, Array | None]:
        dqkv = np.empty(shape, dy.dtype)
        dparts, _ = split_qkv(dqkv, num_heads)
        *_, dbias = back_attention(back_merge(dy), *dparts)
        return dqkv, dbias

    return y, vjp
