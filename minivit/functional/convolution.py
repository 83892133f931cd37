"""Convolution of maps with any kernel, stride, padding, dilation and groups; weight standardization.

The windows of the map are unfolded into the columns of a matrix, and the convolution is one product with the filters.
Derivation: docs/derivations/convolution.md.

Notation: B batch, G groups, C input channels, O output channels, H x W the map, Kh x Kw the kernel, F = C/G Kh Kw
numbers of a filter, Oh x Ow the output, P = Oh Ow its pixels, s stride, p padding, d dilation.
"""

from __future__ import annotations

from math import prod

from minivit.argument_checks import layout_remedy
from minivit.functional.norm import layer_norm
from minivit.functional.sliding import Padding, output_size, slide, unfold
from minivit.protocol import Array, Back, once
from minivit.sizes import Size


def conv2d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: int | Size = 1,
    padding: Padding = 0,
    dilation: int | Size = 1,
    groups: int = 1,
) -> tuple[Array, Back]:
    """y[o, u, v] = bias[o] + sum over c, i, j of weight[o, c, i, j] x[c, s u + d i - p, s v + d j - p].

    Where s u + d i - p lies outside the map, x is 0. (This is a cross-correlation: the kernel is not flipped.)

    Args:
        x: (B, C, H, W).
        weight: (O, C/G, Kh, Kw), as PyTorch stores it. With groups, the first O/G outputs read the first C/G channels,
            and so on.
        bias: (O,) or None.
        stride, padding, dilation: s, p, d; a number, or a pair for height and width. padding="same" adds the
            zeros that make Oh = ceil(H / s), an odd one below and to the right, as in TensorFlow.
        groups: G.

    Returns:
        y (B, O, Oh, Ow) with Oh = (H + 2p - d (Kh - 1) - 1) // s + 1, and vjp(dy) -> (dx, dweight, dbias).

    Raises:
        ValueError: if channels, groups or shapes do not fit, the kernel is larger than the padded map, or a setting is
            out of its range.

    Derivation: docs/derivations/convolution.md.
    """
    how = slide("conv2d", x.shape[2:], weight.shape[2:], stride, padding, dilation)
    size = output_size("conv2d", x.shape[2:], how)  # Oh, Ow
    unfolded, back_unfold = unfold(x, how, size)  # (B, C, Kh Kw, Oh, Ow)
    columns = unfolded.reshape(len(x), groups, prod(weight.shape[1:]), prod(size))  # (B, G, F, P)
    filters = weight.reshape(groups, len(weight) // groups, prod(weight.shape[1:]))  # (G, O/G, F)
    y = (filters @ columns).reshape(len(x), len(weight), *size)  # (B, O, Oh, Ow)

    @once
    def vjp(dy: Array) -> tuple[Array, Array, Array | None]:
        # y = filters @ columns + bias
        dproduct = dy.reshape(len(x), groups, len(weight) // groups, prod(size))  # (B, G, O/G, P)
        dfilters = (dproduct @ columns.swapaxes(-1, -2)).sum(axis=0)  # (G, O/G, F)
        dcolumns = filters.swapaxes(-1, -2) @ dproduct  # (B, G, F, P)
        dbias = None if bias is None else dy.sum(axis=(0, 2, 3))  # (O,)
        return back_unfold(dcolumns.reshape(unfolded.shape)), dfilters.reshape(weight.shape), dbias

    return y if bias is None else y + bias[:, None, None], vjp


def check_conv2d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: int | Size = 1,
    padding: Padding = 0,
    dilation: int | Size = 1,
    groups: int = 1,
) -> None:
    if weight.ndim != 4:
        raise ValueError(f"conv2d: weight must be (O, C/groups, Kh, Kw), got shape {weight.shape}")
    if remedy := layout_remedy(x.shape, groups * weight.shape[1]):
        raise ValueError(f"conv2d: x must be (B, C, H, W), got shape {x.shape}: {remedy}")
    channels, (outputs, inputs) = x.shape[1], weight.shape[:2]
    if groups < 1 or channels % groups or outputs % groups:
        raise ValueError(
            f"conv2d: groups={groups} must divide both the {channels} channels of x and the {outputs} outputs of weight"
        )
    if channels != groups * inputs:
        raise ValueError(
            f"conv2d: x has {channels} channels, but weight {weight.shape} with groups={groups} takes "
            f"{groups * inputs}: build the layer with {channels} input channels (a model with in_chans={channels}), or "
            "convert the images"
        )
    if bias is not None and bias.shape != (outputs,):
        raise ValueError(f"conv2d: bias must have shape ({outputs},), one number for each filter, got {bias.shape}")
    output_size("conv2d", x.shape[2:], slide("conv2d", x.shape[2:], weight.shape[2:], stride, padding, dilation))


def standardize_weight(weight: Array, eps: float = 1e-6, *, outside: bool = False) -> tuple[Array, Back]:
    """Each filter shifted to mean 0 and scaled to variance 1: (w - mean) / sqrt(var + eps), var divided by F.

    Args:
        weight: (O, C/G, Kh, Kw).
        eps: added to the variance; timm's default.
        outside: add eps to the standard deviation instead, outside the root: (w - mean) / (sqrt(var) + eps), as
            Google's StdConv does.

    Returns:
        y of weight's shape, and vjp(dy) -> dweight.

    Raises:
        ValueError: if the filters are empty.

    Source: Qiao et al. 2019, "Micro-Batch Training with Batch-Channel Normalization and Weight Standardization"; where
    eps stands and which variance is taken follow StdConv2d in timm, and with `outside` vision_transformer's
    models_resnet.py. This is LayerNorm of each filter. Derivation: docs/derivations/group_norm.md.
    """
    filters = weight.reshape(len(weight), prod(weight.shape[1:]))  # (O, F)
    y, back_normalize = divide_by_deviation(filters, eps) if outside else layer_norm(filters, None, None, eps)

    @once
    def vjp(dy: Array) -> Array:
        dfilters, *_ = back_normalize(dy.reshape(filters.shape))
        return dfilters.reshape(weight.shape)

    return y.reshape(weight.shape), vjp


def divide_by_deviation(filters: Array, eps: float) -> tuple[Array, Back]:
    """y = (w - mean) / (std + eps) for each row of filters (O, F); vjp(dy) -> (dfilters,).

    A constant row gives 0. Its std is not differentiable there; its contribution is 0 in the limit.
    """
    centered = filters - filters.mean(axis=1, keepdims=True)
    std = (centered * centered).mean(axis=1, keepdims=True) ** 0.5
    unit = centered / (std + (std == 0))  # of variance 1
    y = centered / (std + eps)

    @once
    def vjp(dy: Array) -> tuple[Array]:
        # y = centered / (std + eps), and the gradient of std is unit / F
        dcentered = (dy - y * (dy * unit).mean(axis=1, keepdims=True)) / (std + eps)
        return (dcentered - dcentered.mean(axis=1, keepdims=True),)

    return y, vjp


def check_standardize_weight(weight: Array, eps: float = 1e-6, *, outside: bool = False) -> None:
    if weight.ndim < 2 or prod(weight.shape[1:]) == 0:
        raise ValueError(f"standardize_weight: filters of shape {weight.shape} have no numbers to average")
