"""Noise for training: dropout of single elements, and drop_path, which drops a sample's residual branch.

Both divide the kept elements by the probability of keeping them, so the expected value is the input and inference needs
no correction. Without a generator (`rng=None`) both are the identity, and return the given array itself. `residual` is
the connection at which a block adds such a branch.
"""

from __future__ import annotations

from minivit.protocol import Array, Back, Rng, once
from minivit.random import keep_mask


def dropout(x: Array, rate: float, rng: Rng = None) -> tuple[Array, Back]:
    """y = x * m, each element of m being 0 with probability `rate`, else 1/(1 - rate).

    Args:
        x: any shape.
        rate: in [0, 1).
        rng: a generator (training) or None (inference: y is x).

    Returns:
        y of x's shape, and vjp(dy) -> dx.

    Raises:
        ValueError: for a rate outside [0, 1).

    Source: Srivastava et al. 2014. Derivation: docs/derivations/dropout.md.
    """
    return _times(x, dropout_factor(rng, rate, x.shape, x))


def check_dropout(x: Array, rate: float, rng: Rng = None) -> None:
    check_rate("dropout", rate)


def drop_path(x: Array, rate: float, rng: Rng = None) -> tuple[Array, Back]:
    """y = x * m with one m for each sample: stochastic depth (Huang et al. 2016), scaled as in timm.

    Args:
        x: (B, ...), usually the output of a residual branch.
        rate: in [0, 1).
        rng: a generator (training) or None (inference: y is x).

    Returns:
        y of x's shape, and vjp(dy) -> dx.

    Raises:
        ValueError: for a rate outside [0, 1).
    """
    return _times(x, dropout_factor(rng, rate, (len(x),) + (1,) * (x.ndim - 1), x))  # m (B, 1, ...)


def check_drop_path(x: Array, rate: float, rng: Rng = None) -> None:
    check_rate("drop_path", rate)


def residual(x: Array, branch: Array, rate: float = 0.0, rng: Rng = None) -> tuple[Array, Back]:
    """y = x + drop_path(branch): a residual connection whose branch is dropped for whole samples.

    Args:
        x: (B, ...).
        branch: of x's shape.
        rate: of drop path, in [0, 1).
        rng: a generator (training) or None (inference: y is x + branch).

    Returns:
        y of x's shape, and vjp(dy) -> (dx, dbranch).

    Raises:
        ValueError: for a rate outside [0, 1), or two shapes.

    Sources: He et al. 2016, equation 1; Huang et al. 2016, equation 2, scaled as in timm.
    """
    dropped, back_drop = drop_path(branch, rate, rng)  # the branch itself at rate 0, and in inference

    @once
    def vjp(dy: Array) -> tuple[Array, Array]:
        return dy, back_drop(dy)

    return x + dropped, vjp


def check_residual(x: Array, branch: Array, rate: float = 0.0, rng: Rng = None) -> None:
    check_rate("drop_path", rate)
    if x.shape != branch.shape:
        raise ValueError(f"residual: the branch must have the shape of x, {x.shape}, got {branch.shape}")


def check_rate(name: str, rate: float) -> None:
    """Refuse a rate outside [0, 1)."""
    if not 0 <= rate < 1:
        raise ValueError(f"{name} rate must lie in [0, 1), got {rate}")


def dropout_factor(rng: Rng, rate: float, shape: tuple[int, ...], like: Array) -> Array | None:
    """m, on the device and in the dtype of `like`; None where nothing is dropped."""
    if rng is None or rate == 0:
        return None
    factor = keep_mask(rng, 1 - rate, shape, like).astype(like.dtype) * (1 / (1 - rate))
    return factor.astype(like.dtype, copy=False)  # bfloat16 times a number of Python's is float32


def _times(x: Array, factor: Array | None) -> tuple[Array, Back]:
    @once
    def vjp(dy: Array) -> Array:
        return dy if factor is None else dy * factor

    return (x if factor is None else x * factor), vjp
