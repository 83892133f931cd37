"""LayerNorm: each token's channels shifted to mean 0 and scaled to variance 1, then given a learned gain and offset.

GroupNorm does the same with groups of channels of a map. `normalize` scales a vector to length 1, for Swin v2's cosine
attention.

Notation: B batch, N tokens, D channels of a token; for maps C channels, G groups, S pixels.
"""

from __future__ import annotations

from math import prod

from minivit.argument_checks import layout_remedy, looks_channels_last
from minivit.device import array_module
from minivit.functional.linear import rows
from minivit.protocol import Array, Back, once


def layer_norm(x: Array, weight: Array | None, bias: Array | None, eps: float = 1e-6) -> tuple[Array, Back]:
    """y = xhat * weight + bias, with xhat = (x - mean) / sqrt(var + eps) over the last axis, var divided by D.

    Args:
        x: (..., D).
        weight: (D,) or None for no gain.
        bias: (D,) or None for no offset.
        eps: added to the variance; 1e-6 as in the ViT paper's JAX code, 1e-5 in Swin's and as PyTorch's default.

    Returns:
        y (..., D), and vjp(dy) -> (dx, dweight, dbias).

    Raises:
        ValueError: if x has no channels, or a vector does not fit.

    Source: Ba, Kiros and Hinton 2016. Derivation: docs/derivations/layer_norm.md.
    """
    centered = x - x.mean(axis=-1, keepdims=True)  # (..., D)
    variance = (centered * centered).mean(axis=-1, keepdims=True)  # (..., 1)
    rstd = (variance + eps) ** -0.5  # (..., 1): 1 / standard deviation
    xhat = centered * rstd  # (..., D)
    y = xhat if weight is None else xhat * weight
    y = y if bias is None else y + bias

    @once
    def vjp(dy: Array) -> tuple[Array, Array | None, Array | None]:
        # y = xhat * weight + bias, with one weight and bias for all tokens: their gradients are sums over the tokens
        dweight = None if weight is None else rows(dy * xhat).sum(axis=0)
        dbias = None if bias is None else rows(dy).sum(axis=0)
        dxhat = dy if weight is None else dy * weight
        # xhat = (x - mean) / std: x enters directly, through the mean, and through the standard deviation
        by_mean = dxhat.mean(axis=-1, keepdims=True)
        by_std = xhat * (dxhat * xhat).mean(axis=-1, keepdims=True)
        dx = rstd * (dxhat - by_mean - by_std)
        return dx, dweight, dbias

    return y, vjp


def check_layer_norm(x: Array, weight: Array | None, bias: Array | None, eps: float = 1e-6) -> None:
    channels = x.shape[-1:]
    for name, vector in (("weight", weight), ("bias", bias)):
        if vector is not None and vector.shape != channels:
            raise ValueError(
                f"layer_norm: {name} must have shape {channels}, the last axis of x {x.shape}, got {vector.shape}"
            )
    if channels in ((), (0,)):
        raise ValueError(f"layer_norm: x {x.shape} has no channels to normalize over")


def rms_norm(x: Array, weight: Array | None, eps: float = 1e-6) -> tuple[Array, Back]:
    """y = xhat * weight, with xhat = x / sqrt(mean(x^2) + eps) over the last axis: LayerNorm without its mean.

    Args:
        x: (..., D).
        weight: (D,) or None for no gain.
        eps: added to the mean square.

    Returns:
        y (..., D), and vjp(dy) -> (dx, dweight).

    Raises:
        ValueError: if x has no channels, or the weight does not fit.

    Source: Zhang and Sennrich 2019. Derivation: docs/derivations/layer_norm.md, without the term of the mean.
    """
    rrms = ((x * x).mean(axis=-1, keepdims=True) + eps) ** -0.5  # (..., 1): 1 / root of the mean square
    xhat = x * rrms  # (..., D)

    @once
    def vjp(dy: Array) -> tuple[Array, Array | None]:
        dweight = None if weight is None else rows(dy * xhat).sum(axis=0)
        dxhat = dy if weight is None else dy * weight
        # xhat = x / rms: x enters directly, and through the root of its mean square
        by_rms = xhat * (dxhat * xhat).mean(axis=-1, keepdims=True)
        return rrms * (dxhat - by_rms), dweight

    return xhat if weight is None else xhat * weight, vjp


def check_rms_norm(x: Array, weight: Array | None, eps: float = 1e-6) -> None:
    check_layer_norm(x, weight, None, eps)


def layer_scale(x: Array, gamma: Array) -> tuple[Array, Back]:
    """y = x * gamma: a learned factor for each channel of a residual branch.

    Args:
        x: (..., D).
        gamma: (D,).

    Returns:
        y (..., D), and vjp(dy) -> (dx, dgamma).

    Raises:
        ValueError: if gamma does not fit.

    Source: Touvron et al. 2021 (CaiT), section 2.1.
    """

    @once
    def vjp(dy: Array) -> tuple[Array, Array]:
        return dy * gamma, rows(dy * x).sum(axis=0)  # one gamma for all tokens: a sum over the tokens

    return x * gamma, vjp


