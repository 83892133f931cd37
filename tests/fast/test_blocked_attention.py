"""Attention that serves some queries after the others: the same numbers, and memory that grows with N, not N^2.

Read test_naive.py for attention against loops.
"""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

from minivit import functional as F
from minivit.fast.blocks import attention_in_blocks
from minivit.fast.numpy.attention import attend

RNG = np.random.default_rng(0)
Q, K, V = (RNG.standard_normal((2, 3, count, 4)) for count in (7, 5, 5))
DY = RNG.standard_normal((2, 3, 7, 4))
MASK = RNG.random((2, 1, 7, 5)) < 0.7


@pytest.mark.parametrize("reuse", [False, True])
@pytest.mark.parametrize("block", [1, 2, 3, 6, 7, 100])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": RNG.standard_normal((3, 7, 5))},
        {"bias": RNG.standard_normal((2, 1, 1, 5)), "scale": 0.3},
        {"bias": RNG.standard_normal(5)},
        {"mask": MASK, "mask_value": -100.0},
        {"mask": MASK[0, 0, :1]},
    ],
)
def test_blocks_change_no_number(block: int, options: Any, reuse: bool) -> None:
    y, back = F.scaled_dot_product_attention.plain(Q, K, V, **options)
    one = attend if reuse else F.scaled_dot_product_attention.plain
    in_blocks, back_blocks = attention_in_blocks(one, Q, K, V, **options, block=block, reuse=reuse)
    assert np.allclose(in_blocks, y, rtol=0, atol=1e-14)
    for ours, theirs in zip(back_blocks(DY), back(DY)):
        assert (ours is None) == (theirs is None)
        assert ours is None or (ours.shape == theirs.shape and np.allclose(ours, theirs, rtol=0, atol=1e-13))


def test_a_single_block_of_queries_is_handed_on_without_a_copy() -> None:
    given = []

    def recorded(*arguments: Any, **options: Any) -> Any:
        given.append(attend(*arguments, **options))
        return given[-1]

    y, back = attention_in_blocks(recorded, Q, K, V, block=7, reuse=True)
    assert y is given[0][0]
    into = [np.empty_like(array) for array in (Q, K, V)]
    gradients = back(DY, *into)
    assert len(given) == 2 and given[1][0].base is y.base  # for the backward pass, which gets y
    for ours, theirs in zip(gradients, attend(Q, K, V)[1](DY)):
        assert theirs is None or np.array_equal(ours, theirs)
    assert all(gradient is array for gradient, array in zip(gradients[1:3], into[1:]))


@pytest.mark.parametrize("reuse", [False, True])
def test_no_queries_give_nothing_and_no_gradient(reuse: bool) -> None:
    one = attend if reuse else F.scaled_dot_product_attention.plain
    y, back = attention_in_blocks(one, Q[:, :, :0], K, V, block=3, reuse=reuse)
    assert y.shape == (2, 3, 0, 4)
    dq, dk, dv, dbias = back(DY[:, :, :0])
    assert dq.shape == y.shape and not dk.any() and not dv.any() and dbias is None
    assert dk.shape == K.shape and dv.shape == V.shape


def test_the_weights_that_were_dropped_are_dropped_in_the_backward_pass() -> None:
    # y is linear in v, so dv follows from the weights that were used: sum(dy * y) = sum(dv * v)
    for seed in range(5):
        noise = {"dropout_rate": 0.5, "rng": np.random.default_rng(seed)}
        y, back = attention_in_blocks(attend, Q, K, V, **noise, block=2, reuse=True)
        assert (DY * y).sum() == pytest.approx((back(DY)[2] * V).sum(), rel=1e-12)


def test_memory_grows_with_the_tokens() -> None:
    peaks = []
    for tokens in (3000, 6000):
        q, k, v = (RNG.standard_normal((1, 1, tokens, 8), dtype=np.float32) for _ in range(3))
        tracemalloc.start()
        y, back = F.scaled_dot_product_attention(q, k, v)
        kept = tracemalloc.get_traced_memory()[0]
        assert kept < 3 * y.nbytes  # no weights
        back(np.ones_like(y))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0] and peaks[1] < tokens * tokens * 4  # all weights alone, 137 MiB


@pytest.mark.parametrize("keys", [256, 257])
def test_weights_are_kept_where_they_are_no_larger_than_q_k_v_and_y(keys: int) -> None:
    q, k, v = (RNG.standard_normal((1, 8, count, 64), dtype=np.float32) for count in (256, keys, keys))
    tracemalloc.start()
    y, back = F.scaled_dot_product_attention(q, k, v)
    kept = tracemalloc.get_traced_memory()[0] - y.nbytes
    tracemalloc.stop()
    assert kept > 8 * 256 * keys * 4 if keys == 256 else kept < y.nbytes / 4
    back(q)
