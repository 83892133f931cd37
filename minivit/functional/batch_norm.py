"""BatchNorm: each channel of a map normalized by the batch's mean and variance, or by given statistics.

These functions keep no state: statistics are arguments, and `batch_statistics` computes them.

Notation: B batch, C channels, S pixels of the map (all axes after the second), n = B S numbers of a channel.
"""

from __future__ import annotations

from math import prod

from minivit.functional.norm import by_channel, check_channels, layer_norm, scale_and_shift
from minivit.protocol import Array, Back, once


def batch_norm(
    x: Array,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
) -> tuple[Array, Back]:
    """y = (x - mean) / sqrt(variance + eps) * weight + bias, channel by channel.

    Args:
        x: (B, C, ...), such as (B, C, H, W).
        running_mean, running_var: (C,) both, as in inference; or None both, as in training: then the statistics are
            those of this batch, through which the gradient flows as well. The batch's variance is divided by n.
        weight: (C,) or None for no gain.
        bias: (C,) or None for no offset.
        eps: added to the variance. Its default and the order of the arguments are PyTorch's.

    Returns:
        y of x's shape, and vjp(dy) -> (dx, dmean, dvariance, dweight, dbias), None where the argument was None.

    Raises:
        ValueError: if a vector's shape is wrong, only one statistic is given, or a channel has only one number.

    Source: Ioffe and Szegedy 2015, algorithms 1 and 2. Derivation: docs/derivations/group_norm.md.
    """
    maps = x.reshape(*x.shape[:2], prod(x.shape[2:]))  # (B, C, S)
    if running_mean is None or running_var is None:
        xhat, back_normalize = _by_own_statistics(maps, eps)
    else:
        xhat, back_normalize = _by_given_statistics(maps, running_mean, running_var, eps)
    y = scale_and_shift(xhat, by_channel(weight), by_channel(bias))

    @once
    def vjp(dy: Array) -> tuple[Array | None, ...]:
        dy = dy.reshape(maps.shape)
        dweight = None if weight is None else (dy * xhat).sum(axis=(0, 2))  # (C,)
        dbias = None if bias is None else dy.sum(axis=(0, 2))  # (C,)
        dx, dmean, dvariance = back_normalize(dy if weight is None else dy * by_channel(weight))
        return dx.reshape(x.shape), dmean, dvariance, dweight, dbias

    return y.reshape(x.shape), vjp


def check_batch_norm(
    x: Array,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
) -> None:
    if x.ndim < 2:
        raise ValueError(f"batch_norm: x must be (B, C, ...), got shape {x.shape}")
    check_channels("batch_norm", x, running_mean, running_var, weight, bias)
    if (running_mean is None) != (running_var is None):
        raise ValueError("batch_norm: give both running_mean and running_var, or neither")
    if running_mean is None and len(x) * prod(x.shape[2:]) == 1:
        raise ValueError(
            "batch_norm: one number for each channel has no variance: give more images, larger maps, or running_mean "
            "and running_var"
        )


def _by_own_statistics(maps: Array, eps: float) -> tuple[Array, Back]:
    """xhat (B, C, S) by the batch's own mean and variance: LayerNorm of each channel's n numbers."""
    batch, channels, pixels = maps.shape
    if batch * pixels == 0:
        return maps, once(lambda dxhat: (dxhat, None, None))
    xhat, back_normalize = layer_norm(maps.swapaxes(0, 1).reshape(channels, batch * pixels), None, None, eps)  # (C, n)

    @once
    def back(dxhat: Array) -> tuple[Array, None, None]:
        dx, _, _ = back_normalize(dxhat.swapaxes(0, 1).reshape(channels, batch * pixels))
        return dx.reshape(channels, batch, pixels).swapaxes(0, 1), None, None

    return xhat.reshape(channels, batch, pixels).swapaxes(0, 1), back


def _by_given_statistics(maps: Array, mean: Array, variance: Array, eps: float) -> tuple[Array, Back]:
    """xhat (B, C, S) by a mean and a variance (C,) that do not depend on x, but are differentiable."""
    rstd = (variance + eps) ** -0.5  # (C,)
    xhat = (maps - mean[:, None]) * rstd[:, None]

    @once
    def back(dxhat: Array) -> tuple[Array, Array, Array]:
        dx = dxhat * rstd[:, None]
        dmean = -dx.sum(axis=(0, 2))
        dvariance = -0.5 * rstd**2 * (dxhat * xhat).sum(axis=(0, 2))  # d rstd / d variance = -rstd^3 / 2
        return dx, dmean, dvariance

    return xhat, back


def batch_statistics(x: Array) -> tuple[Array, Array]:
    """Mean and variance (divided by n) of each channel of x (B, C, ...), both (C,); not differentiable.

    Raises:
        ValueError: if x has no numbers to average.
    """
    if x.ndim < 2 or x.size == 0:
        raise ValueError(f"batch_statistics: x {x.shape} has no numbers to average")
    maps = x.reshape(*x.shape[:2], prod(x.shape[2:]))  # (B, C, S)
    mean = maps.mean(axis=(0, 2))
    centered = maps - mean[:, None]
    return mean, (centered * centered).mean(axis=(0, 2))
