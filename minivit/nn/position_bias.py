"""A bias for each head and each offset between two positions of a grid, added to the attention scores.

Either a learned table (Swin, BEiT) or a small MLP of the offset (Swin v2), which also covers offsets it was not trained
with.

Notation: h x w the grid, N = h w its positions, p prefix tokens (class token), R rows of the table, H heads.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minivit import functional as F
from minivit.nn import init
from minivit.nn.basic import Linear, ReLU, Sequential
from minivit.nn.layer import Layer, apply
from minivit.nn.parameter import Parameter
from minivit.protocol import Array, Back, once
from minivit.random import as_generator
from minivit.sizes import Size


class RelativePositionBias(Layer):
    """The table (R, H), R = (2h-1)(2w-1) offsets, and its look-up as (H, n, N) scores.

    With prefix tokens there are three more rows, as in BEiT: prefix to grid, grid to prefix, prefix to prefix.
    """

    names_in_parent = True  # timm's name is `attn.relative_position_bias_table`

    def __init__(
        self, grid: Size, num_heads: int, prefix_tokens: int = 0, *, dtype: Any = "float32", seed: Any = None
    ) -> None:
        offsets = (2 * grid[0] - 1) * (2 * grid[1] - 1)
        rows = offsets + (3 if prefix_tokens else 0)
        self.relative_position_bias_table = Parameter(
            init.trunc_normal(as_generator(seed), (rows, num_heads), 0.02, init.dtype_of(dtype))
        )
        self.grid = grid
        index = F.relative_position_index(grid)
        if prefix_tokens:
            p = prefix_tokens
            index = np.pad(index, ((p, 0), (p, 0)))
            index[:p, p:], index[p:, :p], index[:p, :p] = offsets, offsets + 1, offsets + 2
        self.index = index  # (p + N, p + N)

    def bias(self, queries: int | None = None, grid: Size | None = None) -> tuple[Array, Back]:
        """(H, n, N) for the first n queries (None: all); its back adds the table's gradient.

        `grid` may be smaller than the grid of the table, which holds its offsets too.
        """
        index = self.index if grid in (None, self.grid) else F.relative_position_index(grid, self.grid)
        return apply(F.relative_position_bias, self.relative_position_bias_table, index[:queries])


class ContinuousPositionBias(Layer):
    """Swin v2's bias: a table (R, H) computed by an MLP of the offset (dy, dx), `cpb_mlp`, and looked up as (H, N, N).

    Args:
        grid: the window, Mh x Mw.
        num_heads: H.
        hidden: units of the MLP, 512 in the published models.
        pretrained: the window that the weights were trained with; 0 is the grid. The MLP then reads the same
            coordinates for the same offsets in any window.
    """

    names_in_parent = True  # timm's names are `attn.cpb_mlp.0.weight`, ...

    def __init__(
        self,
        grid: Size,
        num_heads: int,
        hidden: int = 512,
        pretrained: Size = (0, 0),
        *,
        dtype: Any = "float32",
        seed: Any = None,
    ) -> None:
        rng, dtype = as_generator(seed), init.dtype_of(dtype)
        self.cpb_mlp = Sequential(
            Linear(2, hidden, dtype=dtype, seed=rng), ReLU(), Linear(hidden, num_heads, False, dtype=dtype, seed=rng)
        )
        self.grid = grid
        self.offsets = F.log_spaced_offsets(grid, pretrained).astype(dtype)  # (R, 2)

    def bias(self, grid: Size | None = None) -> tuple[Array, Back]:
        """(H, N, N), each element in (0, 16); its back adds the MLP's gradients."""
        params = list(self.cpb_mlp.parameters().values())  # weight and bias of the first layer, weight of the last
        offsets = self.offsets.astype(params[0].data.dtype)  # the complex step makes parameters complex
        table, back_table = apply(F.continuous_position_table, offsets, *params)  # (R, H)
        y, back_lookup = F.relative_position_bias(table, F.relative_position_index(grid or self.grid, self.grid))

        @once
        def back(dy: Array) -> None:
            back_table(back_lookup(dy))

        return y, back
