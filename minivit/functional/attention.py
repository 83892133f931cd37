"""Scaled dot-product attention: each query is compared with all keys, and averages the values by these scores.

Notation: B batch, H heads, N queries, M keys, d head size, D = H d channels; "..." any leading axes.
"""

from __future__ import annotations

from math import inf, log
from typing import Any

from minivit.device import array_module
from minivit.functional.activation import softmax
from minivit.functional.dropout import dropout
from minivit.functional.heads import merge_heads, split_qkv
from minivit.functional.norm import normalize
from minivit.protocol import Array, Back, Rng, once


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
    """y = softmax(scale q k^T + bias) v.

    Args:
        q: (..., N, d).
        k: (..., M, d).
        v: (..., M, d).
        mask: booleans that broadcast to (..., N, M); True = this query attends to this key. A query that attends
            to no key gives 0, with gradient 0.
        bias: added to the scores; broadcasts to (..., N, M).
        scale: 1/sqrt(d) by default: a sum of d independent products of variance 1 has variance d, the score then 1.
        mask_value: added to the scores where the mask is False; -100 is what the published Swins were trained with,
            and a masked score more than 100 above the others still gets weight.
        dropout_rate: the probability that an attention weight is dropped, when `rng` is a generator.

    Returns:
        y (..., N, d), and vjp(dy) -> (dq, dk, dv, dbias).

    Raises:
        ValueError: if the shapes of q, k and v do not match.

    Source: Vaswani et al. 2017, section 3.2.1. Derivation: docs/derivations/attention.md.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores = scale * (q @ k.swapaxes(-1, -2))  # (..., N, M)
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        allowed = array_module(mask).where(mask, 0, mask_value)  # 0, or -inf where this query may not attend
        scores = scores + allowed.astype(scores.real.dtype)
    weights, back_softmax = softmax(scores)
    dropped, back_dropout = dropout(weights, dropout_rate, rng)
    y = dropped @ v  # (..., N, d)

    @once
    def vjp(dy: Array) -> tuple[Array, Array, Array, Array | None]:
        # y = dropped @ v
        dv = dropped.swapaxes(-1, -2) @ dy
        # dropped = dropout(softmax(scores))
        dscores = back_softmax(back_dropout(dy @ v.swapaxes(-1, -2)))
        # scores = scale q k^T + bias
        dbias = None if bias is None else sum_to(dscores, bias.shape)
        dq = scale * (dscores @ k)
        dk = scale * (dscores.swapaxes(-1, -2) @ q)
        return dq, dk, dv, dbias

    return y, vjp


def check_scaled_dot_product_attention(q: Array, k: Array, v: Array, *_: Any, **__: Any) -> None:
    if q.shape[-1] != k.shape[-1] or k.shape[:-1] != v.shape[:-1] or q.shape[:-2] != k.shape[:-2]:
        raise ValueError(
            f"attention: q {q.shape}, k {k.shape}, v {v.shape}: q and k need the same last axis, k and v the same "
            "tokens, and all three the same leading axes"
        )


def sum_to(array: Array, shape: tuple[int, ...]) -> Array:
    """Sum over the axes along which an array of `shape` was broadcast: the derivative of broadcasting."""
    extra = array.ndim - len(shape)
    ones = tuple(extra + axis for axis, size in enumerate(shape) if size == 1 and array.shape[extra + axis] != 1)
    axes = (*range(extra), *ones)
    return array.sum(axis=axes).reshape(shape) if axes else array


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
    """Multi-head self-attention from the fused projection of the tokens; each head reads d of the channels.

    Args:
        qkv: (..., N, 3D), channels q | k | v, each divided into heads in order, as in timm.
        num_heads: H, which divides D.
        mask: broadcasts to (..., H, N, N).
        bias: broadcasts to (..., H, N, N).
        mask_value, dropout_rate, rng: as in `scaled_dot_product_attention`.

    Returns:
        y (..., N, D), the heads' outputs concatenated, and vjp(dy) -> (dqkv, dbias).

    Raises:
        ValueError: if the heads do not divide the channels.

    Source: Vaswani et al. 2017, section 3.2.2, without the projections before and after.
    """
    (q, k, v), back_split = split_qkv(qkv, num_heads)  # each (..., H, N, d)
    heads, back_attention = scaled_dot_product_attention(
        q, k, v, mask, bias, mask_value=mask_value, dropout_rate=dropout_rate, rng=rng
    )  # (..., H, N, d)
    y, back_merge = merge_heads(heads)  # (..., N, D)

    @once
    def vjp(dy: Array) -> tuple[Array, Array | None]:
        dq, dk, dv, dbias = back_attention(back_merge(dy))
        return back_split(dq, dk, dv), dbias

    return y, vjp


def check_self_attention(qkv: Array, num_heads: int, *_: Any, **__: Any) -> None:
    if num_heads < 1 or qkv.shape[-1] % (3 * num_heads):
        raise ValueError(
            f"self_attention: the last axis of qkv {qkv.shape} must be 3 D with D divisible by num_heads={num_heads}"
        )


MAX_LOGIT_SCALE = log(100)  # Liu et al. 2022, section 3.2: a temperature of at least 0.01


def cosine_attention(
    q: Array,
    k: Array,
    v: Array,
    logit_scale: Array,
    mask: Array | None = None,
    bias: Array | None = None,
    *,
    mask_value: float = -inf,
    dropout_rate: float = 0.0,
    rng: Rng = None,
) -> tuple[Array, Back]:
    """y = softmax(cos(q, k) exp(min(logit_scale, log 100)) + bias) v: the lengths of q and k have no effect.

    Args:
        q, k, v, mask, bias, mask_value, dropout_rate, rng: as in `scaled_dot_product_attention`.
        logit_scale: (H, 1, 1), the learned logarithm of each head's factor; values above log 100
            count as log 100, with gradient 0.

    Returns:
        y (..., N, d), and vjp(dy) -> (dq, dk, dv, dlogit_scale, dbias).

    Source: Liu et al. 2022 (Swin v2), equation 2. Derivation: docs/derivations/cosine_attention.md.
    """
    xp = array_module(q)
    free = ~(logit_scale.real > MAX_LOGIT_SCALE)  # true for NaN too, which must not be hidden
    scale = xp.exp(xp.where(free, logit_scale, xp.full_like(logit_scale, MAX_LOGIT_SCALE)))  # (H, 1, 1)
    q_hat, back_q = normalize(q)
    k_hat, back_k = normalize(k)
    y, back_attention = scaled_dot_product_attention(
        q_hat * scale, k_hat, v, mask, bias, scale=1, mask_value=mask_value, dropout_rate=dropout_rate, rng=rng
    )

    @once
    def vjp(dy: Array) -> tuple[Array, Array, Array, Array, Array | None]:
        dq_scaled, dk_hat, dv, dbias = back_attention(dy)
        # scale = exp(logit_scale), whose derivative is scale itself
        dlogit_scale = sum_to(dq_scaled * q_hat, scale.shape) * scale * free
        return back_q(dq_scaled * scale), back_k(dk_hat), dv, dlogit_scale, dbias

    return y, vjp


check_cosine_attention = check_scaled_dot_product_attention
