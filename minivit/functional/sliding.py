"""Windows that slide over a map: at how many places they fit, and all of them as one strided view.

Convolution and pooling both read maps in this way. Next: `convolution.py`.

Alphabet: H x W the map, Kh x Kw the kernel, Oh x Ow the places at which a window can lie; "..." stands for any leading
axes (batch, groups, channels). Tap (i, j) of a window is its number in row i and column j.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from minivit.backend import array_module
from minivit.functional.permutations import Size, pair
from minivit.protocol import Array, refuse


class Slide(NamedTuple):
    """How windows slide, each as (height, width): their size, the step, zeros around the map, the gap between taps."""

    kernel: Size
    stride: Size
    padding: Size
    dilation: Size

    @property
    def reach(self) -> Size:
        """Rows and columns from the first tap of a window to its last."""
        return self.dilation[0] * (self.kernel[0] - 1), self.dilation[1] * (self.kernel[1] - 1)


def slide(name: str, kernel: Any, stride: Any, padding: Any, dilation: Any = 1) -> Slide:
    """The settings of the function `name`, each a whole number or a pair.

    Raises:
        ValueError: if a kernel, stride or dilation is below 1, or a padding below 0.
    """
    how = Slide(pair(kernel), pair(stride), pair(padding), pair(dilation))
    for label, size, least in zip(how._fields, how, (1, 1, 0, 1)):
        refuse(min(size) < least, f"{name}: {label} {size} must be at least {least} in height and width")
    return how


def places(name: str, size: Size, how: Slide) -> Size:
    """Oh x Ow: at how many places a window fits into a map of height and width `size` with its padding.

    Raises:
        ValueError: if it fits nowhere.
    """
    room = [size[axis] + 2 * how.padding[axis] - how.reach[axis] - 1 for axis in (0, 1)]
    refuse(
        min(room) < 0,
        f"{name}: a kernel of {how.kernel[0]}x{how.kernel[1]} with dilation {how.dilation} reaches over "
        f"{how.reach[0] + 1}x{how.reach[1] + 1} pixels, more than the map's {size[0]}x{size[1]} with padding "
        f"{how.padding}: pad the map, or choose a smaller kernel or dilation",
    )
    return room[0] // how.stride[0] + 1, room[1] // how.stride[1] + 1


def surround(x: Array, padding: Size, value: float = 0.0) -> Array:
    """(..., H, W) -> (..., H + 2 ph, W + 2 pw) with `value` on all four sides; x itself if there is no padding."""
    if not any(padding):
        return x
    *lead, height, width = x.shape
    wide = array_module(x).full((*lead, height + 2 * padding[0], width + 2 * padding[1]), value, x.dtype)
    inner(wide, padding, (height, width))[...] = x
    return wide


def inner(x: Array, padding: Size, size: Size) -> Array:
    """(..., H + 2 ph, W + 2 pw) -> (..., H, W), a view: what `surround` put in the middle."""
    return x[..., padding[0] : padding[0] + size[0], padding[1] : padding[1] + size[1]]


def windows(x: Array, how: Slide, count: Size) -> Array:
    """(..., H, W), already padded -> (..., Kh, Kw, Oh, Ow): view[..., i, j, u, v] = x[..., s u + d i, s v + d j].

    A view, because the address of an element is a sum of index times stride: a step from one place to the next is s
    rows, a step from one tap to the next d rows, and likewise columns. Windows overlap, so one number of x stands in
    many places of the view. For one tap (i, j), all places are different numbers: there, `+=` is safe.
    """
    *lead, down, right = x.strides  # bytes from one element to the next
    taps = (how.dilation[0] * down, how.dilation[1] * right)
    steps = (how.stride[0] * down, how.stride[1] * right)
    shape = (*x.shape[:-2], *how.kernel, *count)
    return array_module(x).lib.stride_tricks.as_strided(x, shape, (*lead, *taps, *steps))
