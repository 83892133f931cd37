"""A learned bias for each head and each offset between two places of a grid, added to the attention scores.

Alphabet: h x w the grid, N = h w its places, p prefix tokens (class token), H heads. Next: `attention.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minivit import functional as F
from minivit.backend import as_generator
from minivit.nn import init
from minivit.nn.layer import Layer, Param
from minivit.protocol import Array, Back, once


def relative_position_index(grid: tuple[int, int]) -> Array:
    """(h w, h w) integers: which row of the table belongs to (query i, key j).

    The offset (dy, dx) of j from i, shifted to start at 0, is numbered (dy + h - 1) (2w - 1) + (dx + w - 1) with
    dy = y_i - y_j; so a 2x2 grid gives rows [[4,3,1,0],[5,4,2,1],[7,6,4,3],[8,7,5,4]]. Source: Liu et al. 2021 (Swin).
    """
    height, width = grid
    y, x = np.divmod(np.arange(height * width), width)
    dy = y[:, None] - y[None, :] + height - 1  # (N, N)
    dx = x[:, None] - x[None, :] + width - 1
    return dy * (2 * width - 1) + dx


class RelativePositionBias(Layer):
    """The table (number of offsets, H) and its look-up as (H, n, N) scores.

    With prefix tokens there are three more rows, as in BEiT: prefix to grid, grid to prefix, prefix to prefix.
    """

    names_in_parent = True  # timm's name is `attn.relative_position_bias_table`

    def __init__(
        self, grid: tuple[int, int], num_heads: int, prefix_tokens: int = 0, *, dtype: Any = "float32", seed: Any = None
    ) -> None:
        offsets = (2 * grid[0] - 1) * (2 * grid[1] - 1)
        rows = offsets + (3 if prefix_tokens else 0)
        self.relative_position_bias_table = Param(
            init.trunc_normal(as_generator(seed), (rows, num_heads), 0.02, init.dtype_of(dtype))
        )
        index = relative_position_index(grid)
        if prefix_tokens:
            p = prefix_tokens
            index = np.pad(index, ((p, 0), (p, 0)))
            index[:p, p:], index[p:, :p], index[:p, :p] = offsets, offsets + 1, offsets + 2
        self.index = index  # (p + N, p + N)

    def table(self, queries: int | None = None) -> tuple[Array, Back]:
        """bias (H, n, N) for the first n queries (None: all); its back adds the table's gradient."""
        bias, vjp = F.embedding(self.index[:queries], self.relative_position_bias_table.data)  # (n, N, H)

        @once
        def back(dbias: Array) -> None:
            # pairs with the same offset read the same row, so the row collects all their gradients
            self.relative_position_bias_table.accumulate(vjp(dbias.transpose(1, 2, 0)))

        return bias.transpose(2, 0, 1), back
