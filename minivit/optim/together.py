"""What clipping and averaging do to all parameters: formulas, and on a GPU one or two launches instead of hundreds."""

from __future__ import annotations

from typing import Any

from minivit.fast.dispatch import accelerated
from minivit.protocol import Array


def sum_of_squares(*arrays: Array) -> Any:
    """The sum of the squares of all elements, of shape ()."""
    lines = [array.reshape(-1) for array in arrays]
    return sum(line @ line for line in lines)


def scale_all(*arrays: Array, factor: float) -> None:
    """Multiply every array by a number, in place."""
    for array in arrays:
        array *= factor


def average_all(*arrays: Array, decay: float) -> None:
    """average <- decay * average + (1 - decay) * weights, in place: first all averages, then as many weights."""
    count = len(arrays) // 2
    for average, weights in zip(arrays[:count], arrays[count:]):
        average *= decay
        average += (1 - decay) * weights


squared_norm = accelerated(sum_of_squares)
scale = accelerated(scale_all)
average = accelerated(average_all)
