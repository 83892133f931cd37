"""Costs of the layers defined in this folder, for `minivit/nn/counting.py`."""

from __future__ import annotations

from math import prod

from minivit.models.embedding import MapTokens, Tokens
from minivit.models.heads import DistilledHead, Pool
from minivit.nn.counting import Cost, Shape, cost


@cost.register(Tokens)
def _(layer: Tokens, shape: Shape, every_token: bool = False) -> Cost:
    if layer.partial:
        shape = _whole(layer, shape)
    patches = cost(layer.patch_embed, shape)
    batch, tokens, dim = patches.shape
    return patches._replace(shape=(batch, sum(token.shape[1] for token in layer.prefix) + tokens, dim))


@cost.register(MapTokens)
def _(layer: MapTokens, shape: Shape, every_token: bool = False) -> Cost:
    patches = cost(layer.patch_embed, _whole(layer, shape))
    return patches._replace(shape=(shape[0], *layer.grid((shape[2], shape[3])), patches.shape[2]))


def _whole(layer: Tokens | MapTokens, shape: Shape) -> Shape:
    """The shape of images (B, C, H, W) as complete patches."""
    grid, patch = layer.grid((shape[2], shape[3])), layer.patch_embed.proj.weight.shape[2:]
    return (*shape[:2], grid[0] * patch[0], grid[1] * patch[1])


@cost.register(Pool)
def _(layer: Pool, shape: Shape, every_token: bool = False) -> Cost:
    two = layer.mode == "token" and layer.prefix > 1
    kept = (2,) if two else (prod(shape[1:-1]) - layer.prefix,) if layer.mode == "map" else ()
    return Cost((shape[0], *kept, shape[-1]))


@cost.register(DistilledHead)
def _(layer: DistilledHead, shape: Shape, every_token: bool = False) -> Cost:
    classes = layer.head.weight.shape[0]
    return Cost((shape[0], classes), shape[0] * (layer.head.weight.size + layer.head_dist.weight.size), prod(shape))
