"""Scaled dot-product attention: every query looks at every key, and takes the values in proportion.

Alphabet: B batch, H heads, N queries, M keys, d head size. Split and merged heads are in `permutations.py`.
Next: `patches.py`.
"""

from __future__ import annotations

from math import inf, log
from typing import Any

from minivit.backend import array_module, copy_generator, kernels
from minivit.functional.dropout import dropout_factor
from minivit.functional.norm import normalize
from minivit.protocol import Array, Back, once, refuse


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
    rng: Any = None,
    block: int | None = None,
) -> tuple[Array, Back]:
    """y = softmax(scale q k^T + bias) v.

    Args:
        q: (..., N, d).
        k: (..., M, d).
        v: (..., M, d).
        mask: booleans that broadcast to (..., N, M); True = this query may look at this key. A query that may look
            at nothing gets 0, and gradient 0.
        mask_value: what is added to the scores where it may not; -100 is what the published Swins were trained with,
            and lets through what stands more than 100 higher than the rest.
        bias: added to the scores; broadcasts to (..., N, M).
        scale: 1/sqrt(d) by default: a sum of d independent products of variance 1 has variance d, the score then 1.
        dropout_rate: probability with which a weight is dropped when `rng` is a generator.
        block: queries that are served at a time. Weights (..., N, M) are then never in memory whole, which makes it
            grow with N instead of N^2, and are computed again on the way back. None does so from 1,024 keys on.

    Returns:
        y (..., N, d), and vjp(dy) -> (dq, dk, dv, dbias).

    Source: Vaswani et al. 2017, section 3.2.1. Derivation: docs/derivations/attention.md.
    """
    refuse(
        q.shape[-1] != k.shape[-1] or k.shape[:-1] != v.shape[:-1],
        f"attention: q {q.shape}, k {k.shape}, v {v.shape}: q and k need the same last axis, k and v the same tokens",
    )
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    block = _block_for(q, k) if block is None else block
    if block < q.shape[-2]:
        return _in_blocks(
            q, k, v, mask, bias, block, rng, {"scale": scale, "mask_value": mask_value, "dropout_rate": dropout_rate}
        )
    weights = (q if scale == 1 else q * scale) @ k.swapaxes(-1, -2)  # (..., N, M): scores, soon to be exponentials
    if bias is not None:
        weights += bias
    # softmax = weights * norm; the norm multiplies the result (N x d) instead of the weights (N x M)
    norm = kernels(q).inplace_exp(weights, mask, mask_value)  # (..., N, 1)
    keep = dropout_factor(rng, dropout_rate, weights)  # (..., N, M) or None
    y = kernels(q).matmul_by_token(weights if keep is None else weights * keep, v)  # (..., N, d)
    y *= norm
    bias_shape = None if bias is None else bias.shape

    @once
    def vjp(dy: Array) -> tuple[Array, Array, Array, Array | None]:
        dsum = dy * norm  # in the forward pass: y = norm * ((weights * keep) @ v)
        dv = (weights if keep is None else weights * keep).swapaxes(-1, -2) @ dsum  # (..., M, d)
        dscores = dsum @ v.swapaxes(-1, -2)  # (..., N, M)
        if keep is not None:
            dscores *= keep
        # softmax: dscores = softmax * (dsoftmax - sum_m softmax dsoftmax), and that sum is the dot product of dy and y
        dscores -= array_module(dy).einsum("...nd,...nd->...n", dsum, y)[..., None]
        dscores *= weights
        # in the forward pass: scores = (scale q) k^T + bias
        dq = dscores @ k
        if scale != 1:
            dq *= scale
        dk = dscores.swapaxes(-1, -2) @ q
        if scale != 1:
            dk *= scale
        dbias = None if bias_shape is None else sum_to(dscores, bias_shape)
        return dq, dk, dv, dbias

    return y, vjp


_MANY_KEYS = 1024  # an image of 512 pixels in patches of 16; below, computing the weights again gains little memory
_BLOCK_BYTES = 1 << 24  # of the weights of one block, 16 MiB: large enough to keep products fast


