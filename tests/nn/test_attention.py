"""Attention with fewer queries than tokens."""

from __future__ import annotations

import numpy as np
import pytest

from minivit import nn


@pytest.mark.parametrize("queries", [1, 4, 5, 6, 7, 8])
def test_the_first_queries_get_what_they_get_among_all(queries: int) -> None:
    """More queries than channels (4) are fewer than tokens (7) all the same."""
    x, dy = np.random.default_rng(0).standard_normal((2, 3, 7, 4))
    whole, part = (nn.Attention(4, 2, queries=count, dtype="float64", seed=1) for count in (None, queries))
    y, back = part(x)
    expected, back_whole = whole(x)
    np.testing.assert_allclose(y, expected[:, :queries], rtol=0, atol=1e-14)
    dy[:, queries:] = 0  # what comes later reads no other token
    np.testing.assert_allclose(back(dy[:, :queries]), back_whole(dy), rtol=0, atol=1e-14)
    for name, param in whole.parameters().items():
        np.testing.assert_allclose(part.parameters()[name].grad, param.grad, rtol=0, atol=1e-13)


@pytest.mark.parametrize("queries", [None, 2])
def test_attention_weights_are_dropped_in_training_alone(queries: int | None) -> None:
    layer = nn.Attention(4, 2, attn_drop=0.5, queries=queries, dtype="float64", seed=0)
    x = np.random.default_rng(0).standard_normal((2, 5, 4))
    assert np.array_equal(layer(x)[0], nn.Attention(4, 2, queries=queries, dtype="float64", seed=0)(x)[0])
    assert not np.allclose(layer(x, np.random.default_rng(1))[0], layer(x)[0])
