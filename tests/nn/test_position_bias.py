"""Which row of its table each pair of tokens reads."""

from __future__ import annotations

import numpy as np
import pytest

from minivit import nn


@pytest.mark.parametrize("prefix", [1, 2])
def test_prefix_tokens_have_three_biases_of_their_own(prefix: int) -> None:
    """To the grid, from the grid, and to each other or themselves: the last three rows, in this order."""
    layer = nn.RelativePositionBias((2, 3), 2, prefix, dtype="float64")
    layer.relative_position_bias_table.data = np.arange(36.0).reshape(18, 2)  # 15 offsets and 3
    y, back = layer.bias()
    assert y.shape == (2, prefix + 6, prefix + 6)
    for head in range(2):
        assert (y[head, :prefix, prefix:] == 30 + head).all()
        assert (y[head, prefix:, :prefix] == 32 + head).all()
        assert (y[head, :prefix, :prefix] == 34 + head).all()
        assert y[head, prefix, prefix:].tolist() == [2 * row + head for row in (7, 6, 5, 2, 1, 0)]
    back(np.ones_like(y))
    gradient = layer.relative_position_bias_table.grad
    assert gradient is not None and gradient[15:].tolist() == [[6 * prefix] * 2, [6 * prefix] * 2, [prefix**2] * 2]
