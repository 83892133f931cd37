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


def differential_attention(
    q: Array,
    k: Array,
    v: Array,
    lambda_q1: Array,
    lambda_k1: Array,
    lambda_q2: Array,
    lambda_k2: Array,
    *,
    lambda_init: float,
    dropout_rate: float = 0.0,
    rng: Rng = None,
) -> tuple[Array, Back]:
    """y = (softmax(q1 k1^T / sqrt(d)) - lambda softmax(q2 k2^T / sqrt(d))) v: what both maps share cancels.

    lambda = exp(lambda_q1 . lambda_k1) - exp(lambda_q2 . lambda_k2) + lambda_init.

    Args:
        q, k: (..., 2H, N, d); heads 2h and 2h + 1 are the pair of head h.
        v: (..., H, N, 2d).
        lambda_q1, lambda_k1, lambda_q2, lambda_k2: (d,), learned, the same for all heads.
        lambda_init: the value of lambda where the learned part is 0.
        dropout_rate, rng: as in `scaled_dot_product_attention`, for each map.

    Returns:
        y (..., H, N, 2d), and vjp(dy) -> (dq, dk, dv, dlambda_q1, dlambda_k1, dlambda_q2, dlambda_k2).

    Raises:
        ValueError: if there is not one value for two queries, or the vectors do not fit.

    Source: Ye et al. 2024 (Differential Transformer), equations 1 and 2.
    """
    xp = array_module(q)
    heads1, back1 = scaled_dot_product_attention(
        q[..., 0::2, :, :], k[..., 0::2, :, :], v, dropout_rate=dropout_rate, rng=rng
    )  # (..., H, N, 2d)
    heads2, back2 = scaled_dot_product_attention(
        q[..., 1::2, :, :], k[..., 1::2, :, :], v, dropout_rate=dropout_rate, rng=rng
    )
    first, second = xp.exp((lambda_q1 * lambda_k1).sum()), xp.exp((lambda_q2 * lambda_k2).sum())
    factor = first - second + lambda_init

    @once
    def vjp(dy: Array) -> tuple[Array, ...]:
        dq1, dk1, dv1, _ = back1(dy)
        dq2, dk2, dv2, _ = back2(-factor * dy)
        dq, dk = xp.empty(q.shape, dq1.dtype), xp.empty(k.shape, dk1.dtype)
        dq[..., 0::2, :, :], dq[..., 1::2, :, :] = dq1, dq2
        dk[..., 0::2, :, :], dk[..., 1::2, :, :] = dk1, dk2
        # factor = exp(q1 . k1) - exp(q2 . k2) + a constant, and exp is its own derivative
        dfactor = -(dy * heads2).sum()
        dfirst, dsecond = dfactor * first, -dfactor * second
        return (
            *(dq, dk, dv1 + dv2),
            *(dfirst * lambda_k1, dfirst * lambda_q1, dsecond * lambda_k2, dsecond * lambda_q2),
        )

    return heads1 - factor * heads2, vjp


def check_differential_attention(q: Array, k: Array, v: Array, *vectors: Array, **_: Any) -> None:
    if q.shape[-3] != 2 * v.shape[-3] or q.shape != k.shape or q.shape[-2] != v.shape[-2]:
        raise ValueError(
            f"differential_attention: q {q.shape}, k {k.shape}, v {v.shape}: q and k must be (..., 2H, N, d), "
            "and v (..., H, N, 2d)"
        )
    for vector in vectors:
        if vector.shape != q.shape[-1:]:
            raise ValueError(
                f"differential_attention: the vectors of lambda must be {q.shape[-1:]}, not {vector.shape}"
            )


def rotary(x: Array, cos: Array, sin: Array) -> tuple[Array, Back]:
    """y = x cos + J x sin, with J (x1, x2) = (-x2, x1): channels i and i + d/2 rotated by an angle of the position.

    The product of a rotated query and a rotated key depends on the difference of their angles alone.

    Args:
        x: (..., N, d), d even.
        cos, sin: (N, d), of the angles; their halves are equal.

    Returns:
        y of x's shape, and vjp(dy) -> dx. The angles are constants.

    Raises:
        ValueError: if d is odd, or the tables do not fit.

    Source: Su et al. 2021 (RoFormer), section 3.2.2; Heo et al. 2024 for two axes. DINOv3 pairs channels in this way.
    """
    xp, half = array_module(x), x.shape[-1] // 2
    turned = xp.concatenate((-x[..., half:], x[..., :half]), axis=-1)  # J x

    @once
    def vjp(dy: Array) -> Array:
        dturned = dy * sin
        back = xp.concatenate((dturned[..., half:], -dturned[..., :half]), axis=-1)  # J^T dturned
        return dy * cos + back

    return x * cos + turned * sin, vjp


def check_rotary(x: Array, cos: Array, sin: Array) -> None:
    if x.shape[-1] % 2 or cos.shape != x.shape[-2:] or sin.shape != x.shape[-2:]:
        raise ValueError(
            f"rotary: x {x.shape} needs an even last axis, and cos {cos.shape} and sin {sin.shape} its last two axes"
        )
