"""Convolution layers: plain, and with weights that are standardized in each forward pass."""

from __future__ import annotations

from math import prod
from typing import Any

from minivit import functional as F
from minivit.functional.sliding import Padding, slide
from minivit.nn import init
from minivit.nn.layer import Layer, apply
from minivit.nn.parameter import Parameter
from minivit.protocol import Array, Back, Rng, once
from minivit.random import as_generator
from minivit.sizes import pair


class Conv2d(Layer):
    """maps (B, in_channels, H, W) -> (B, out_channels, Oh, Ow); see `minivit.functional.conv2d`.

    weight (out_channels, in_channels / groups, Kh, Kw) and bias (out_channels,) start uniform in +-1/sqrt(F), F the
    numbers of one filter: PyTorch's default.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: Padding = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        dtype: Any = "float32",
        seed: Any = None,
    ) -> None:
        name, dtype, rng = type(self).__name__, init.dtype_of(dtype), as_generator(seed)
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(
                f"{name}: groups={groups} must divide in_channels={in_channels} and out_channels={out_channels}"
            )
        slide(name, (1, 1), kernel_size, stride, padding, dilation)  # refuses bad settings now, before any input
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        shape = (out_channels, in_channels // groups, *pair(kernel_size))
        self.weight = Parameter(self.start(rng, shape, dtype))
        self.bias = Parameter(init.conv_uniform(rng, shape[:1], prod(shape[1:]), dtype)) if bias else None

    @staticmethod
    def start(rng: Rng, shape: tuple[int, ...], dtype: Any) -> Array:
        """The initial weight."""
        return init.conv_uniform(rng, shape, prod(shape[1:]), dtype)

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Back]:
        return apply(F.conv2d, x, self.weight, self.bias, **self.settings)

    @property
    def settings(self) -> dict[str, Any]:
        """The keyword arguments of `F.conv2d`."""
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}


class StdConv2d(Conv2d):
    """A convolution whose filters are standardized before each use (weight standardization, Qiao et al. 2019).

    The parameter is the weight before standardization, through which its gradient flows. eps is timm's, and `outside`
    adds it as Google does; see `minivit.functional.standardize_weight`. The weight starts normal with variance
    2 / (out_channels Kh Kw), as in timm's ResNetV2 (He et al. 2015, for the backward pass). The output does not depend
    on its scale, but the effect of an optimizer step does.
    """

    def __init__(self, *args: Any, eps: float = 1e-6, outside: bool = False, **options: Any) -> None:
        super().__init__(*args, **options)
        self.eps, self.outside = eps, outside

    @staticmethod
    def start(rng: Rng, shape: tuple[int, ...], dtype: Any) -> Array:
        return init.normal(rng, shape, (2 / (shape[0] * prod(shape[2:]))) ** 0.5, dtype)

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Back]:
        weight, back_weight = apply(F.standardize_weight, self.weight, eps=self.eps, outside=self.outside)
        y, back_conv = apply(F.conv2d, x, weight, self.bias, **self.settings)

        @once
        def back(dy: Array) -> Array:
            dx, dweight = back_conv(dy)
            back_weight(dweight)
            return dx

        return y, back
