"""Many numbers to one: the mean over an axis, and the largest number or the mean of each window of a map.

Alphabet: B batch, C channels, H x W the map, Kh x Kw the kernel, Oh x Ow the places of the windows.
Derivation: docs/derivations/convolution.md. Next: `resize.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import prod
from typing import Any

import numpy as np

from minivit.backend import array_module
from minivit.functional.permutations import Size, pair
from minivit.functional.sliding import Padding, Slide, inner, places, slide, surround, windows
from minivit.protocol import Array, Back, once, refuse


def mean_pool(x: Array, axis: int = 1) -> tuple[Array, Back]:
    """y = mean of x over one axis; each of its n elements has weight 1/n.

    Args:
        x: (B, N, D) with axis=1, or any shape and axis.

    Returns:
        y (B, D), and vjp(dy) -> dx.

    Raises:
        ValueError: if the axis has length 0.
    """
    shape, count = x.shape, x.shape[axis]
    refuse(count == 0, f"mean_pool: axis {axis} of shape {shape} is empty, so it has no mean")
    y = x.sum(axis=axis)
    y *= 1 / count

    @once
    def vjp(dy: Array) -> Array:
        xp = array_module(dy)
        return xp.broadcast_to(xp.expand_dims(dy * (1 / count), axis), shape)

    return y, vjp


def max_pool2d(
    x: Array, kernel_size: int | Size, stride: int | Size | None = None, padding: Padding = 0
) -> tuple[Array, Back]:
    """y = the largest number of each window; its gradient goes to the number that was taken, and to no other.

    Of equal numbers the first in reading order is taken, as PyTorch does on a CPU. A NaN counts as the largest. What
    lies outside the map is never taken.

    Args:
        x: (B, C, H, W).
        kernel_size: Kh x Kw.
        stride: from one window to the next; None: the kernel, so that windows lie side by side.
        padding: at most half the kernel, so that each window has a number of the map; or "same", see `conv2d`.

    Returns:
        y (B, C, Oh, Ow), and vjp(dy) -> dx. What is kept is one byte for each number of y (four for large kernels).

    Raises:
        ValueError: if the kernel is larger than the padded map, or a setting is out of its range.
    """
    how, count = _check("max_pool2d", x, kernel_size, stride, padding)
    xp, size = array_module(x), x.shape[2:]
    taps = windows(surround(x, how, -np.inf), how, count)  # (B, C, Kh, Kw, Oh, Ow)
    y = taps[:, :, 0, 0].copy()
    for _, (i, j) in _taps(how):
        xp.maximum(y, taps[:, :, i, j], out=y)  # a NaN stays
    taken = xp.zeros(y.shape, "uint8" if prod(how.kernel) <= 256 else "int32")  # which tap, in reading order
    for number, (i, j) in reversed(list(_taps(how))):  # of equal ones the first is written last
        xp.copyto(taken, number, where=taps[:, :, i, j] == y)
    nothing, unknown = y.real == -np.inf, xp.isnan(y.real)
    if nothing.any():  # the padding is -inf as well, and must not be taken
        xp.copyto(taken, xp.asarray(_first_inside(how, count), taken.dtype), where=nothing)
    if unknown.any():  # a NaN equals nothing
        for number, (i, j) in _taps(how):
            xp.copyto(taken, number, where=xp.isnan(taps[:, :, i, j].real))

    @once
    def vjp(dy: Array) -> Array:
        return _fold(how, size, dy, lambda number: array_module(dy).where(taken == number, dy, 0))

    return y, vjp


def avg_pool2d(
    x: Array,
    kernel_size: int | Size,
    stride: int | Size | None = None,
    padding: Padding = 0,
    count_include_pad: bool = True,
) -> tuple[Array, Back]:
    """y = the mean of each window.

    Args:
        x: (B, C, H, W).
        kernel_size, stride, padding: as in `max_pool2d`.
        count_include_pad: the padding's zeros count as numbers (PyTorch's default); False: only the map's are averaged.

    Returns:
        y (B, C, Oh, Ow), and vjp(dy) -> dx.

    Raises:
        ValueError: as `max_pool2d`.
    """
    how, count = _check("avg_pool2d", x, kernel_size, stride, padding)
    xp, size = array_module(x), x.shape[2:]
    taps = windows(surround(x, how), how, count)  # (B, C, Kh, Kw, Oh, Ow)
    y = xp.zeros((*x.shape[:2], *count), x.dtype)
    for _, (i, j) in _taps(how):
        y += taps[:, :, i, j]
    if count_include_pad or not any(how.before + how.after):
        share: Any = 1 / prod(how.kernel)
    else:
        share = xp.asarray((1 / _numbers_inside(how, size, count)).astype(x.real.dtype))  # (Oh, Ow)
    y *= share

    @once
    def vjp(dy: Array) -> Array:
        dtap = dy * share
        return _fold(how, size, dtap, lambda number: dtap)

    return y, vjp


def adaptive_avg_pool2d(x: Array, output_size: int | Size) -> tuple[Array, Back]:
    """y = means of output_size cells that cover the map: cell u of O reaches from floor(u H / O) to ceil((u+1) H / O).

    The cells are of nearly equal size, and overlap by one row or column where O does not divide H. Size 1 is the mean
    of the whole map.

    Args:
        x: (B, C, H, W).
        output_size: Oh x Ow.

    Returns:
        y (B, C, Oh, Ow), and vjp(dy) -> dx.

    Raises:
        ValueError: if the map is empty, or the size below 1.
    """
    refuse(x.ndim != 4, f"adaptive_avg_pool2d: x must be (B, C, H, W), got shape {x.shape}")
    shape, count = x.shape, pair(output_size)
    refuse(
        min(shape[2:]) < 1 or min(count) < 1,
        f"adaptive_avg_pool2d: cannot average a map of {shape[2]}x{shape[3]} to {count[0]}x{count[1]}: both must be "
        "at least 1x1",
    )
    cells = list(product(_cells(shape[2], count[0]), _cells(shape[3], count[1])))  # in reading order
    y = array_module(x).empty((*shape[:2], len(cells)), x.dtype)
    for number, (rows, columns) in enumerate(cells):
        y[..., number] = x[:, :, rows, columns].mean(axis=(2, 3))

    @once
    def vjp(dy: Array) -> Array:
        dx = array_module(dy).zeros(shape, dy.dtype)
        dcells = dy.reshape(*shape[:2], len(cells))
        for number, (rows, columns) in enumerate(cells):
            area = (rows.stop - rows.start) * (columns.stop - columns.start)
            dx[:, :, rows, columns] += dcells[..., number, None, None] * (1 / area)
        return dx

    return y.reshape(*shape[:2], *count), vjp


# --- windows --------------------------------------------------------------------------------------------------------


def _check(name: str, x: Array, kernel_size: Any, stride: Any, padding: Any) -> tuple[Slide, Size]:
    refuse(x.ndim != 4, f"{name}: x must be (B, C, H, W), got shape {x.shape}")
    how = slide(name, x.shape[2:], kernel_size, kernel_size if stride is None else stride, padding)
    refuse(
        any(2 * zeros > length for zeros, length in zip(how.before, how.kernel)),
        f"{name}: padding {how.before} is more than half the kernel {how.kernel}, so some windows would hold nothing "
        "of the map: pad less",
    )
    return how, places(name, x.shape[2:], how)


def _taps(how: Slide) -> Iterator[tuple[int, Size]]:
    """(number, (i, j)) of each tap in reading order."""
    return enumerate(product(range(how.kernel[0]), range(how.kernel[1])))


def _fold(how: Slide, size: Size, like: Array, gradient: Any) -> Array:
    """dx (B, C, H, W): the gradient (B, C, Oh, Ow) of each tap, by its number, added where the tap was read."""
    padded = array_module(like).zeros((*like.shape[:2], *how.padded(size)), like.dtype)
    view = windows(padded, how, (like.shape[2], like.shape[3]))  # (B, C, Kh, Kw, Oh, Ow)
    for number, (i, j) in _taps(how):
        view[:, :, i, j] += gradient(number)
    return inner(padded, how, size)


def _first_inside(how: Slide, count: Size) -> Array:
    """(Oh, Ow): the number of the first tap of each window that does not lie in the padding."""
    rows, columns = (np.maximum(how.before[axis] - how.stride[axis] * np.arange(count[axis]), 0) for axis in (0, 1))
    return rows[:, None] * how.kernel[1] + columns


def _numbers_inside(how: Slide, size: Size, count: Size) -> Array:
    """(Oh, Ow): how many numbers of the map, and not of its padding, each window holds."""
    inside = []
    for axis in (0, 1):
        start = how.stride[axis] * np.arange(count[axis]) - how.before[axis]
        inside.append(np.minimum(start + how.kernel[axis], size[axis]) - np.maximum(start, 0))
    return inside[0][:, None] * inside[1]


def _cells(length: int, count: int) -> list[slice]:
    """`count` slices that cover `length` places."""
    return [slice(u * length // count, -(-(u + 1) * length // count)) for u in range(count)]
