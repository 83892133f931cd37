"""All windows of a map as one strided view, without a copy."""

from __future__ import annotations

import numpy as np

from minivit.functional.sliding import Slide
from minivit.protocol import Array
from minivit.sizes import Size


def windows(x: Array, how: Slide, count: Size) -> Array:
    """(..., H, W), already padded -> (..., Kh, Kw, Oh, Ow): view[..., i, j, u, v] = x[..., s u + d i, s v + d j].

    A view, because the address of an element is a sum of index times stride: a step from one position to the next is s
    rows, a step from one tap to the next d rows, and likewise columns. Windows overlap, so one number of x has
    many positions in the view. For one tap (i, j), all positions are different numbers: there, `+=` is safe.
    """
    *lead, down, right = x.strides  # bytes from one element to the next
    taps = (how.dilation[0] * down, how.dilation[1] * right)
    steps = (how.stride[0] * down, how.stride[1] * right)
    shape = (*x.shape[:-2], *how.kernel, *count)
    return np.lib.stride_tricks.as_strided(x, shape, (*lead, *taps, *steps))
