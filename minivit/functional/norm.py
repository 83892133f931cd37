"""LayerNorm: each token's channels shifted to mean 0 and scaled to variance 1, then given a learned gain and offset.

GroupNorm does the same with groups of channels of a map. And `normalize` only scales a vector to length 1, for Swin
v2's cosine attention.

Alphabet: R rows (all leading axes taken together), D channels; for maps B batch, C channels, G groups, S places.
Next: `batch_norm.py`.
"""

from __future__ import annotations

from math import prod

from minivit.backend import array_module, kernels
from minivit.protocol import Array, Back, once, refuse


def layer_norm(x: Array, weight: Array | None, bias: Array | None, eps: float = 1e-6) -> tuple[Array, Back]:
    """y = xhat * weight + bias, with xhat = (x - mean) / sqrt(var + eps) over the last axis, var divided by D.

    Args:
        x: (..., D).
        weight: (D,) or None for no gain.
        bias: (D,) or None for no offset.
        eps: added to the variance; 1e-6 as in the ViT paper's JAX code, 1e-5 in Swin's and as PyTorch's default.

    Returns:
        y (..., D), and vjp(dy) -> (dx, dweight, dbias).

    Source: Ba, Kiros and Hinton 2016. Derivation: docs/derivations/layer_norm.md.
    """
    shape, channels = x.shape, x.shape[-1]
    for name, vector in (("weight", weight), ("bias", bias)):
        refuse(
            vector is not None and vector.shape != (channels,),
            f"layer_norm: {name} must have shape ({channels},), the last axis of x {x.shape}, got {_shape(vector)}",
        )
    refuse(channels == 0, "layer_norm: x has no channels to normalise over")
    rows = x.reshape(x.size // channels, channels)  # (R, D)
    xhat, rstd = kernels(x).normalise_rows(rows, eps)  # (R, D), (R, 1)
    y = xhat * weight if weight is not None else xhat.copy()
    if bias is not None:
        y += bias

    @once
    def vjp(dy: Array) -> tuple[Array, Array | None, Array | None]:
        kernel = kernels(dy)
        drows = dy.reshape(xhat.shape)  # (R, D)
        # in the forward pass: y[r] = xhat[r] * weight + bias
        dweight = None if weight is None else kernel.sum_rows_of_product(drows, xhat)  # (D,)
        dbias = None if bias is None else kernel.sum_rows(drows)  # (D,)
        dxhat = drows if weight is None else drows * weight  # (R, D)
        # in the forward pass: xhat[r] = (x[r] - mean[r]) * rstd[r], where x[r, j] also moves the mean and the std
        dx = kernel.normalise_rows_backward(dxhat, xhat, rstd)
        return dx.reshape(shape), dweight, dbias

    return y.reshape(shape), vjp


def group_norm(
    x: Array, groups: int, weight: Array | None, bias: Array | None, eps: float = 1e-5
) -> tuple[Array, Back]:
    """y = xhat * weight + bias, with xhat normalised over each group of C/G channels of a sample and all their places.

    Args:
        x: (B, C, ...), such as (B, C, H, W).
        groups: G. With 1, all channels of a sample are normalised together; with C, each by itself.
        weight: (C,) or None for no gain.
        bias: (C,) or None for no offset.
        eps: added to the variance; PyTorch's default.

    Returns:
        y of x's shape, and vjp(dy) -> (dx, dweight, dbias).

    Raises:
        ValueError: if the groups do not divide the channels, a vector does not fit, or there is nothing to average.

    Source: Wu and He 2018. Derivation: docs/derivations/group_norm.md.
    """
    refuse(x.ndim < 2, f"group_norm: x must be (B, C, ...), got shape {x.shape}")
    (batch, channels), places = x.shape[:2], prod(x.shape[2:])
    refuse(
        groups < 1 or channels % groups != 0,
        f"group_norm: groups={groups} must divide the {channels} channels of x {x.shape}",
    )
    check_channels("group_norm", x.shape, weight, bias)
    refuse(channels * places == 0, f"group_norm: x {x.shape} has nothing to normalise over")
    shape, rows_shape = x.shape, (batch * groups, channels // groups * places)
    xhat, rstd = kernels(x).normalise_rows(x.reshape(rows_shape), eps)  # (B G, C/G S), (B G, 1)
    y = xhat.reshape(batch, channels, places).copy()  # (B, C, S)
    if weight is not None:
        y *= weight[:, None]
    if bias is not None:
        y += bias[:, None]

    @once
    def vjp(dy: Array) -> tuple[Array, Array | None, Array | None]:
        xp, dmap = array_module(dy), dy.reshape(batch, channels, places)  # (B, C, S)
        # in the forward pass: y[b, c] = xhat[b, c] * weight[c] + bias[c]
        by_channel = xhat.reshape(batch, channels, places)
        dweight = None if weight is None else xp.einsum("bcs,bcs->c", dmap, by_channel)  # (C,)
        dbias = None if bias is None else dmap.sum(axis=(0, 2))  # (C,)
        dxhat = dmap if weight is None else dmap * weight[:, None]
        # a group is one row, so what follows is LayerNorm's
        dx = kernels(dy).normalise_rows_backward(dxhat.reshape(rows_shape), xhat, rstd)
        return dx.reshape(shape), dweight, dbias

    return y.reshape(shape), vjp


def check_channels(name: str, shape: tuple[int, ...], *vectors: Array | None) -> None:
    """Refuses a gain, offset or statistic that has not one number for each channel of x (B, C, ...)."""
    for vector in vectors:
        refuse(
            vector is not None and vector.shape != shape[1:2],
            f"{name}: x {shape} has {shape[1]} channels, so gain, offset and statistics must have shape "
            f"({shape[1]},), got {_shape(vector)}",
        )


def normalize(x: Array, eps: float = 1e-12) -> tuple[Array, Back]:
    """y = x / max(|x|, eps) along the last axis: directions without their lengths.

    Args:
        x: (..., D).
        eps: the least length that is divided by, so that a vector of zeros stays one (PyTorch's default).

    Returns:
        y of x's shape, and vjp(dy) -> dx.
    """
    xp = array_module(x)
    length = xp.sqrt(xp.einsum("...d,...d->...", x, x))[..., None]  # (..., 1)
    short = length.real < eps
    length = xp.where(short, xp.asarray(eps, x.dtype), length)
    y = x / length

    @once
    def vjp(dy: Array) -> Array:
        # a step along y changes the length and not y, so that part of dy is taken out
        along = xp.einsum("...d,...d->...", dy, y)[..., None]
        along = xp.where(short, xp.zeros_like(along), along)
        return (dy - y * along) / length

    return y, vjp


def _shape(array: Array | None) -> tuple[int, ...] | None:
    return None if array is None else array.shape
