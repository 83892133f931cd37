"""Height and width, given as two numbers or as one for both."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

Size = tuple[int, int]  # height, width


def pair(size: Any) -> Size:
    """Height and width; a single number is both.

    Raises:
        ValueError: if it is neither an integer nor two.
    """
    sizes = size if isinstance(size, tuple | list) else (size, size)
    if len(sizes) != 2 or not (isinstance(sizes[0], int | np.integer) and isinstance(sizes[1], int | np.integer)):
        raise ValueError(f"{size!r} is no size: give an integer, or two for height and width")
    return int(sizes[0]), int(sizes[1])


def short(size: Iterable[int]) -> int | Size:
    """One number where height and width are equal, else both."""
    height, width = size
    return height if height == width else (height, width)
