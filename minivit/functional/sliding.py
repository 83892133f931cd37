"""Windows that slide over a map: the number of their positions, and their numbers as an array (`unfold`).

Convolution and pooling use both.

Notation: H x W the map, Kh x Kw the kernel, Oh x Ow the positions of a window; "..." stands for any leading axes
(batch, groups, channels). Tap (i, j) of a window is its number in row i and column j.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np

from minivit.device import array_module
from minivit.protocol import Array, Back, once
from minivit.sizes import Size, pair

Padding = int | Size | Literal["same"]


class Slide(NamedTuple):
    """How windows slide over one map, each as (height, width)."""

    kernel: Size  # taps of a window
    stride: Size  # from one window to the next
    before: Size  # zeros above and to the left of the map
    after: Size  # zeros below and to the right
    dilation: Size  # from one tap of a window to the next

    @property
    def reach(self) -> Size:
        """Rows and columns from the first tap of a window to its last."""
        return self.dilation[0] * (self.kernel[0] - 1), self.dilation[1] * (self.kernel[1] - 1)

    def padded(self, size: Size) -> Size:
        """Height and width of a map with its padding."""
        return self.before[0] + size[0] + self.after[0], self.before[1] + size[1] + self.after[1]


def slide(name: str, size: Size, kernel: Any, stride: Any, padding: Padding, dilation: Any = 1) -> Slide:
    """How windows slide over a map of height and width `size`, for the function `name`.

    Args:
        kernel, stride, dilation: each an integer or a pair.
        padding: zeros on both sides, a number or a pair; or "same": the zeros that give ceil(H / stride) x
            ceil(W / stride) positions, an odd one below and to the right. That is TensorFlow's rule; with stride
            1 PyTorch's padding="same" is a case of it.

    Raises:
        ValueError: if a kernel, stride or dilation is below 1, or a padding below 0.
    """
    if isinstance(padding, str) and padding != "same":
        raise ValueError(f"{name}: padding={padding!r}: give numbers, or 'same'")
    sides = pair(0 if padding == "same" else padding)
    how = Slide(pair(kernel), pair(stride), sides, sides, pair(dilation))
    for label, numbers, least in (
        ("kernel", how.kernel, 1),
        ("stride", how.stride, 1),
        ("padding", sides, 0),
        ("dilation", how.dilation, 1),
    ):
        if min(numbers) < least:
            raise ValueError(f"{name}: {label} {numbers} must be at least {least} in height and width")
    if padding != "same":
        return how
    # the last of ceil(size / stride) windows begins at (ceil(size / stride) - 1) stride, and must end in the padding
    lack = [max(0, (-(-size[a] // how.stride[a]) - 1) * how.stride[a] + how.reach[a] + 1 - size[a]) for a in (0, 1)]
    before = (lack[0] // 2, lack[1] // 2)
    return how._replace(before=before, after=(lack[0] - before[0], lack[1] - before[1]))


def output_size(name: str, size: Size, how: Slide) -> Size:
    """Oh x Ow: the number of positions of a window in a map of height and width `size` with its padding.

    Raises:
        ValueError: if the window is larger than the padded map.
    """
    padded = how.padded(size)
    room = (padded[0] - how.reach[0] - 1, padded[1] - how.reach[1] - 1)
    if min(room) < 0:
        raise ValueError(
            f"{name}: a kernel of {how.kernel[0]}x{how.kernel[1]} with dilation {how.dilation} reaches over "
            f"{how.reach[0] + 1}x{how.reach[1] + 1} pixels, more than the map's {size[0]}x{size[1]} with its padding "
            f"({padded[0]}x{padded[1]}): pad the map, or choose a smaller kernel or dilation"
        )
    return room[0] // how.stride[0] + 1, room[1] // how.stride[1] + 1


def surround(x: Array, how: Slide, value: float = 0.0) -> Array:
    """(..., H, W) -> the map with its padding, full of `value`; x itself if there is no padding."""
    if not any(how.before + how.after):
        return x
    *lead, height, width = x.shape
    wide = array_module(x).full((*lead, *how.padded((height, width))), value, x.dtype)
    inner(wide, how, (height, width))[...] = x
    return wide


def inner(x: Array, how: Slide, size: Size) -> Array:
    """A map with its padding -> (..., H, W), a view without the padding."""
    return x[..., how.before[0] : how.before[0] + size[0], how.before[1] : how.before[1] + size[1]]


def taps(how: Slide, count: Size) -> list[tuple[Any, slice, slice]]:
    """For each tap of the window, in reading order, the index (..., rows, columns) that it reads in the padded map."""

    def along(axis: int, tap: int) -> slice:
        start = tap * how.dilation[axis]
        return slice(start, start + (count[axis] - 1) * how.stride[axis] + 1, how.stride[axis])

    return [(..., along(0, i), along(1, j)) for i, j in np.ndindex(*how.kernel)]


def unfold(x: Array, how: Slide, count: Size, value: float = 0.0) -> tuple[Array, Back]:
    """(..., H, W) -> (..., Kh Kw, Oh, Ow): for each tap, the number that it reads at every position of the window.

    Args:
        value: of the padding.

    Returns:
        y, and vjp(dy) -> dx: a pixel that several windows read gets the sum of their gradients.
    """
    padded = surround(x, how, value)
    met = taps(how, count)
    y = array_module(x).empty((*x.shape[:-2], len(met), *count), x.dtype)
    for number, tap in enumerate(met):
        y[..., number, :, :] = padded[tap]
    shape, size = padded.shape, x.shape[-2:]

    @once
    def vjp(dy: Array) -> Array:
        dpadded = array_module(dy).zeros(shape, dy.dtype)
        for number, tap in enumerate(met):
            dpadded[tap] += dy[..., number, :, :]  # one tap reads no pixel twice
        return inner(dpadded, how, size)

    return y, vjp
