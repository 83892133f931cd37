"""The residual block of a ResNet: three convolutions around a shortcut, the middle one on fewer channels.

The hybrid ViT's stem consists of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from minivit import functional as F
from minivit.nn import init
from minivit.nn.basic import Identity
from minivit.nn.convolution import StdConv2d
from minivit.nn.layer import Chain, Layer
from minivit.nn.map_norm import GroupNorm
from minivit.protocol import Array, Back, Rng, compose, once
from minivit.random import as_generator


@dataclass(frozen=True)
class Epsilons:
    """The epsilons of a project's stem.

    Attributes:
        weight: added to a filter's variance, or with `outside` to its standard deviation.
        norm: added to the variance of a GroupNorm.
    """

    weight: float
    outside: bool
    norm: float

    def convolution(
        self, in_channels: int, out_channels: int, kernel: int, stride: int, dtype: Any, seed: Any = None
    ) -> StdConv2d:
        """The convolution of these blocks: weights standardized, no bias, and ceil(H / stride) rows."""
        named = {"bias": False, "eps": self.weight, "outside": self.outside, "dtype": dtype, "seed": seed}
        return StdConv2d(in_channels, out_channels, kernel, stride, "same", **named)

    def group_norm(self, groups: int, channels: int, dtype: Any, *, zero: bool = False) -> GroupNorm:
        """The norm after it."""
        return GroupNorm(groups, channels, self.norm, zero=zero, dtype=dtype)


# timm's vision_transformer_hybrid.py, and vision_transformer's models_resnet.py, whose GroupNorm is Flax's
EPSILONS = {"timm": Epsilons(1e-8, False, 1e-5), "google": Epsilons(1e-5, True, 1e-6)}


class Projection(Chain):
    """A shortcut that changes channels and size: a 1x1 convolution and a norm."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, groups: int, eps: Epsilons, dtype: Any, seed: Any
    ) -> None:
        self.conv = eps.convolution(in_channels, out_channels, 1, stride, dtype, seed)
        self.norm = eps.group_norm(groups, out_channels, dtype)


class Bottleneck(Layer):
    """y = relu(shortcut(x) + norm3(conv3(relu(norm2(conv2(relu(norm1(conv1(x))))))))), with conv2 of 3x3.

    (B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride)). The shortcut is x itself, or a
    projection where channels or size change. norm3's gain starts at 0, so a new block is its shortcut.

    Args:
        in_channels, out_channels: conv1 and conv2 have a quarter of out_channels.
        stride: of conv2 and the projection.
        groups: of the norms.
        eps: "timm" or "google", the project whose epsilons are used.

    Source: He et al. 2016, "Deep Residual Learning for Image Recognition", with the stride in the 3x3 convolution,
    GroupNorm and standardized weights (Kolesnikov et al. 2020, "Big Transfer"); names are timm's.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        groups: int = 32,
        *,
        eps: str = "timm",
        dtype: Any = "float32",
        seed: Any = None,
    ) -> None:
        if out_channels % (4 * groups):
            raise ValueError(
                f"Bottleneck: a quarter of out_channels={out_channels} must be a multiple of groups={groups}"
            )
        if eps not in EPSILONS:
            raise ValueError(f"Bottleneck: eps={eps!r}: choose {' or '.join(map(repr, EPSILONS))}")
        part = EPSILONS[eps]
        rng, dtype, middle = as_generator(seed), init.dtype_of(dtype), out_channels // 4
        same = in_channels == out_channels and stride == 1
        self.downsample: Layer = (
            Identity() if same else Projection(in_channels, out_channels, stride, groups, part, dtype, rng)
        )
        self.conv1 = part.convolution(in_channels, middle, 1, 1, dtype, rng)
        self.norm1 = part.group_norm(groups, middle, dtype)
        self.conv2 = part.convolution(middle, middle, 3, stride, dtype, rng)
        self.norm2 = part.group_norm(groups, middle, dtype)
        self.conv3 = part.convolution(middle, out_channels, 1, 1, dtype, rng)
        self.norm3 = part.group_norm(groups, out_channels, dtype, zero=True)

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Back]:
        branch, back_branch = compose(
            x, self.conv1, self.norm1, F.relu, self.conv2, self.norm2, F.relu, self.conv3, self.norm3
        )
        shortcut, back_shortcut = self.downsample(x)
        y, back_relu = F.relu(branch + shortcut)

        @once
        def back(dy: Array) -> Array:
            dsum = back_relu(dy)
            return back_branch(dsum) + back_shortcut(dsum)  # x took both paths

        return y, back
