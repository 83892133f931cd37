"""The convolutional stem of the hybrid ViT: a small ResNet, whose map is split into patches.

Notation: B batch, C image channels, H x W pixels. Names and shapes are those of timm's ResNetV2 in its hybrids
(norms after the convolutions).

Sources: Dosovitskiy et al. 2021, section 3.1; Kolesnikov et al. 2020, "Big Transfer".
"""

from __future__ import annotations

from typing import Any

from minivit.nn import Bottleneck, Chain, MaxPool2d, ReLU
from minivit.nn.bottleneck import EPSILONS
from minivit.random import as_generator


def checked_layers(layers: Any) -> tuple[int, ...] | None:
    """The number of blocks of each stage, as `ViT` takes them.

    Raises:
        ValueError: if they are not integers, or a stage is empty.
    """
    if layers is None:
        return None
    given = isinstance(layers, tuple | list) and all(isinstance(depth, int) and depth > 0 for depth in layers)
    if not given:
        raise ValueError(
            f"resnet_layers={layers!r}: give the number of blocks of each stage, such as (3, 4, 9); () is the root "
            "alone, and None no stem"
        )
    return tuple(layers)


def reduction(layers: tuple[int, ...]) -> int:
    """The total stride: the root halves the map twice, and each stage but the first once."""
    return 4 * 2 ** max(0, len(layers) - 1)


def map_size(size: tuple[int, int], layers: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of the stem's map of an image: each halving rounds up."""
    return -(-size[0] // reduction(layers)), -(-size[1] // reduction(layers))


class Root(Chain):
    """Images (B, C, H, W) -> (B, width, H/4, W/4), rounded up: a 7x7 convolution and a 3x3 maximum, stride 2 each."""

    def __init__(self, in_chans: int, width: int, groups: int, eps: str, dtype: Any, seed: Any) -> None:
        self.conv = EPSILONS[eps].convolution(in_chans, width, 7, 2, dtype, seed)
        self.norm = EPSILONS[eps].group_norm(groups, width, dtype)
        self.relu = ReLU()
        self.pool = MaxPool2d(3, 2, "same")


class Stage(Chain):
    """A sequence of bottlenecks; only the first one's stride changes the size of the map."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, depth: int, groups: int, eps: str, dtype: Any, seed: Any
    ) -> None:
        named: Any = {"eps": eps, "dtype": dtype, "seed": seed}
        first = Bottleneck(in_channels, out_channels, stride, groups, **named)
        others = [Bottleneck(out_channels, out_channels, 1, groups, **named) for _ in range(depth - 1)]
        self.blocks: list[Bottleneck] = [first, *others]


class ResNetV2(Chain):
    """Images (B, C, H, W) -> a map with 4 width 2^(stages - 1) channels: the root, then stages.

    Args:
        layers: the number of bottlenecks of each stage, such as (3, 4, 9).
        width: the channels of the root; 64 in all published models.
        groups: of the norms; 32 in all published models.
        eps: "timm" or "google", the project whose epsilons are used; see `nn/bottleneck.py`.
    """

    def __init__(
        self,
        in_chans: int,
        layers: tuple[int, ...],
        width: int,
        groups: int,
        *,
        eps: str = "timm",
        dtype: Any = "float32",
        seed: Any = 0,
    ) -> None:
        rng = as_generator(seed)
        self.stem = Root(in_chans, width, groups, eps, dtype, rng)
        self.stages: list[Stage] = []
        channels = width
        for index, depth in enumerate(layers):
            outputs = 4 * width * 2**index
            self.stages.append(Stage(channels, outputs, 2 if index else 1, depth, groups, eps, dtype, rng))
            channels = outputs


def make_stem(
    in_chans: int, layers: tuple[int, ...], width: int, groups: int, eps: str, dtype: Any, seed: Any
) -> tuple[Root | ResNetV2, int]:
    """The stem, and the channels of its map. Without stages it is only the root, under shorter names, as in timm.

    Raises:
        ValueError: if the groups do not divide the width.
    """
    if width < 1 or groups < 1 or width % groups:
        raise ValueError(f"resnet_groups={groups} must divide resnet_width={width}: choose {_divisor(width, groups)}")
    if not layers:
        return Root(in_chans, width, groups, eps, dtype, seed), width
    stem = ResNetV2(in_chans, layers, width, groups, eps=eps, dtype=dtype, seed=seed)
    return stem, 4 * width * 2 ** (len(layers) - 1)


def _divisor(width: int, groups: int) -> str:
    found = [number for number in range(1, max(1, min(width, groups)) + 1) if width % number == 0]
    return f"resnet_groups={found[-1]}" if width > 0 else "a width of at least 1"
