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
        block: queries that are served at a time. Their weights (n, M) are then not kept but computed again on the way
            back, so that memory grows with N instead of N M. None does so where all weights would take more memory
            than q, k, v and y together, M > 4d.

    Returns:
        y (..., N, d), and vjp(dy) -> (dq, dk, dv, dbias).

    Source: Vaswani et al. 2017, section 3.2.1. Derivation: docs/derivations/attention.md.
    """
    refuse(
        q.shape[-1] != k.shape[-1] or k.shape[:-1] != v.shape[:-1],
        f"attention: q {q.shape}, k {k.shape}, v {v.shape}: q and k need the same last axis, k and v the same tokens",
    )
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    options = {"scale": scale, "mask_value": mask_value, "dropout_rate": dropout_rate}
    block = _block_for(q, k) if block is None else block
    if block is None:
        return _attend(q, k, v, mask, bias, rng, **options)
    return _in_blocks(q, k, v, mask, bias, rng, block, options)


def _attend(
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None,
    bias: Array | None,
    rng: Any,
    y: Array | None = None,
    *,
    scale: float,
    mask_value: float,
    dropout_rate: float,
) -> tuple[Array, Back]:
    """The attention of these queries, whose weights are kept for the way back; y if only that is asked for."""
    weights = (q if scale == 1 else q * scale) @ k.swapaxes(-1, -2)  # (..., N, M): scores, soon to be exponentials
    if bias is not None:
        weights += bias
    # softmax = weights * norm; the norm multiplies the result (N x d) instead of the weights (N x M)
    norm = kernels(q).inplace_exp(weights, mask, mask_value)  # (..., N, 1)
    keep = dropout_factor(rng, dropout_rate, weights)  # (..., N, M) or None
    if y is None:
        y = kernels(q).matmul_by_token(weights if keep is None else weights * keep, v)  # (..., N, d)
        y *= norm
    bias_shape = None if bias is None else bias.shape

    @once
    def vjp(dy: Array) -> tuple[Array, Array, Array, Array | None]:
        xp, (room_q, room_k, room_v) = array_module(dy), kernels(dy).room_like(q, k, v)
        dsum = dy * norm  # in the forward pass: y = norm * ((weights * keep) @ v)
        dv = xp.matmul((weights if keep is None else weights * keep).swapaxes(-1, -2), dsum, out=room_v)  # (..., M, d)
        dsum *= scale  # what follows is linear in it, and dq and dk want this factor
        dscores = dsum @ v.swapaxes(-1, -2)  # (..., N, M)
        if keep is not None:
            dscores *= keep
        # softmax: dscores = softmax * (dsoftmax - sum_m softmax dsoftmax), and that sum is the dot product of dy and y
        dscores -= xp.einsum("...nd,...nd->...n", dsum, y)[..., None]
        dscores *= weights
        # in the forward pass: scores = scale q k^T + bias, and dscores has the factor already
        dq = xp.matmul(dscores, k, out=room_q)  # (..., N, d)
        dk = xp.matmul(dscores.swapaxes(-1, -2), q, out=room_k)  # (..., M, d)
        dbias = None if bias_shape is None else sum_to(dscores, bias_shape) / scale
        return dq, dk, dv, dbias

    return y, vjp


_FEW_KEYS = 4  # times the head size: so many weights take as much memory as q, k, v and y together
_BLOCK_BYTES = 1 << 24  # of the weights of one block, 16 MiB: large enough to keep products fast


def _block_for(q: Array, k: Array) -> int | None:
    """How many queries to serve at a time, so that their weights stay within 16 MiB; None: keep the weights of all.

    Computing them again takes a quarter more time than attention does without, a few percent of a training step.
    """
    keys, size = k.shape[-2:]
    if keys <= _FEW_KEYS * size:
        return None
    return max(1, _BLOCK_BYTES // max(1, q[..., :1, :1].size * keys * q.dtype.itemsize))


def _in_blocks(
    q: Array, k: Array, v: Array, mask: Array | None, bias: Array | None, rng: Any, block: int, options: dict[str, Any]
) -> tuple[Array, Back]:
    """Attention of some queries after the others; what each block keeps is dropped, and made again on the way back."""
    xp, queries = array_module(q), q.shape[-2]
    parts = [slice(start, min(start + block, queries)) for start in range(0, max(1, queries), block)]
    noise = copy_generator(rng)  # the weights dropped now are dropped again on the way back

    def attend(part: slice, rng: Any, y: Array | None = None) -> tuple[Array, Back]:
        return _attend(q[..., part, :], k, v, _rows(mask, part), _rows(bias, part), rng, y, **options)

    y = _joined([attend(part, rng)[0] for part in parts])  # (..., N, d)

    @once
    def vjp(dy: Array) -> tuple[Array, Array, Array, Array | None]:
        dqs, dk, dv, dbias = [], None, None, None if bias is None else xp.zeros_like(bias)
        for part in parts:
            _, back = attend(part, noise, y[..., part, :])
            dq, dk_part, dv_part, dbias_part = back(dy[..., part, :])
            dqs.append(dq)
            # every query reads every key, so their parts add up
            dk, dv = (dk_part, dv_part) if dk is None else (dk + dk_part, dv + dv_part)
            if dbias is not None:
                rows: Any = _rows(dbias, part)  # a view
                rows += dbias_part
        return _joined(dqs), dk, dv, dbias

    return y, vjp


def _joined(blocks: list[Array]) -> Array:
    """Blocks of queries one after the other; a single one as it is."""
    return blocks[0] if len(blocks) == 1 else array_module(blocks[0]).concatenate(blocks, axis=-2)


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
    free = ~(logit_scale.real > MAX_LOGIT_SCALE)  # also where it is NaN, which must not be hidden
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
