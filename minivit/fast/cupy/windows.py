"""Padding, shift and partition of a map in one launch instead of three; kernels/windows.cu."""

from __future__ import annotations

from typing import Any

import cupy

from minivit import functional as F
from minivit.fast.cupy.add import chunk
from minivit.fast.cupy.launch import element_grid, launch
from minivit.protocol import Array, Back, once
from minivit.sizes import Size, pair


def shifted_windows(
    x: Array, window_size: int | Size, shift: Size, size: Size, pad_first: bool = True
) -> tuple[Array, Back]:
    """The map's backward pass is the move of `shifted_windows_reverse`."""
    if not x.size:
        return F.shifted_windows.plain(x, window_size, shift, size, pad_first)
    batch, *real, channels = x.shape
    move = _Move(batch, (real[0], real[1]), size, pair(window_size), shift, channels, pad_first)
    return move.to_windows(x), once(move.to_map)


def shifted_windows_reverse(
    windows: Array, window_size: int | Size, shift: Size, size: Size, real: Size, pad_first: bool = True
) -> tuple[Array, Back]:
    """The backward pass is the move of `shifted_windows`: what was padding gets no gradient."""
    if not windows.size:
        return F.shifted_windows_reverse.plain(windows, window_size, shift, size, real, pad_first)
    window = pair(window_size)
    batch = len(windows) * window[0] * window[1] // (size[0] * size[1])
    move = _Move(batch, real, size, window, shift, windows.shape[-1], pad_first)
    return move.to_map(windows), once(move.to_windows)


class _Move:
    """A map of `real` height and width, and its windows."""

    def __init__(
        self, batch: int, real: Size, size: Size, window: Size, shift: Size, channels: int, pad_first: bool
    ) -> None:
        self.map = (batch, *real, channels)
        self.windows = (batch * size[0] * size[1] // (window[0] * window[1]), *window, channels)
        along: Any = [(real[axis], size[axis], window[axis], shift[axis]) for axis in (0, 1)]
        self.lengths, self.pad_first = (batch, *along[0], *along[1]), pad_first

    def to_windows(self, x: Array) -> Array:
        return self._run(x, self.windows, True)

    def to_map(self, x: Array) -> Array:
        return self._run(x, self.map, False)

    def _run(self, x: Array, shape: tuple[int, ...], to_windows: bool) -> Array:
        x, y = cupy.ascontiguousarray(x), cupy.empty(shape, x.dtype)
        lanes = chunk(x.dtype, shape[-1], x, y)
        launch(
            "windows", "move_windows", x.dtype, *element_grid(y.size // lanes), x, y,
            *self.lengths, shape[-1] // lanes, self.pad_first, to_windows, CHUNKED=int(lanes > 1),
        )  # fmt: skip
        return y
