"""Positions: attention ignores the order of tokens, so the position of each patch is added to its vector.

Each class here gives a table of vectors for a grid of patches, and accumulates the table's gradient; `relative`
positions are a bias inside attention instead, in `minivit/nn/position_bias.py`, and `rotary` ones rotate its queries
and keys, in `minivit/nn/rotary.py`.

Notation: gh x gw the grid, N = gh gw, p prefix tokens (class token), D channels.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from minivit import functional as F
from minivit.device import array_module, constant
from minivit.nn import init
from minivit.nn.layer import Layer
from minivit.nn.parameter import Parameter
from minivit.protocol import Array, Back, Rng, once

KINDS = ("learned_1d", "none", "learned_2d", "sincos_1d", "sincos_2d", "relative", "rotary")


class Positions(Layer):
    """Base: `table(grid)` gives vectors (p + N, D) and a back for their gradient."""

    names_in_parent = True

    def table(self, grid: tuple[int, int]) -> tuple[Array, Back]:
        raise TypeError(f"{type(self).__name__} must define table(self, grid)")


class Learned1d(Positions):
    """One learned vector for each token in reading order: `pos_embed` (1, p + N, D), timm's. The ViT paper's choice.

    For another grid the grid's part is resampled by antialiased bicubic interpolation, as timm does.

    Args:
        prefix: rows for prefix tokens.
        unplaced: further prefix tokens, which get no position: the table begins with a zero for each.
    """

    def __init__(
        self, grid: tuple[int, int], prefix: int, dim: int, dtype: Any, rng: Rng, *, unplaced: int = 0
    ) -> None:
        self.grid, self.prefix, self.unplaced = grid, prefix, unplaced
        self.pos_embed = Parameter(init.trunc_normal(rng, (1, prefix + grid[0] * grid[1], dim), 0.02, dtype))

    @property
    def learned(self) -> Parameter:
        """The parameter (1, p + N, D)."""
        return self.pos_embed

    def table(self, grid: tuple[int, int]) -> tuple[Array, Back]:
        rows, back_rows = self._rows(grid)
        if not self.unplaced:
            return rows, back_rows
        xp = array_module(rows)
        zeros = xp.zeros((self.unplaced, rows.shape[1]), rows.dtype)
        return xp.concatenate((zeros, rows)), once(lambda dtable: back_rows(dtable[self.unplaced :]))

    def _rows(self, grid: tuple[int, int]) -> tuple[Array, Back]:
        """The learned rows (p + N, D), resampled to another grid."""
        param = self.learned
        learned = param.data[0]  # (p + N, D)
        if grid == self.grid:
            return learned, once(lambda dtable: param.accumulate(dtable[None]))
        xp, dim = array_module(learned), learned.shape[1]
        square = learned[self.prefix :].reshape(*self.grid, dim)  # (gh, gw, D)
        resized, vjp = F.resize_grid(square, grid)  # (gh', gw', D)
        table = xp.concatenate((learned[: self.prefix], resized.reshape(grid[0] * grid[1], dim)))

        @once
        def back(dtable: Array) -> None:
            dsquare = vjp(dtable[self.prefix :].reshape(*grid, dim)).reshape(-1, dim)  # (N, D)
            param.accumulate(xp.concatenate((dtable[: self.prefix], dsquare))[None])

        return table, back


class AbsolutePositions(Learned1d):
    """The same for Swin's first map, without prefix tokens; Swin calls the table `absolute_pos_embed` (1, N, D)."""

    def __init__(self, grid: tuple[int, int], dim: int, dtype: Any, rng: Rng) -> None:
        self.grid, self.prefix, self.unplaced = grid, 0, 0
        self.absolute_pos_embed = Parameter(init.trunc_normal(rng, (1, grid[0] * grid[1], dim), 0.02, dtype))

    @property
    def learned(self) -> Parameter:
        return self.absolute_pos_embed


