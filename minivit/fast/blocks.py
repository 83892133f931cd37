"""Attention for a few queries at a time, so that memory grows with N instead of N M."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minivit.device import array_module
from minivit.protocol import Array, Back, Rng, once
from minivit.random import copy_generator

FEW_KEYS = 4  # times the head size: this many weights take as much memory as q, k, v and y together
_BLOCK_BYTES = 1 << 24  # of the weights of one block, 16 MiB: large enough to keep products fast


def block_size(q: Array, k: Array) -> int | None:
    """The number of queries at a time whose weights fit into 16 MiB; None: keep the weights of all.

    Recomputing the weights makes attention 25% slower, and a training step a few percent.
    """
    keys, size = k.shape[-2:]
    if keys <= FEW_KEYS * size:
        return None
    return max(1, _BLOCK_BYTES // max(1, q[..., :1, :1].size * keys * q.dtype.itemsize))


def attention_in_blocks(
    attend: Callable[..., tuple[Array, Back]],
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None = None,
    bias: Array | None = None,
    *,
    block: int,
    reuse: bool = False,
    rng: Rng = None,
    **options: Any,
) -> tuple[Array, Back]:
    """`attend`, a scaled_dot_product_attention, on blocks of queries in turn.

    The weights (n, M) of a block are freed, and recomputed in the backward pass. Dropout draws block by block.

    Args:
        block: queries at a time.
        reuse: `attend` takes its output `y` to skip its computation, and its vjp takes arrays for dq, dk and dv to
            write into. So does the returned vjp.
    """
    xp, queries = array_module(q), q.shape[-2]
    starts = range(0, queries, block) or (0,)  # no queries: one empty block
    parts = [slice(start, min(start + block, queries)) for start in starts]
    replay = copy_generator(rng)  # the weights dropped now are dropped again in the backward pass

    def run(part: slice, rng: Rng, **known: Any) -> tuple[Array, Back]:
        return attend(q[..., part, :], k, v, _queries(mask, part), _queries(bias, part), rng=rng, **options, **known)

    outputs = [run(part, rng)[0] for part in parts]
    y = outputs[0] if len(outputs) == 1 else xp.concatenate(outputs, axis=-2)  # (..., N, d)

    @once
    def vjp(dy: Array, *into: Array) -> tuple[Array, Array, Array, Array | None]:
        dq: Any
        dk: Any
        dv: Any
        dq, dk, dv = into or (xp.empty_like(q), None, None)
        dbias = None if bias is None else xp.zeros_like(bias)
        for part in parts:
            _, back = run(part, replay, **({"y": y[..., part, :]} if reuse else {}))
            first = part.start == 0
            targets = (dq[..., part, :], *((dk, dv) if first else (None, None))) if reuse else ()
            dq_part, dk_part, dv_part, dbias_part = back(dy[..., part, :], *targets)
            if not reuse:
                dq[..., part, :] = dq_part
            if first:
                dk, dv = dk_part, dv_part
            else:  # every query reads every key, so their parts add up
                dk += dk_part
                dv += dv_part
            if dbias is not None:
                _queries(dbias, part)[...] += dbias_part
        return dq, dk, dv, dbias

    return y, vjp


def _queries(array: Any, part: slice) -> Any:
    """The rows of a mask or bias for these queries, a view; the array itself if all queries share one row."""
    return array if array is None or array.ndim < 2 or array.shape[-2] == 1 else array[..., part, :]


def in_blocks_where_large(
    attend: Callable[..., tuple[Array, Back]], reuse: bool = False
) -> Callable[..., tuple[Array, Back]]:
    """Attention, for a few queries at a time where the weights of all would take more memory than q, k, v and y."""

    def scaled_dot_product_attention(q: Array, k: Array, *arguments: Any, **options: Any) -> tuple[Array, Back]:
        block = block_size(q, k)
        if block is None:
            return attend(q, k, *arguments, **options)
        return attention_in_blocks(attend, q, k, *arguments, block=block, reuse=reuse, **options)

    return scaled_dot_product_attention
