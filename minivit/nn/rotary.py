"""Rotary positions: queries and keys rotated by angles of their row and column, so that their products know offsets.

Notation: B batch, H heads, d head size, gh x gw the grid of patches, N = gh gw, p prefix tokens.
"""

from __future__ import annotations

from functools import lru_cache
from math import isqrt
from typing import Any

import numpy as np

from minivit import functional as F
from minivit.device import constant
from minivit.nn.layer import Layer
from minivit.protocol import Array, Back, Rng
from minivit.sizes import Size

TEMPERATURE = 100.0  # DINOv3's
PERIODS = ("exact", "bfloat16")


class RotaryPositions(Layer):
    """Queries or keys (B, H, p + N, d) -> the same, those of patches rotated by their position.

    A quarter of the channels' pairs turns with the row and a quarter with the column, at wavelengths from 1 to nearly
    `temperature` half widths of the image: positions run from -1 to 1 along each side, so that a larger image has the
    same angles at its edges. Prefix tokens are not rotated.

    Args:
        grid: gh x gw. An image of another size with the same ratio of sides has its own grid of N patches.
        size: d, a multiple of 4.
        prefix_tokens: p.
        temperature: ratio of the longest to the shortest wavelength, as the number of pairs grows; 100 in DINOv3.
        periods: the wavelengths, "exact" or rounded to "bfloat16", as DINOv3 was trained.

    Sources: Heo et al. 2024 (rotary positions of two axes); Siméoni et al. 2025 (DINOv3), section 3.2.
    """

    def __init__(
        self,
        grid: Size,
        size: int,
        prefix_tokens: int,
        temperature: float = TEMPERATURE,
        periods: str = "exact",
    ) -> None:
        if size % 4:
            raise ValueError(f"rotary positions pair the channels of two axes: heads of {size} are no multiple of 4")
        self.grid, self.prefix_tokens, self.temperature = grid, prefix_tokens, temperature
        self.periods = periods

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Back]:
        grid = same_ratio(self.grid, x.shape[-2] - self.prefix_tokens)
        how = (self.temperature, self.periods, np.dtype(x.real.dtype))
        cos, sin = _angles(grid, x.shape[-1], self.prefix_tokens, *how)
        return F.rotary(x, constant(cos, x), constant(sin, x))


def same_ratio(grid: Size, count: int) -> Size:
    """The grid of `count` patches with the ratio of sides of `grid`.

    Raises:
        ValueError: if there is none.
    """
    height = isqrt(count * grid[0] // grid[1])
    if height * grid[1] % grid[0] or height * (height * grid[1] // grid[0]) != count:
        raise ValueError(f"{count} patches make no grid with the ratio {grid[0]}:{grid[1]}: build a model of that size")
    return height, height * grid[1] // grid[0]


def rotary_periods(size: int, rounding: str = "exact", temperature: float = TEMPERATURE) -> Array:
    """(d/4,) float64: the wavelengths of the pairs of one axis, in half widths of the image."""
    periods = temperature ** (np.arange(size // 4) / (size // 4))
    if rounding == "exact":
        return periods
    bits = periods.astype(np.float32).view(np.uint32)
    # bfloat16 is the upper half of a float32; to the nearest, and to the even one of two
    rounded = (bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)
    return rounded.astype(np.uint32).view(np.float32).astype(np.float64)


@lru_cache(maxsize=32)  # read by each block at every step
def _angles(
    grid: Size, size: int, prefix: int, temperature: float, rounding: str, dtype: np.dtype[Any]
) -> tuple[Array, Array]:
    """Cosines and sines (p + N, d), read-only; 1 and 0 for the prefix."""
    y, x = ((2 * np.arange(side) + 1) / side - 1 for side in grid)  # centers of the patches, from -1 to 1
    periods = rotary_periods(size, rounding, temperature)
    rows = np.repeat(2 * np.pi * y[:, None] / periods, grid[1], axis=0)  # (N, d/4)
    columns = np.tile(2 * np.pi * x[:, None] / periods, (grid[0], 1))
    angles = np.tile(np.concatenate((rows, columns), axis=1), 2)  # (N, d): the same for both channels of a pair
    angles = np.concatenate((np.zeros((prefix, size), np.float64), angles))
    tables = np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)
    for table in tables:
        table.setflags(write=False)
    return tables
