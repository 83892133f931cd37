"""A hybrid's stem in PyTorch's operations, root and bottlenecks written out, with timm's or Google's epsilons.

Padding is TensorFlow's "SAME", which PyTorch has for stride 1 alone; here it is written as a sum over both sides.
"""

from __future__ import annotations

from typing import Any

import torch

TF = torch.nn.functional


def same(x: Any, kernel: int, stride: int, value: float = 0.0) -> Any:
    """The map with the padding that gives ceil(side / stride) pixels, the odd zero behind."""
    sides = []
    for length in (x.shape[3], x.shape[2]):  # PyTorch's pad begins with the last axis
        total = max(0, (-(-length // stride) - 1) * stride + kernel - length)
        sides += [total // 2, total - total // 2]
    return TF.pad(x, sides, value=value)


def stem(c: dict[str, Any], p: dict[str, Any], images: Any) -> Any:
    """Images -> the map of the root and the stages, from parameters p under timm's names.

    Args:
        c: the arguments of `minivit.ViT`; its `resnet_eps` decides whose epsilons.
    """
    google = c["resnet_eps"] == "google"
    root = "patch_embed.backbone." + ("stem." if c["resnet_layers"] else "")

    def conv(x: Any, name: str, stride: int = 1) -> Any:
        weight = p[f"{name}.weight"]
        flat = weight.flatten(1)
        variance, mean = torch.var_mean(flat, dim=1, keepdim=True, correction=0)
        divisor = torch.sqrt(variance) + 1e-5 if google else torch.sqrt(variance + 1e-8)
        standard = ((flat - mean) / divisor).view_as(weight)
        return TF.conv2d(same(x, weight.shape[2], stride), standard, stride=stride)

    def norm(x: Any, name: str) -> Any:
        gain, offset = p[f"{name}.weight"], p[f"{name}.bias"]
        return TF.group_norm(x, c["resnet_groups"], gain, offset, 1e-6 if google else 1e-5)

    x = norm(conv(images, f"{root}conv", 2), f"{root}norm").relu()
    x = TF.max_pool2d(same(x, 3, 2, -torch.inf), 3, 2)
    for i, depth in enumerate(c["resnet_layers"]):
        for j in range(depth):
            block, stride = f"patch_embed.backbone.stages.{i}.blocks.{j}", 2 if i and not j else 1
            shortcut = x
            if j == 0:
                shortcut = norm(conv(x, f"{block}.downsample.conv", stride), f"{block}.downsample.norm")
            y = norm(conv(x, f"{block}.conv1"), f"{block}.norm1").relu()
            y = norm(conv(y, f"{block}.conv2", stride), f"{block}.norm2").relu()
            x = (norm(conv(y, f"{block}.conv3"), f"{block}.norm3") + shortcut).relu()
    return x
