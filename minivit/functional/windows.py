"""Windows of a feature map, the cyclic shift between blocks, and the mask of the windows that the shift creates.

Each is a permutation, some with zeros appended first; its backward pass is the inverse.

Notation: B batch, H x W the map, C channels, Mh x Mw a window, nW windows of one map, N = Mh Mw pixels of a window.
Windows are channels last, as in Swin's code (Liu et al. 2021).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from minivit.device import array_module
from minivit.protocol import Array, Back, compose, permutation
from minivit.sizes import Size, pair


def window_partition(x: Array, window_size: int | Size) -> tuple[Array, Back]:
    """(B, H, W, C) -> (B nW, Mh, Mw, C): the map split into windows, in reading order, sample after sample.

    Raises:
        ValueError: if the window does not divide the map (`pad` makes it fit).
    """
    window = pair(window_size)
    height, width = x.shape[1:3]
    return permutation(x, lambda a: _cut(a, window), lambda a: _glue(a, height, width))


def check_window_partition(x: Array, window_size: int | Size) -> None:
    _check_map("window_partition", x)
    _check_window(x.shape[1:3], pair(window_size))


def window_reverse(windows: Array, window_size: int | Size, height: int, width: int) -> tuple[Array, Back]:
    """(B nW, Mh, Mw, C) -> (B, H, W, C): the inverse of `window_partition`."""
    window = pair(window_size)
    return permutation(windows, lambda a: _glue(a, height, width), lambda a: _cut(a, window))


def check_window_reverse(windows: Array, window_size: int | Size, height: int, width: int) -> None:
    window = pair(window_size)
    _check_window((height, width), window)
    count = (height // window[0]) * (width // window[1])
    if windows.ndim != 4 or windows.shape[1:3] != window or windows.shape[0] % count:
        raise ValueError(
            f"window_reverse: shape {windows.shape} is not (B * {count}, {window[0]}, {window[1]}, C), "
            f"the windows of maps of {height}x{width}"
        )


def roll(x: Array, shift: Size, axis: Size = (1, 2)) -> tuple[Array, Back]:
    """y[i] = x[i - shift] along two axes; indices wrap around. Its inverse is roll(-shift).

    Swin's cyclic shift is roll(x, (-s, -s)): the pixel s further right and down moves here.

    Derivation: docs/derivations/windows.md.
    """
    opposite = (-shift[0], -shift[1])
    return permutation(x, lambda a: _roll(a, shift, axis), lambda a: _roll(a, opposite, axis))


def check_roll(x: Array, shift: Size, axis: Size = (1, 2)) -> None:
    _axis_lengths("roll", x, axis)


def pad(x: Array, size: Size, axis: Size = (1, 2)) -> tuple[Array, Back]:
    """Zeros appended at the end of two axes (right and bottom), so that they have lengths `size`; vjp crops."""
    start = (x.shape[axis[0]], x.shape[axis[1]])
    return permutation(x, lambda a: _grow(a, size, axis), lambda a: _shrink(a, start, axis))


def check_pad(x: Array, size: Size, axis: Size = (1, 2)) -> None:
    start = _axis_lengths("pad", x, axis)
    if size[0] < start[0] or size[1] < start[1]:
        raise ValueError(f"pad: size {size} is smaller than the map's {start}")


def crop(x: Array, size: Size, axis: Size = (1, 2)) -> tuple[Array, Back]:
    """The first `size` entries of two axes, the inverse of `pad`; vjp appends zeros for the entries cut off."""
    start = (x.shape[axis[0]], x.shape[axis[1]])
    return permutation(x, lambda a: _shrink(a, size, axis), lambda a: _grow(a, start, axis))


def check_crop(x: Array, size: Size, axis: Size = (1, 2)) -> None:
    start = _axis_lengths("crop", x, axis)
    if not (0 <= size[0] <= start[0] and 0 <= size[1] <= start[1]):
        raise ValueError(f"crop: size {size} must lie between 0 and the map's {start}")


# --- all moves of one block together ---------------------------------------------------------------------------------


def shifted_windows(
    x: Array, window_size: int | Size, shift: Size, size: Size, pad_first: bool = True
) -> tuple[Array, Back]:
    """(B, H, W, C) -> (B nW, Mh, Mw, C): the map padded to `size`, rolled up and left by `shift`, and partitioned.

    Args:
        window_size: Mh x Mw, which divides `size`.
        shift: (sh, sw), each from 0 to below the window.
        size: H' x W' of the padded map.
        pad_first: pad, then roll; False: roll, then pad.

    Raises:
        ValueError: if the window does not divide `size`, or `size` is smaller than the map.
    """
    window = pair(window_size)
    steps = [lambda a: pad(a, size), lambda a: roll(a, (-shift[0], -shift[1]))]
    return compose(x, *(steps if pad_first else steps[::-1]), lambda a: window_partition(a, window))


def check_shifted_windows(x: Array, window_size: int | Size, shift: Size, size: Size, pad_first: bool = True) -> None:
    _check_map("shifted_windows", x)
    check_pad(x, size)
    _check_shift("shifted_windows", size, pair(window_size), shift)


def shifted_windows_reverse(
    windows: Array, window_size: int | Size, shift: Size, size: Size, real: Size, pad_first: bool = True
) -> tuple[Array, Back]:
    """(B nW, Mh, Mw, C) -> (B, H, W, C): the inverse of `shifted_windows`, for a map of height and width `real`."""
    window = pair(window_size)
    steps = [lambda a: roll(a, shift), lambda a: crop(a, real)]
    return compose(windows, lambda a: window_reverse(a, window, *size), *(steps if pad_first else steps[::-1]))


def check_shifted_windows_reverse(
    windows: Array, window_size: int | Size, shift: Size, size: Size, real: Size, pad_first: bool = True
) -> None:
    check_window_reverse(windows, window_size, *size)
    _check_shift("shifted_windows_reverse", size, pair(window_size), shift)
    if not (0 < real[0] <= size[0] and 0 < real[1] <= size[1]):
        raise ValueError(f"shifted_windows_reverse: the map's {real} must lie between 1 and the padded {size}")


# --- which pixels of a window attend to each other -------------------------------------------------------------------


def shift_regions(size: Size, window_size: int | Size, shift: Size) -> Array:
    """(H, W) labels of a map after its cyclic shift: pixels with equal labels were neighbors before it.

    The shift brings the first `shift` rows to the bottom, so the last row of windows holds rows from both ends
    of the map; likewise columns. So each axis has three bands: windows without a seam, then the last window before the
    seam and after it; the labels 0 to 8 number the pairs of bands. An axis that is not shifted is one band. So
    size (4, 4), window 2 and shift (1, 1) give rows 0012, 0012, 3345, 6678.

    Source: Liu et al. 2021, section 3.2, figure 4.
    """
    window = pair(window_size)
    rows, columns = (_bands(size[axis], window[axis], shift[axis]) for axis in (0, 1))
    return 3 * rows[:, None] + columns[None, :]


def shift_mask(size: Size, window_size: int | Size, shift: Size, real: Size | None = None) -> Array | None:
    """(nW, N, N) booleans, read-only: True where a pixel of a window may attend to another of the same window.

    Args:
        size: H x W of the padded map.
        window_size: Mh x Mw.
        shift: how far the map was rolled up and left.
        real: height and width of the map before padding, to keep padded pixels apart from real ones; None lets
            every query attend to padded pixels, as the published models do.

    Returns:
        None where every pixel may attend to every other: no shift, and no padding to hide.
    """
    return _shift_mask(pair(size), pair(window_size), pair(shift), None if real is None else pair(real))


@lru_cache(maxsize=16)  # a network needs the same few masks at every step; those of huge maps take megabytes
def _shift_mask(size: Size, window: Size, shift: Size, real: Size | None) -> Array | None:
    if not any(shift) and real in (None, size):
        return None
    regions = shift_regions(size, window, shift)
    if real is not None:
        padded = np.ones(size, np.int64)
        padded[: real[0], : real[1]] = 0
        regions = regions + 9 * np.roll(padded, (-shift[0], -shift[1]), (0, 1))
    labels = _cut(regions[None, :, :, None], window).reshape(-1, window[0] * window[1])  # (nW, N)
    mask = labels[:, :, None] == labels[:, None, :]
    mask.setflags(write=False)
    return mask


def _bands(length: int, window: int, shift: int) -> Array:
    """(length,): 0 before the last window, 1 in it before the seam, 2 after the seam; all 0 without a shift."""
    if length % window or not 0 <= shift < window:
        raise ValueError(
            f"shift_regions: window {window} must divide the map's {length}, and shift {shift} lie below the window"
        )
    row = np.arange(length)
    return (row >= length - window).astype(np.int64) + (row >= length - shift) if shift else 0 * row


# --- the moves ------------------------------------------------------------------------------------------------------


def _roll(x: Array, shift: Size, axis: Size) -> Array:
    return array_module(x).roll(x, shift, axis) if any(shift) else x


def _cut(x: Array, window: Size) -> Array:
    batch, height, width, channels = x.shape
    rows, columns = height // window[0], width // window[1]
    cut = x.reshape(batch, rows, window[0], columns, window[1], channels)  # (B, H/Mh, Mh, W/Mw, Mw, C)
    return cut.transpose(0, 1, 3, 2, 4, 5).reshape(batch * rows * columns, *window, channels)


def _glue(windows: Array, height: int, width: int) -> Array:
    count, mh, mw, channels = windows.shape
    rows, columns = height // mh, width // mw
    batch = count // (rows * columns)
    cut = windows.reshape(batch, rows, columns, mh, mw, channels)  # (B, H/Mh, W/Mw, Mh, Mw, C)
    return cut.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height, width, channels)


def _grow(x: Array, size: Size, axis: Size) -> Array:
    shape = list(x.shape)
    shape[axis[0]], shape[axis[1]] = size
    if tuple(shape) == x.shape:
        return x
    grown = array_module(x).zeros(shape, x.dtype)
    grown[_first(x.ndim, (x.shape[axis[0]], x.shape[axis[1]]), axis)] = x
    return grown


def _shrink(x: Array, size: Size, axis: Size) -> Array:
    return x[_first(x.ndim, size, axis)]


def _first(ndim: int, size: Size, axis: Size) -> tuple[slice, ...]:
    """The index of the first size[0] and size[1] entries of two axes."""
    index = [slice(None)] * ndim
    index[axis[0]], index[axis[1]] = slice(size[0]), slice(size[1])
    return tuple(index)


def _check_shift(name: str, size: Size, window: Size, shift: Size) -> None:
    _check_window(size, window)
    if not all(0 <= step < side for step, side in zip(shift, window)):
        raise ValueError(f"{name}: shift {shift} must lie from 0 to below the window {window}")


def _check_map(name: str, x: Array) -> None:
    if x.ndim != 4:
        raise ValueError(f"{name}: the map must be (B, H, W, C), got shape {x.shape}")


def _axis_lengths(name: str, x: Array, axis: Size) -> Size:
    """The lengths of two axes, which must exist."""
    if not all(-x.ndim <= each < x.ndim for each in axis):
        raise ValueError(f"{name}: an array of shape {x.shape} has no axes {axis}")
    return x.shape[axis[0]], x.shape[axis[1]]


def _check_window(size: tuple[int, ...], window: Size) -> None:
    if min(window) < 1 or min(size) < 1 or size[0] % window[0] or size[1] % window[1]:
        raise ValueError(
            f"a map of {size[0]}x{size[1]} cannot be cut into windows of {window[0]}x{window[1]}: pad it to a multiple"
        )