def check_layer_scale(x: Array, gamma: Array) -> None:
    if gamma.shape != x.shape[-1:]:
        raise ValueError(f"layer_scale: gamma must have shape {x.shape[-1:]}, the last axis of x, got {gamma.shape}")


def scale_and_shift(xhat: Array, gain: Array | None, offset: Array | None) -> Array:
    """xhat * gain + offset, either of which may be None."""
    y = xhat if gain is None else xhat * gain
    return y if offset is None else y + offset


def group_norm(
    x: Array, groups: int, weight: Array | None, bias: Array | None, eps: float = 1e-5
) -> tuple[Array, Back]:
    """y = xhat * weight + bias, with xhat normalized over each group of C/G channels of a sample and all their pixels.

    Args:
        x: (B, C, ...), such as (B, C, H, W).
        groups: G. With 1, all channels of a sample are normalized together; with C, each separately.
        weight: (C,) or None for no gain.
        bias: (C,) or None for no offset.
        eps: added to the variance; PyTorch's default.

    Returns:
        y of x's shape, and vjp(dy) -> (dx, dweight, dbias).

    Raises:
        ValueError: if the groups do not divide the channels, a vector does not fit, or there is nothing to average.

    Source: Wu and He 2018. Derivation: docs/derivations/group_norm.md.
    """
    shape, maps = x.shape, (*x.shape[:2], prod(x.shape[2:]))  # (B, C, S)
    grouped = (len(x), groups, maps[1] // groups * maps[2])  # (B, G, C/G S)
    xhat, back_normalize = layer_norm(x.reshape(grouped), None, None, eps)
    xhat = xhat.reshape(maps)
    y = scale_and_shift(xhat, by_channel(weight), by_channel(bias))

    @once
    def vjp(dy: Array) -> tuple[Array, Array | None, Array | None]:
        dy = dy.reshape(maps)
        dweight = None if weight is None else (dy * xhat).sum(axis=(0, 2))  # (C,)
        dbias = None if bias is None else dy.sum(axis=(0, 2))  # (C,)
        dxhat = dy if weight is None else dy * by_channel(weight)
        dx, _, _ = back_normalize(dxhat.reshape(grouped))
        return dx.reshape(shape), dweight, dbias

    return y.reshape(shape), vjp


def check_group_norm(x: Array, groups: int, weight: Array | None, bias: Array | None, eps: float = 1e-5) -> None:
    if x.ndim < 2:
        raise ValueError(f"group_norm: x must be (B, C, ...), got shape {x.shape}")
    if not isinstance(groups, int):
        raise ValueError(f"group_norm: groups is a {type(groups).__name__}: call group_norm(x, groups, weight, bias)")
    check_channels("group_norm", x, weight, bias)
    if groups < 1 or x.shape[1] % groups:
        raise ValueError(f"group_norm: groups={groups} must divide the {x.shape[1]} channels of x {x.shape}")
    if prod(x.shape[1:]) == 0:
        raise ValueError(f"group_norm: x {x.shape} has nothing to normalize over")


def check_channels(name: str, x: Array, *vectors: Array | None) -> None:
    """Refuse a gain, offset or statistic without exactly one number per channel of x (B, C, ...)."""
    for vector in vectors:
        if vector is not None and vector.shape != x.shape[1:2]:
            last = vector.ndim == 1 and looks_channels_last(x.shape, len(vector))
            raise ValueError(
                f"{name}: x {x.shape} has {x.shape[1]} channels, so gain, offset and statistics must have shape "
                f"({x.shape[1]},), got {vector.shape}" + (f": {layout_remedy(x.shape, len(vector))}" if last else "")
            )


def by_channel(vector: Array | None) -> Array | None:
    """(C,) -> (C, 1), which broadcasts with maps (B, C, S); None stays None."""
    return None if vector is None else vector[:, None]


def normalize(x: Array, eps: float = 1e-12) -> tuple[Array, Back]:
    """y = x / max(|x|, eps) along the last axis: vectors of length 1.

    Args:
        x: (..., D).
        eps: the smallest divisor, so that a zero vector stays zero (PyTorch's default).

    Returns:
        y of x's shape, and vjp(dy) -> dx.
    """
    xp = array_module(x)
    norm = xp.sqrt((x * x).sum(axis=-1, keepdims=True))  # (..., 1)
    short = norm.real < eps
    length = xp.where(short, xp.full_like(norm, eps), norm)
    y = x / length

    @once
    def vjp(dy: Array) -> Array:
        # a step along y changes the length but not y: that part of dy is removed. A length below eps is a constant
        along = ~short * (dy * y).sum(axis=-1, keepdims=True)
        return (dy - y * along) / length

    return y, vjp
