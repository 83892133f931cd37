"""Sums 16 bytes at a time: CuPy moves one number a thread, so that 16 bits take as long as 32.

A residual connection draws, scales, drops and adds in one launch.
"""

from __future__ import annotations

from typing import Any

import cupy
import numpy as np

from minivit import functional as F
from minivit.fast.cupy.launch import element_grid, launch
from minivit.protocol import Array, Back, Rng, once

_BYTES = 16  # of a chunk, the most that a thread of a GPU reads in one instruction


def chunk(dtype: np.dtype[Any], length: int, *arrays: Any) -> int:
    """Numbers of a chunk: 16 bytes where these divide a length and the arrays begin at a multiple of 16, else 1."""
    lanes = _BYTES // dtype.itemsize
    return 1 if length % lanes or any(array.data.ptr % _BYTES for array in arrays) else lanes


def sum_of_two(a: Array, b: Array) -> Array:
    """kernels/add.cu; other shapes and layouts by CuPy."""
    if a.shape != b.shape or a.dtype != b.dtype or not (a.flags.c_contiguous and b.flags.c_contiguous) or not a.size:
        return a + b
    y = cupy.empty(a.shape, a.dtype)
    lanes = chunk(a.dtype, a.size, a, b)
    count = a.size // lanes
    launch("add", "add", a.dtype, *element_grid(count), a, b, y, np.uint32(count), CHUNKED=int(lanes > 1))
    return y


def residual(x: Array, branch: Array, rate: float = 0.0, rng: Rng = None) -> tuple[Array, Back]:
    """kernels/add.cu, both ways; without noise the sum of two."""
    if not x.size or x.dtype != branch.dtype:
        return F.residual.plain(x, branch, rate, rng)
    if rng is None or rate == 0:
        return sum_of_two(x, branch), once(lambda dy: (dy, dy))
    draws = cupy.asarray(rng.random((len(x),) + (1,) * (x.ndim - 1), dtype=np.float32))  # as for the formula

    def run(shortcut: Array | None, branch: Array) -> Array:
        given = [each for each in (shortcut, branch) if each is not None]
        y, size = cupy.empty(branch.shape, branch.dtype), branch.size // len(branch)
        lanes = chunk(y.dtype, size, *given)
        launch(
            "add", "residual", y.dtype, *element_grid(y.size // lanes), shortcut, branch, draws, y,
            np.uint32(y.size // lanes), np.uint32(size // lanes), np.float32(1 - rate), 1 / (1 - rate),
            CHUNKED=int(lanes > 1),
        )  # fmt: skip
        return y

    @once
    def vjp(dy: Array) -> tuple[Array, Array]:
        return dy, run(None, cupy.ascontiguousarray(dy))

    return run(cupy.ascontiguousarray(x), cupy.ascontiguousarray(branch)), vjp


def add_bias(y: Array, bias: Array) -> None:
    """y += bias, in place: (..., O) and (O,), both contiguous."""
    bias = bias.astype(y.dtype, copy=False)
    if not y.size:
        return
    lanes = chunk(y.dtype, len(bias), y, bias)
    count, columns = y.size // lanes, len(bias) // lanes
    launch(
        "add", "add_bias", y.dtype, *element_grid(count), y, bias, np.uint32(count), np.uint32(columns),
        CHUNKED=int(lanes > 1),
    )  # fmt: skip
