"""Max pooling: the maximum first, then its index, in half the time of an argmax."""

from __future__ import annotations

import numpy as np

from minivit.functional.sliding import Padding, Slide, inner, output_size, slide, surround, taps
from minivit.protocol import Array, Back, once
from minivit.sizes import Size


def max_pool2d(
    x: Array, kernel_size: int | Size, stride: int | Size | None = None, padding: Padding = 0
) -> tuple[Array, Back]:
    """The backward pass keeps one byte for each number of y (four for kernels of more than 256 taps)."""
    how = slide("max_pool2d", x.shape[2:], kernel_size, kernel_size if stride is None else stride, padding)
    count = output_size("max_pool2d", x.shape[2:], how)
    size, met = x.shape[2:], taps(how, count)
    padded = surround(x, how, -np.inf)
    y = padded[met[0]].copy()  # (B, C, Oh, Ow)
    for tap in met[1:]:
        np.maximum(y, padded[tap], out=y)  # a NaN stays
    taken = np.zeros(y.shape, "uint8" if len(met) <= 256 else "int32")  # which tap, in reading order
    for number in reversed(range(len(met))):  # the first of equal numbers is written last
        np.copyto(taken, number, where=padded[met[number]] == y)
    nothing, unknown = y.real == -np.inf, np.isnan(y.real)
    if nothing.any():  # the padding is -inf as well, and must not be taken
        np.copyto(taken, np.asarray(_first_inside(how, count), taken.dtype), where=nothing)
    if unknown.any():  # a NaN equals nothing
        for number in reversed(range(len(met))):
            np.copyto(taken, number, where=np.isnan(padded[met[number]].real))
    shape = padded.shape

    @once
    def vjp(dy: Array) -> Array:
        dpadded = np.zeros(shape, dy.dtype)
        for number, tap in enumerate(met):
            dpadded[tap] += np.where(taken == number, dy, 0)  # one tap meets no pixel twice
        return inner(dpadded, how, size)

    return y, vjp


def _first_inside(how: Slide, count: Size) -> Array:
    """(Oh, Ow): the number of the first tap of each window that does not lie in the padding."""
    rows, columns = (np.maximum(how.before[axis] - how.stride[axis] * np.arange(count[axis]), 0) for axis in (0, 1))
    return rows[:, None] * how.kernel[1] + columns