def _block_for(q: Array, k: Array) -> int:
    """How many queries to serve at a time: all of them, or as many as keep a block's weights within 16 MiB."""
    queries, keys = q.shape[-2], k.shape[-2]
    if keys < _MANY_KEYS:
        return max(1, queries)
    return max(1, _BLOCK_BYTES // max(1, q[..., :1, :1].size * keys * q.dtype.itemsize))


def _in_blocks(
    q: Array, k: Array, v: Array, mask: Array | None, bias: Array | None, block: int, rng: Any, options: dict[str, Any]
) -> tuple[Array, Back]:
    """Attention of some queries after the others; what each block keeps is dropped, and made again on the way back."""
    xp, queries = array_module(q), q.shape[-2]
    parts = [slice(start, min(start + block, queries)) for start in range(0, queries, block)]
    noise = copy_generator(rng)  # the weights dropped now are dropped again on the way back

    def attend(part: slice, rng: Any) -> tuple[Array, Back]:
        return scaled_dot_product_attention(
            q[..., part, :], k, v, _rows(mask, part), _rows(bias, part), rng=rng, block=queries, **options
        )

    y = xp.concatenate([attend(part, rng)[0] for part in parts], axis=-2)  # (..., N, d)

    @once
    def vjp(dy: Array) -> tuple[Array, Array, Array, Array | None]:
        dqs, dk, dv, dbias = [], xp.zeros_like(k), xp.zeros_like(v), None if bias is None else xp.zeros_like(bias)
        for part in parts:
            _, back = attend(part, noise)
            dq, dk_part, dv_part, dbias_part = back(dy[..., part, :])
            dqs.append(dq)
            dk += dk_part  # every query reads every key
            dv += dv_part
            if dbias is not None:
                rows: Any = _rows(dbias, part)  # a view
                rows += dbias_part
        return xp.concatenate(dqs, axis=-2), dk, dv, dbias

    return y, vjp


def _rows(array: Array | None, part: slice) -> Array | None:
    """The rows of a mask or bias that belong to these queries; all of it if it is the same for every query."""
    return array if array is None or array.ndim < 2 or array.shape[-2] == 1 else array[..., part, :]


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
    rng: Any = None,
) -> tuple[Array, Back]:
    """y = softmax(cos(q, k) exp(min(logit_scale, log 100)) + bias) v: scores that no length of q or k can blow up.

    Args:
        q, k, v, mask, bias, mask_value, dropout_rate, rng: as in `scaled_dot_product_attention`.
        logit_scale: (H, 1, 1), the learned logarithm of each head's factor; above log 100 it has no effect, and
            gradient 0.

    Returns:
        y (..., N, d), and vjp(dy) -> (dq, dk, dv, dlogit_scale, dbias).

    Source: Liu et al. 2022 (Swin v2), equation 2. Derivation: docs/derivations/cosine_attention.md.
    """
    xp = array_module(q)
    free = logit_scale.real <= MAX_LOGIT_SCALE
    scale = xp.exp(xp.where(free, logit_scale, xp.asarray(MAX_LOGIT_SCALE, logit_scale.dtype)))  # (H, 1, 1)
    q_hat, back_q = normalize(q)
    k_hat, back_k = normalize(k)
    y, back_attention = scaled_dot_product_attention(
        q_hat * scale, k_hat, v, mask, bias, scale=1, mask_value=mask_value, dropout_rate=dropout_rate, rng=rng
    )

    @once
    def vjp(dy: Array) -> tuple[Array, Array, Array, Array, Array | None]:
        dq_scaled, dk_hat, dv, dbias = back_attention(dy)
        # in the forward pass: scale = exp(logit_scale), whose derivative is scale itself
        dlogit_scale = sum_to(dq_scaled * q_hat, scale.shape) * scale * free
        dq_scaled *= scale
        return back_q(dq_scaled), back_k(dk_hat), dv, dlogit_scale, dbias

    return y, vjp


def sum_to(array: Array, shape: tuple[int, ...]) -> Array:
    """Sum over the axes along which an array of `shape` was broadcast: the backward pass of broadcasting."""
    extra = array.ndim - len(shape)
    axes = tuple(range(extra)) + tuple(
        extra + axis for axis, size in enumerate(shape) if size == 1 and array.shape[extra + axis] != 1
    )
    return array.sum(axis=axes).reshape(shape) if axes else array
