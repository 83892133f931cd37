"""BatchNorm: each channel of a map normalised by the mean and variance of the whole batch, or by ones that are given.

Nothing is remembered here: statistics go in as arguments, and `batch_statistics` measures them. Next: `dropout.py`.

Alphabet: B batch, C channels, S places of the map (all axes after the second), n = B S numbers of a channel.
"""

from __future__ import annotations

from math import prod

from minivit.backend import array_module, kernels
from minivit.functional.norm import check_channels
from minivit.protocol import Array, Back, once, refuse


def batch_norm(
    x: Array,
    weight: Array | None,
    bias: Array | None,
    mean: Array | None = None,
    variance: Array | None = None,
    eps: float = 1e-5,
) -> tuple[Array, Back]:
    """y = (x - mean) / sqrt(variance + eps) * weight + bias, channel by channel.

    Args:
        x: (B, C, ...), such as (B, C, H, W).
        weight: (C,) or None for no gain.
        bias: (C,) or None for no offset.
        mean, variance: (C,) both, as in inference; or None both, as in training: then those of this batch, through
            which the gradient flows as well. The batch's variance is divided by n.
        eps: added to the variance; PyTorch's default.

    Returns:
        y of x's shape, and vjp(dy) -> (dx, dweight, dbias, dmean, dvariance), None where the argument was None.

    Raises:
        ValueError: if a vector does not fit, one statistic is given without the other, or a channel has one number.

    Source: Ioffe and Szegedy 2015, algorithms 1 and 2. Derivation: docs/derivations/group_norm.md.
    """
    refuse(x.ndim < 2, f"batch_norm: x must be (B, C, ...), got shape {x.shape}")
    check_channels("batch_norm", x.shape, weight, bias, mean, variance)
    refuse((mean is None) != (variance is None), "batch_norm: give both mean and variance, or neither")
    shape, maps = x.shape, x.reshape(*x.shape[:2], prod(x.shape[2:]))  # (B, C, S)
    if mean is None or variance is None:
        xhat, back_normalise = _by_own_statistics(maps, eps)
    else:
        xhat, back_normalise = _by_given_statistics(maps, mean, variance, eps)
    y = xhat.copy()
    if weight is not None:
        y *= weight[:, None]
    if bias is not None:
        y += bias[:, None]

    @once
    def vjp(dy: Array) -> tuple[Array | None, ...]:
        dmaps = dy.reshape(xhat.shape)  # (B, C, S)
        # in the forward pass: y[b, c] = xhat[b, c] * weight[c] + bias[c]
        dweight = None if weight is None else _sum_of_product(dmaps, xhat)  # (C,)
        dbias = None if bias is None else dmaps.sum(axis=(0, 2))  # (C,)
        dx, dmean, dvariance = back_normalise(dmaps if weight is None else dmaps * weight[:, None])
        return dx.reshape(shape), dweight, dbias, dmean, dvariance

    return y.reshape(shape), vjp


def batch_statistics(x: Array) -> tuple[Array, Array]:
    """Mean and variance (divided by n) of each channel of x (B, C, ...), both (C,); not differentiable."""
    refuse(x.ndim < 2 or x.size == 0, f"batch_statistics: x {x.shape} has no numbers to average")
    maps = x.reshape(*x.shape[:2], prod(x.shape[2:]))  # (B, C, S)
    mean = maps.mean(axis=(0, 2))
    centred = maps - mean[:, None]
    return mean, _sum_of_product(centred, centred) / (maps.shape[0] * maps.shape[2])


def _by_own_statistics(maps: Array, eps: float) -> tuple[Array, Back]:
    """xhat (B, C, S) of the batch's own mean and variance: a channel is one row, so the rest is LayerNorm's."""
    batch, channels, places = maps.shape
    count = batch * places  # n
    refuse(
        count == 1,
        "batch_norm: one number for each channel has no variance: give more images, larger maps, or mean and variance",
    )
    if count == 0:
        return maps, once(lambda dxhat: (dxhat, None, None))
    rows, rstd = kernels(maps).normalise_rows(_by_channel(maps).reshape(channels, count), eps)  # (C, n), (C, 1)

    @once
    def back(dxhat: Array) -> tuple[Array, None, None]:
        drows = _by_channel(dxhat).reshape(channels, count)
        # in the forward pass: xhat = (x - mean) * rstd, where each number of x also moves the mean and the std
        dx = kernels(dxhat).normalise_rows_backward(drows, rows, rstd)  # (C, n)
        return _by_channel(dx.reshape(channels, batch, places)), None, None

    return _by_channel(rows.reshape(channels, batch, places)), back


def _by_given_statistics(maps: Array, mean: Array, variance: Array, eps: float) -> tuple[Array, Back]:
    """xhat (B, C, S) of a mean and a variance that do not depend on x, but may have a gradient of their own."""
    rstd = 1 / array_module(maps).sqrt(variance + eps)  # (C,)
    xhat = (maps - mean[:, None]) * rstd[:, None]

    @once
    def back(dxhat: Array) -> tuple[Array, Array, Array]:
        dx = dxhat * rstd[:, None]
        dmean = -dx.sum(axis=(0, 2))
        # d rstd / d variance = -rstd^3 / 2, and (x - mean) rstd = xhat
        dvariance = -0.5 * rstd * rstd * _sum_of_product(dxhat, xhat)
        return dx, dmean, dvariance

    return xhat, back


def _by_channel(maps: Array) -> Array:
    return maps.swapaxes(0, 1)  # (B, C, S) <-> (C, B, S)


def _sum_of_product(a: Array, b: Array) -> Array:
    """(B, C, S) twice -> (C,)."""
    return array_module(a).einsum("bcs,bcs->c", a, b)
