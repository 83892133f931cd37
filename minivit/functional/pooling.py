"""Pooling: the mean over an axis, and the largest number or the mean of each window of a map.

Notation: B batch, C channels, H x W the map, Kh x Kw the kernel, Oh x Ow the positions of the windows.
Derivation: docs/derivations/convolution.md.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np

from minivit.device import array_module
from minivit.functional.sliding import Padding, Slide, output_size, slide, unfold
from minivit.protocol import Array, Back, once
from minivit.sizes import Size, pair


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
    y = x.sum(axis=axis) * (1 / count)

    @once
    def vjp(dy: Array) -> Array:
        xp = array_module(dy)
        return xp.broadcast_to(xp.expand_dims(dy * (1 / count), axis), shape)

    return y, vjp


def check_mean_pool(x: Array, axis: int = 1) -> None:
    if x.shape[axis] == 0:
        raise ValueError(f"mean_pool: axis {axis} of shape {x.shape} is empty, so it has no mean")


def max_pool2d(
    x: Array, kernel_size: int | Size, stride: int | Size | None = None, padding: Padding = 0
) -> tuple[Array, Back]:
    """y = the largest number of each window; only that number gets its gradient.

    Of equal numbers the first in reading order is taken, as PyTorch does on a CPU. A NaN counts as the largest; of
    several the first is taken (PyTorch: the last). Padding is -inf, so it is taken only where the window holds
    no other number.

    Args:
        x: (B, C, H, W).
        kernel_size: Kh x Kw.
        stride: from one window to the next; None: the kernel, so that windows do not overlap.
        padding: at most half the kernel, so that each window overlaps the map; or "same", see `conv2d`.

    Returns:
        y (B, C, Oh, Ow), and vjp(dy) -> dx.

    Raises:
        ValueError: if the kernel is larger than the padded map, or a setting is out of its range.
    """
    xp = array_module(x)
    how, size = _slide("max_pool2d", x, kernel_size, stride, padding)
    windows, back_unfold = unfold(x, how, size, -np.inf)  # (B, C, Kh Kw, Oh, Ow)
    taken = windows.real.argmax(axis=2)[:, :, None]  # (B, C, 1, Oh, Ow)
    y = xp.take_along_axis(windows, taken, axis=2)[:, :, 0]

    @once
    def vjp(dy: Array) -> Array:
        one_hot = taken == xp.arange(windows.shape[2])[:, None, None]
        return back_unfold(one_hot * dy[:, :, None])

    return y, vjp


def check_max_pool2d(x: Array, kernel_size: int | Size, stride: int | Size | None = None, padding: Padding = 0) -> None:
    _check_windows("max_pool2d", x, kernel_size, stride, padding)


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
        count_include_pad: average the padding's zeros too (PyTorch's default); False: only the map's numbers.

    Returns:
        y (B, C, Oh, Ow), and vjp(dy) -> dx.

    Raises:
        ValueError: as `max_pool2d`.
    """
    xp = array_module(x)
    how, size = _slide("avg_pool2d", x, kernel_size, stride, padding)
    windows, back_unfold = unfold(x, how, size)  # (B, C, Kh Kw, Oh, Ow)
    inside, _ = unfold(xp.ones(x.shape[2:], x.real.dtype), how, size, 1.0 if count_include_pad else 0.0)
    share = 1 / inside.sum(axis=0)  # (Oh, Ow): of one number in the mean of its window
    y = windows.sum(axis=2) * share

    @once
    def vjp(dy: Array) -> Array:
        return back_unfold(xp.broadcast_to((dy * share)[:, :, None], windows.shape))

    return y, vjp


def check_avg_pool2d(
    x: Array,
    kernel_size: int | Size,
    stride: int | Size | None = None,
    padding: Padding = 0,
    count_include_pad: bool = True,
) -> None:
    _check_windows("avg_pool2d", x, kernel_size, stride, padding)


def adaptive_avg_pool2d(x: Array, output_size: int | Size) -> tuple[Array, Back]:
    """y = means of output_size cells that cover the map: cell u of O reaches from floor(u H / O) to ceil((u+1) H / O).

    The cells are of nearly equal size, and overlap by one row or column where O does not divide H. Size 1 is the mean
    of the map.

    Args:
        x: (B, C, H, W).
        output_size: Oh x Ow.

    Returns:
        y (B, C, Oh, Ow), and vjp(dy) -> dx.

    Raises:
        ValueError: if the map is empty, or the size below 1.
    """
    shape, count = x.shape, pair(output_size)
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


def check_adaptive_avg_pool2d(x: Array, output_size: int | Size) -> None:
    if x.ndim != 4:
        raise ValueError(f"adaptive_avg_pool2d: x must be (B, C, H, W), got shape {x.shape}")
    count = pair(output_size)
    if min(x.shape[2:]) < 1 or min(count) < 1:
        raise ValueError(
            f"adaptive_avg_pool2d: cannot average a map of {x.shape[2]}x{x.shape[3]} to {count[0]}x{count[1]}: both "
            "must be at least 1x1"
        )


def _cells(length: int, count: int) -> list[slice]:
    """`count` slices that cover `length` pixels."""
    return [slice(u * length // count, -(-(u + 1) * length // count)) for u in range(count)]


def _slide(name: str, x: Array, kernel_size: Any, stride: Any, padding: Any) -> tuple[Slide, Size]:
    how = slide(name, x.shape[2:], kernel_size, kernel_size if stride is None else stride, padding)
    return how, output_size(name, x.shape[2:], how)


def _check_windows(name: str, x: Array, kernel_size: Any, stride: Any, padding: Any) -> None:
    if x.ndim != 4:
        raise ValueError(f"{name}: x must be (B, C, H, W), got shape {x.shape}")
    how, _ = _slide(name, x, kernel_size, stride, padding)
    if any(2 * zeros > length for zeros, length in zip(how.before, how.kernel)):
        raise ValueError(
            f"{name}: padding {how.before} is more than half the kernel {how.kernel}, so some windows would hold "
            "nothing of the map: pad less"
        )