class Learned2d(Positions):
    """Half of the channels encode the row, half the column: `pos_embed_row` (gh, D/2) and `pos_embed_col` (gw, D/2).

    Prefix tokens get no position: they are learned vectors already.
    """

    def __init__(self, grid: tuple[int, int], prefix: int, dim: int, dtype: Any, rng: Rng) -> None:
        if dim % 2:
            raise ValueError(
                f"pos_embed='learned_2d' needs an even embed_dim (half for rows, half for columns), got {dim}"
            )
        self.prefix = prefix
        self.pos_embed_row = Parameter(init.trunc_normal(rng, (grid[0], dim // 2), 0.02, dtype))
        self.pos_embed_col = Parameter(init.trunc_normal(rng, (grid[1], dim // 2), 0.02, dtype))

    def table(self, grid: tuple[int, int]) -> tuple[Array, Back]:
        row, back_row = _resample(self.pos_embed_row, grid[0])  # (gh, D/2)
        column, back_column = _resample(self.pos_embed_col, grid[1])  # (gw, D/2)
        xp, (gh, gw), half = array_module(row), grid, row.shape[1]
        rows = xp.broadcast_to(row[:, None], (gh, gw, half))
        columns = xp.broadcast_to(column[None], (gh, gw, half))
        vectors = xp.concatenate((rows, columns), axis=2).reshape(gh * gw, 2 * half)  # (N, D)
        prefix = xp.zeros((self.prefix, 2 * half), vectors.dtype)

        @once
        def back(dtable: Array) -> None:
            dplaces = dtable[self.prefix :].reshape(gh, gw, 2 * half)
            back_row(dplaces[:, :, :half].sum(axis=1))
            back_column(dplaces[:, :, half:].sum(axis=0))

        return xp.concatenate((prefix, vectors)), back


def _resample(param: Parameter, size: int) -> tuple[Array, Back]:
    """A learned row of vectors (n, D), resampled to `size` positions; its back adds the gradient."""
    if size == param.shape[0]:
        return param.data, once(param.accumulate)
    line, vjp = F.resize_grid(param.data[:, None], (size, 1))  # (size, 1, D)
    return line[:, 0], once(lambda dline: param.accumulate(vjp(dline[:, None])[:, 0]))


class SinCos(Positions):
    """Fixed sines and cosines of the position, at wavelengths from 2 pi to 10,000 * 2 pi.

    kind "sincos_1d": of the token's index in reading order (Vaswani et al. 2017, section 3.5).
    kind "sincos_2d": half of the channels of the row, half of the column (Chen, Xie and He 2021, MoCo v3).
    Prefix tokens get no position.
    """

    def __init__(self, kind: str, prefix: int, dim: int, dtype: Any) -> None:
        parts = 4 if kind == "sincos_2d" else 2
        if dim % parts:
            raise ValueError(f"pos_embed={kind!r} needs an embed_dim that is a multiple of {parts}, got {dim}")
        self.kind, self.prefix, self.dim = kind, prefix, dim
        self.anchor = np.zeros((0,), dtype)  # holds the dtype and the device

    def table(self, grid: tuple[int, int]) -> tuple[Array, Back]:
        table = _sincos(self.kind, grid, self.prefix, self.dim, np.dtype(self.anchor.dtype))
        return constant(table, self.anchor), once(lambda dtable: None)


@lru_cache(maxsize=16)  # read at every step
def _sincos(kind: str, grid: tuple[int, int], prefix: int, dim: int, dtype: np.dtype[Any]) -> Array:
    """(prefix + N, D), read-only: zeros for the prefix, then a row of waves for each position."""
    y, x = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    if kind == "sincos_1d":
        vectors = _waves(np.arange(len(y)), dim)
    else:
        vectors = np.concatenate((_waves(y, dim // 2), _waves(x, dim // 2)), axis=1)
    table = np.concatenate((np.zeros((prefix, dim), vectors.dtype), vectors)).astype(dtype)
    table.setflags(write=False)
    return table


def _waves(position: Array, dim: int) -> Array:
    """(N,) positions -> (N, dim): sines, then cosines, of position / 10000^(2i/dim)."""
    rates = 10_000.0 ** (-np.arange(dim // 2) / (dim // 2))
    angles = position[:, None] * rates  # (N, dim/2)
    return np.concatenate((np.sin(angles), np.cos(angles)), axis=1)


def make_positions(
    kind: str, grid: tuple[int, int], prefix: int, dim: int, dtype: Any, rng: Rng, *, place_prefix: bool = True
) -> Positions | None:
    """The table of a kind; None for "none", "relative" and "rotary", which change no token.

    Args:
        place_prefix: whether a table of kind "learned_1d" has rows for the prefix tokens; the others have none.
    """
    if kind not in KINDS:
        raise ValueError(f"pos_embed={kind!r}: choose one of {', '.join(map(repr, KINDS))}")
    if kind == "learned_1d":
        rows = prefix if place_prefix else 0
        return Learned1d(grid, rows, dim, dtype, rng, unplaced=prefix - rows)
    if kind == "learned_2d":
        return Learned2d(grid, prefix, dim, dtype, rng)
    return SinCos(kind, prefix, dim, dtype) if kind.startswith("sincos") else None
