"""Initial weights: the distributions from which ViT and Swin are initialized.

Samples are drawn in float64 on the host and cast, so that a seed gives the same weights in every dtype and on every
device. With `UNSET` instead of a generator, arrays are left uninitialized, for weights that will be loaded.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from minivit.protocol import Array
from minivit.random import UNSET

MODEL_DTYPES = (np.dtype(np.float32), np.dtype(np.float64))  # the dtypes of parameters


def dtype_of(dtype: Any) -> Any:
    """float32 or float64 as a NumPy dtype; anything else is refused."""
    try:
        found = np.dtype(dtype)
    except TypeError:
        found = None
    if found is None or found not in MODEL_DTYPES:  # NumPy holds None equal to float64
        raise ValueError(f"dtype={dtype!r}: choose 'float32' or 'float64'")
    return found


def trunc_normal(rng: Any, shape: tuple[int, ...], std: float, dtype: Any) -> Array:
    """Normal draws of standard deviation `std`, redrawn beyond two deviations, as in JAX.

    PyTorch's trunc_normal_ truncates at +-2 absolute, which has no effect at std 0.02.
    """
    if rng is UNSET:
        return np.empty(shape, dtype)
    draws = rng.standard_normal(shape)
    while (far := np.abs(draws) > 2).any():
        draws[far] = rng.standard_normal(int(far.sum()))
    return (draws * std).astype(dtype)


def normal(rng: Any, shape: tuple[int, ...], std: float, dtype: Any) -> Array:
    """Normal draws of standard deviation `std`."""
    return np.empty(shape, dtype) if rng is UNSET else (rng.standard_normal(shape) * std).astype(dtype)


def xavier_uniform(rng: Any, shape: tuple[int, ...], dtype: Any) -> Array:
    """Uniform in +-sqrt(6 / (fan_in + fan_out)) for a weight (out, in) (Glorot and Bengio 2010)."""
    return _uniform(rng, shape, (6 / (shape[0] + prod(shape[1:]))) ** 0.5, dtype)


def lecun_normal(rng: Any, shape: tuple[int, ...], dtype: Any) -> Array:
    """Truncated normal of variance 1 / fan_in for a weight (out, in, ...), as Flax draws the patch convolution.

    0.8796 is the standard deviation of a unit normal truncated at two deviations.
    """
    return trunc_normal(rng, shape, prod(shape[1:]) ** -0.5 / 0.87962566103423978, dtype)


def conv_uniform(rng: Any, shape: tuple[int, ...], fan_in: int, dtype: Any) -> Array:
    """Uniform in +-1/sqrt(fan_in): PyTorch's default for a convolution and its bias."""
    return _uniform(rng, shape, fan_in**-0.5, dtype)


def _uniform(rng: Any, shape: tuple[int, ...], bound: float, dtype: Any) -> Array:
    return np.empty(shape, dtype) if rng is UNSET else rng.uniform(-bound, bound, shape).astype(dtype)


def zeros(shape: tuple[int, ...], dtype: Any) -> Array:
    return np.zeros(shape, dtype)


def ones(shape: tuple[int, ...], dtype: Any) -> Array:
    return np.ones(shape, dtype)
