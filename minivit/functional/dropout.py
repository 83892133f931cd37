"""Noise for training: dropout of single numbers, and drop_path, which drops a whole residual branch of a sample.

Both divide what stays by the probability of staying, so that the expected value is the input and inference needs no
correction. Without a generator (`rng=None`) both are the identity. Next: `attention.py`.
"""

from __future__ import annotations

from typing import Any

from minivit.backend import keep_mask
from minivit.protocol import Array, Back, once, refuse


def dropout(x: Array, rate: float, rng: Any = None) -> tuple[Array, Back]:
    """y = x * m, each m being 0 with probability `rate`, else 1/(1 - rate).

    Args:
        x: any shape.
        rate: in [0, 1).
        rng: a generator (training) or None (inference: y is x).

    Returns:
        y of x's shape, and vjp(dy) -> dx.

    Source: Srivastava et al. 2014.
    """
    return _times(x, dropout_factor(rng, rate, x))


def drop_path(x: Array, rate: float, rng: Any = None) -> tuple[Array, Back]:
    """y = x * m with one m for each sample: stochastic depth (Huang et al. 2016), scaled as in timm.

    Args:
        x: (B, ...), usually the output of a residual branch.
        rate: in [0, 1).
        rng: a generator (training) or None (inference: y is x).

    Returns:
        y of x's shape, and vjp(dy) -> dx.
    """
    refuse(not 0 <= rate < 1, f"drop_path rate must lie in [0, 1), got {rate}")
    if rng is None or rate == 0:
        return _times(x, None)
    shape = (x.shape[0],) + (1,) * (x.ndim - 1)  # (B, 1, ...)
    return _times(x, keep_mask(rng, 1 - rate, shape, x).astype(x.dtype) * (1 / (1 - rate)))


def dropout_factor(rng: Any, rate: float, like: Array) -> Array | None:
    """What dropout multiplies an array with: 0 with probability `rate`, else 1/(1 - rate); None for nothing."""
    refuse(not 0 <= rate < 1, f"dropout rate must lie in [0, 1), got {rate}")
    if rng is None or rate == 0:
        return None
    return keep_mask(rng, 1 - rate, like.shape, like).astype(like.dtype) * (1 / (1 - rate))


def _times(x: Array, factor: Array | None) -> tuple[Array, Back]:
    @once
    def vjp(dy: Array) -> Array:
        return dy if factor is None else dy * factor

    return (x if factor is None else x * factor), vjp
