"""The ResNet stem of the hybrid ViT in plain PyTorch, written the usual way, with timm's parameter names.

Weights are standardized by PyTorch's fused batch norm, as timm does it. Next: `torch_vit.py`, which cuts its map.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def pad_same(x: Tensor, kernel: int, stride: int, value: float = 0.0) -> Tensor:
    """The map with the padding that gives ceil(side / stride) pixels, an odd one below and to the right."""
    sides = []
    for length in (x.shape[3], x.shape[2]):  # PyTorch's pad begins with the last axis
        total = max(0, (-(-length // stride) - 1) * stride + kernel - length)
        sides += [total // 2, total - total // 2]
    return F.pad(x, sides, value=value) if any(sides) else x


class StdConv2d(nn.Conv2d):
    """A convolution whose filters have mean 0 and variance 1."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        # where the padding is the same on both sides the convolution does it, without a copy
        super().__init__(inputs, outputs, kernel, stride, kernel // 2 if stride == 1 else 0, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        filters = self.weight.reshape(1, len(self.weight), -1)
        weight = F.batch_norm(filters, None, None, training=True, momentum=0.0, eps=1e-8).reshape_as(self.weight)
        if self.stride != (1, 1):
            x = pad_same(x, self.kernel_size[0], self.stride[0])
        return F.conv2d(x, weight, None, self.stride, self.padding)


class Bottleneck(nn.Module):
    """relu(shortcut(x) + three convolutions), each with a GroupNorm."""

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int) -> None:
        super().__init__()
        middle = outputs // 4
        self.downsample: nn.Module | None = None
        if inputs != outputs or stride != 1:
            conv, norm = StdConv2d(inputs, outputs, 1, stride), nn.GroupNorm(groups, outputs)
            self.downsample = nn.Sequential()
            self.downsample.add_module("conv", conv)
            self.downsample.add_module("norm", norm)
        self.conv1, self.norm1 = StdConv2d(inputs, middle, 1), nn.GroupNorm(groups, middle)
        self.conv2, self.norm2 = StdConv2d(middle, middle, 3, stride), nn.GroupNorm(groups, middle)
        self.conv3, self.norm3 = StdConv2d(middle, outputs, 1), nn.GroupNorm(groups, outputs)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.norm1(self.conv1(x)).relu_()
        x = self.norm2(self.conv2(x)).relu_()
        return (self.norm3(self.conv3(x)) + shortcut).relu_()


class Stage(nn.Module):
    """Bottlenecks one after the other."""

    def __init__(self, blocks: list[Bottleneck]) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class Stem(nn.Module):
    """7x7 convolution, GroupNorm, ReLU and maximum."""

    def __init__(self, channels: int, width: int, groups: int) -> None:
        super().__init__()
        self.conv, self.norm = StdConv2d(channels, width, 7, 2), nn.GroupNorm(groups, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu_()
        return F.max_pool2d(pad_same(x, 3, 2, -torch.inf), 3, 2)


class ResNet(nn.Module):
    """Images (B, C, H, W) -> a map of `channels`, H / `reduction` x W / `reduction`."""

    def __init__(self, channels: int, layers: tuple[int, ...], width: int = 64, groups: int = 32) -> None:
        super().__init__()
        self.stem = Stem(channels, width, groups)
        stages, inputs = [], width
        for number, depth in enumerate(layers):
            outputs = 4 * width * 2**number
            strides = [2 if number else 1] + [1] * (depth - 1)
            blocks = []
            for stride in strides:
                blocks.append(Bottleneck(inputs, outputs, stride, groups))
                inputs = outputs
            stages.append(Stage(blocks))
        self.stages = nn.Sequential(*stages)
        self.channels, self.reduction = inputs, 4 * 2 ** (len(layers) - 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.stages(self.stem(x))
