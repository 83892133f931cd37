"""The largest number of each window: the maximum first, then where it stood, in half the time of an argmax."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import prod
from typing import Any

import numpy as np

from minivit.fast.numpy.views import windows
from minivit.functional.permutations import Size
from minivit.functional.sliding import Padding, Slide, inner, output_size, slide, surround
from minivit.protocol import Array, Back, once


def max_pool2d(
    x: Array, kernel_size: int | Size, stride: int | Size | None = None, padding: Padding = 0
) -> tuple[Array, Back]:
    """Kept for the backward pass is one byte for each number of y (four for kernels of more than 256 taps)."""
    how = slide("max_pool2d", x.shape[2:], kernel_size, kernel_size if stride is None else stride, padding)
    count = output_size("max_pool2d", x.shape[2:], how)
    size = x.shape[2:]
    taps = windows(surround(x, how, -np.inf), how, count)  # (B, C, Kh, Kw, Oh, Ow)
    y = taps[:, :, 0, 0].copy()
    for _, (i, j) in _taps(how):
        np.maximum(y, taps[:, :, i, j], out=y)  # a NaN stays
    taken = np.zeros(y.shape, "uint8" if prod(how.kernel) <= 256 else "int32")  # which tap, in reading order
    for number, (i, j) in reversed(list(_taps(how))):  # of equal ones the first is written last
        np.copyto(taken, number, where=taps[:, :, i, j] == y)
    nothing, unknown = y.real == -np.inf, np.isnan(y.real)
    if nothing.any():  # the padding is -inf as well, and must not be taken
        np.copyto(taken, np.asarray(_first_inside(how, count), taken.dtype), where=nothing)
    if unknown.any():  # a NaN equals nothing
        for number, (i, j) in _taps(how):
            np.copyto(taken, number, where=np.isnan(taps[:, :, i, j].real))

    @once
    def vjp(dy: Array) -> Array:
        return _fold(how, size, dy, lambda number: np.where(taken == number, dy, 0))

    return y, vjp


def _taps(how: Slide) -> Iterator[tuple[int, Size]]:
    """(number, (i, j)) of each tap in reading order."""
    return enumerate(product(range(how.kernel[0]), range(how.kernel[1])))


def _fold(how: Slide, size: Size, like: Array, gradient: Any) -> Array:
    """dx (B, C, H, W): the gradient (B, C, Oh, Ow) of each tap, by its number, added where the tap was read."""
    padded = np.zeros((*like.shape[:2], *how.padded(size)), like.dtype)
    view = windows(padded, how, (like.shape[2], like.shape[3]))  # (B, C, Kh, Kw, Oh, Ow)
    for number, (i, j) in _taps(how):
        view[:, :, i, j] += gradient(number)
    return inner(padded, how, size)


def _first_inside(how: Slide, count: Size) -> Array:
    """(Oh, Ow): the number of the first tap of each window that does not lie in the padding."""
    rows, columns = (np.maximum(how.before[axis] - how.stride[axis] * np.arange(count[axis]), 0) for axis in (0, 1))
    return rows[:, None] * how.kernel[1] + columns
