"""Randomness is an argument: `rng=None` means inference, a generator means training, and there is no hidden state.

Numbers are drawn on the host by default, so that a seed gives the same masks on CPU and GPU.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from minivit.argument_checks import check_generator
from minivit.device import array_module
from minivit.protocol import Array, Rng


class _Unset:
    """The class of `UNSET`."""

    def __repr__(self) -> str:
        return "UNSET"


# a seed for layers whose weights will be loaded: nothing is drawn, and their memory is not touched
UNSET = _Unset()


def as_generator(seed: Any) -> Any:
    """A NumPy generator from a seed, a tuple of integers, None (fresh entropy) or a generator (returned unchanged).

    `UNSET` is returned unchanged, too.
    """
    if seed is UNSET:
        return seed
    if isinstance(seed, int) and seed < 0:
        raise ValueError(f"seed={seed} must not be negative")
    return np.random.default_rng(seed)


def split_generator(rng: Rng, count: int) -> list[Any]:
    """`count` independent generators: one number drawn from `rng`, then one seed for each (draw, index)."""
    if rng is None:
        return [None] * count
    check_generator(rng)
    draw = int(rng.integers(2**63 - 1))
    return [np.random.default_rng((draw, index)) for index in range(count)]


def copy_generator(rng: Rng) -> Rng:
    """A generator in the same state, which draws the same numbers again. None stays None."""
    return copy.deepcopy(rng)


def keep_mask(rng: np.random.Generator, keep: float, shape: tuple[int, ...], like: Array) -> Array:
    """Independent draws that are True with probability `keep`, as a boolean array on the device of `like`."""
    draws = rng.random(shape, dtype=np.float32)
    return array_module(like).asarray(draws) < np.float32(keep)
