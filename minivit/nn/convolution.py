"""Convolutions with their parameters: plain, and with weights that are standardised at every use.

Next: `map_norm.py`.
"""

from __future__ import annotations

from math import prod
from typing import Any

from minivit import functional as F
from minivit.backend import as_generator
from minivit.functional.permutations import pair
from minivit.functional.sliding import Padding, places, slide
from minivit.nn import init
from minivit.nn.layer import Layer, Param
from minivit.protocol import Array, Back, once, refuse


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
        refuse(
            groups < 1 or in_channels % groups != 0 or out_channels % groups != 0,
            f"{name}: groups={groups} must divide in_channels={in_channels} and out_channels={out_channels}",
        )
        slide(name, (1, 1), kernel_size, stride, padding, dilation)  # refuses bad settings now, before any map comes
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        shape = (out_channels, in_channels // groups, *pair(kernel_size))
        self.weight = Param(self.start(rng, shape, dtype))
        self.bias = Param(init.conv_uniform(rng, shape[:1], prod(shape[1:]), dtype)) if bias else None

    @staticmethod
    def start(rng: Any, shape: tuple[int, ...], dtype: Any) -> Array:
        """Where the weight starts."""
        return init.conv_uniform(rng, shape, prod(shape[1:]), dtype)

    def forward(self, x: Array, rng: Any = None) -> tuple[Array, Back]:
        y, vjp = self.convolve(x, self.weight.data)

        @once
        def back(dy: Array) -> Array:
            dx, dweight, dbias = vjp(dy)
            self.weight.accumulate(dweight, fresh=True)
            self.accumulate_bias(dbias)
            return dx

        return y, back

    def convolve(self, x: Array, weight: Array) -> tuple[Array, Back]:
        """y, and vjp(dy) -> (dx, dweight, dbias), with the layer's settings and bias."""
        bias = None if self.bias is None else self.bias.data
        return F.conv2d(
            x, weight, bias, stride=self.stride, padding=self.padding, dilation=self.dilation, groups=self.groups
        )

    def accumulate_bias(self, dbias: Array | None) -> None:
        if self.bias is not None:
            self.bias.accumulate(dbias, fresh=True)

    def out_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """(B, out_channels, Oh, Ow), for maps (B, in_channels, H, W)."""
        name, size = type(self).__name__, (shape[2], shape[3])
        how = slide(name, size, self.weight.shape[2:], self.stride, self.padding, self.dilation)
        return shape[0], self.weight.shape[0], *places(name, size, how)

    def macs(self, shape: tuple[int, ...]) -> int:
        """Multiply-adds for maps (B, C, H, W); taps in the padding count as any other."""
        batch, _, *count = self.out_shape(shape)
        return batch * prod(count) * self.weight.size


class StdConv2d(Conv2d):
    """A convolution whose filters are standardised before each use (weight standardisation, Qiao et al. 2019).

    The parameter is the weight before that; its gradient goes through the standardisation. eps is timm's. The weight
    starts normal with variance 2 / (out_channels Kh Kw), as in timm's ResNetV2 (He et al. 2015, for the way back). What
    comes out does not depend on its size; how far a step of the optimiser turns a filter does.
    """

    def __init__(self, *args: Any, eps: float = 1e-6, **options: Any) -> None:
        super().__init__(*args, **options)
        self.eps = eps

    @staticmethod
    def start(rng: Any, shape: tuple[int, ...], dtype: Any) -> Array:
        return init.normal(rng, shape, (2 / (shape[0] * prod(shape[2:]))) ** 0.5, dtype)

    def forward(self, x: Array, rng: Any = None) -> tuple[Array, Back]:
        weight, back_standardise = F.standardise_weight(self.weight.data, self.eps)
        y, back_convolve = self.convolve(x, weight)

        @once
        def back(dy: Array) -> Array:
            dx, dweight, dbias = back_convolve(dy)
            self.weight.accumulate(back_standardise(dweight), fresh=True)
            self.accumulate_bias(dbias)
            return dx

        return y, back
