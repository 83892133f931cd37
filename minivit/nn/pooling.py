"""Pooling as layers without parameters, for use in a `Sequential`."""

from __future__ import annotations

from minivit import functional as F
from minivit.functional.sliding import Padding
from minivit.nn.layer import Layer
from minivit.protocol import Array, Back, Rng

Size = int | tuple[int, int]


class MaxPool2d(Layer):
    """The largest number of each window: (B, C, H, W) -> (B, C, Oh, Ow); stride None means the kernel's size."""

    def __init__(self, kernel_size: Size, stride: Size | None = None, padding: Padding = 0) -> None:
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Back]:
        return F.max_pool2d(x, self.kernel_size, self.stride, self.padding)


class AvgPool2d(Layer):
    """The mean of each window: (B, C, H, W) -> (B, C, Oh, Ow); stride None means the kernel's size."""

    def __init__(
        self, kernel_size: Size, stride: Size | None = None, padding: Padding = 0, count_include_pad: bool = True
    ) -> None:
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding
        self.count_include_pad = count_include_pad

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Back]:
        return F.avg_pool2d(x, self.kernel_size, self.stride, self.padding, self.count_include_pad)


class AdaptiveAvgPool2d(Layer):
    """Means of output_size cells that cover the map: (B, C, H, W) -> (B, C, *output_size)."""

    def __init__(self, output_size: Size) -> None:
        self.output_size = output_size

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Back]:
        return F.adaptive_avg_pool2d(x, self.output_size)
