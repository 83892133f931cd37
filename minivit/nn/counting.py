"""The cost of a layer from shapes alone: output shape, multiply-adds, numbers kept for the backward pass.

One function for each type of layer. Only the products in linear maps, convolutions and
attention count. `minivit/parallel/` plans a step with these costs, and summaries print them.

Notation: B batch, N tokens, n queries, D channels, H x W a map.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import singledispatch
from math import prod
from typing import NamedTuple

from minivit.fast.blocks import FEW_KEYS
from minivit.functional.sliding import output_size, slide
from minivit.nn.attention import Attention
from minivit.nn.basic import (
    GELU,
    Dropout,
    DropPath,
    Embedding,
    Identity,
    LayerNorm,
    LayerScale,
    Linear,
    LinearGELU,
    QuickGELU,
    ReLU,
    RMSNorm,
    SiLU,
    Tanh,
)
from minivit.nn.block import Block
from minivit.nn.bottleneck import Bottleneck
from minivit.nn.convolution import Conv2d
from minivit.nn.heads import AttentionPool, ComposedAttention, DifferentialHeads, Heads
from minivit.nn.layer import Chain, Layer
from minivit.nn.lora import LoRALinear, LoRALinearGELU
from minivit.nn.map_norm import BatchNorm2d, GroupNorm
from minivit.nn.mlp import Mlp, PackedSwiGLU, SwiGLU
from minivit.nn.more_blocks import ParallelScalingBlock, ParallelThingsBlock, ScaledBlock
from minivit.nn.patch_embed import PatchProjection
from minivit.nn.patch_merging import PatchMerging
from minivit.nn.pooling import AdaptiveAvgPool2d, AvgPool2d, MaxPool2d
from minivit.nn.recompute import Recompute
from minivit.nn.window_attention import CosineWindowAttention, ShiftedWindows, WindowAttention
from minivit.sizes import pair

Shape = tuple[int, ...]


class Cost(NamedTuple):
    """The cost of a forward pass.

    Attributes:
        shape: of the output.
        macs: multiply-adds of the products; the backward pass has twice as many.
        kept: an estimate of the numbers that the backs hold in training without dropout. An array that two adjacent
            layers hold is counted for the one that reads it.
    """

    shape: Shape
    macs: int = 0
    kept: int = 0


def multiply_adds(layer: Layer, shape: Shape, every_token: bool = True) -> int:
    """Multiply-adds of a forward pass over an input of this shape.

    Args:
        every_token: count all tokens in every block, as papers do; False omits those that a forward pass skips.
    """
    return cost(layer, shape, every_token).macs


@singledispatch
def cost(layer: Layer, shape: Shape, every_token: bool = False) -> Cost:
    """The cost of a layer for an input of this shape.

    A subclass with another computation registers its own: `@cost.register def _(layer: MyLayer, shape, ...)`.

    Raises:
        LookupError: for an unregistered type of layer.
    """
    raise LookupError(f"the cost of {type(layer).__name__} is not known: register it with minivit.nn.counting.cost")


@cost.register(Identity)
@cost.register(ReLU)
@cost.register(Tanh)
@cost.register(Dropout)
@cost.register(DropPath)
def _(layer: Layer, shape: Shape, every_token: bool = False) -> Cost:
    return Cost(shape)


def in_order(layers: Iterable[Layer], shape: Shape, every_token: bool = False) -> Cost:
    """The cost of layers that run one after the other."""
    macs = kept = 0
    for layer in layers:
        each = cost(layer, shape, every_token)
        macs, kept, shape = macs + each.macs, kept + each.kept, each.shape
    return Cost(shape, macs, kept)


@cost.register(Chain)
def _(layer: Chain, shape: Shape, every_token: bool = False) -> Cost:
    return in_order(layer.steps(), shape, every_token)


@cost.register(Recompute)
def _(layer: Recompute, shape: Shape, every_token: bool = False) -> Cost:
    return cost(layer.layer, shape, every_token)._replace(kept=prod(shape))


@cost.register(Linear)
def _(layer: Linear, shape: Shape, every_token: bool = False) -> Cost:
    return Cost((*shape[:-1], layer.weight.shape[0]), prod(shape[:-1]) * layer.weight.size, prod(shape))


@cost.register(LinearGELU)
def _(layer: LinearGELU, shape: Shape, every_token: bool = False) -> Cost:
    linear = cost.dispatch(Linear)(layer, shape)
    return linear._replace(kept=linear.kept + prod(linear.shape))  # GELU's slope


@cost.register(LoRALinear)
def _(layer: LoRALinear, shape: Shape, every_token: bool = False) -> Cost:
    linear, count = cost.dispatch(Linear)(layer, shape), prod(shape[:-1])
    macs = count * (layer.lora_a.size + layer.lora_b.size)
    return linear._replace(macs=linear.macs + macs, kept=linear.kept + count * layer.rank)


@cost.register(LoRALinearGELU)
def _(layer: LoRALinearGELU, shape: Shape, every_token: bool = False) -> Cost:
    linear = cost.dispatch(LoRALinear)(layer, shape)
    return linear._replace(kept=linear.kept + prod(linear.shape))  # GELU's slope


@cost.register(Embedding)
def _(layer: Embedding, shape: Shape, every_token: bool = False) -> Cost:
    return Cost((*shape, layer.weight.shape[1]))


@cost.register(LayerNorm)
@cost.register(GroupNorm)
@cost.register(BatchNorm2d)
@cost.register(RMSNorm)
@cost.register(LayerScale)
@cost.register(GELU)
@cost.register(QuickGELU)
@cost.register(SiLU)
def _(layer: Layer, shape: Shape, every_token: bool = False) -> Cost:
    return Cost(shape, kept=prod(shape))  # the normalized input, or GELU's slope


@cost.register(Mlp)
def _(layer: Mlp, shape: Shape, every_token: bool = False) -> Cost:
    return in_order((part for _, part in layer.parts()), shape)


@cost.register(SwiGLU)
def _(layer: SwiGLU, shape: Shape, every_token: bool = False) -> Cost:
    first = [layer.fc1] if isinstance(layer, PackedSwiGLU) else [layer.fc1_g, layer.fc1_x]
    opening = [cost(each, shape) for each in first]
    hidden = (*shape[:-1], layer.fc2.weight.shape[1])
    rest = in_order([part for part in (layer.norm, layer.fc2) if part is not None], hidden)
    kept = prod(shape) + 3 * prod(hidden) + rest.kept  # x, and gate, its sigmoid and value
    return Cost(shape, sum(each.macs for each in opening) + rest.macs, kept)


@cost.register(Attention)
def _(layer: Attention, shape: Shape, every_token: bool = False) -> Cost:
    batch, tokens, dim = shape
    queries = tokens if every_token or layer.queries is None else min(layer.queries, tokens)
    projections = 2 * queries + 2 * tokens  # q and the output projection; k and v
    macs = batch * (projections * dim * dim + 2 * queries * tokens * dim)  # and scores, and weighted sums
    weights = 0 if tokens > FEW_KEYS * dim // layer.num_heads else layer.num_heads * queries * tokens
    update = _update(layer.qkv, batch, tokens, queries) + _update(layer.proj, batch, queries, queries)
    return Cost((batch, queries, dim), macs + update, batch * (3 * tokens * dim + 2 * queries * dim + weights))


def _update(layer: Linear, batch: int, tokens: int, queries: int) -> int:
    """Multiply-adds of the update of low rank, of a third of whose rows only the first `queries` are computed."""
    if not isinstance(layer, LoRALinear):
        return 0
    outputs, inputs = layer.weight.shape
    if queries == tokens:
        return batch * tokens * layer.rank * (inputs + outputs)
    return batch * layer.rank * ((queries + tokens) * inputs + (queries + 2 * tokens) * outputs // 3)


@cost.register(Heads)
@cost.register(DifferentialHeads)
def _(layer: Heads | DifferentialHeads, shape: Shape, every_token: bool = False) -> Cost:
    batch, tokens, tripled = shape
    dim, maps = tripled // 3, 2 if isinstance(layer, DifferentialHeads) else 1
    # scores of D channels in all, and a weighted sum of D channels for each map
    macs = batch * tokens * tokens * dim * (1 + maps)
    return Cost((batch, tokens, dim), macs, batch * (4 * tokens * dim + maps * layer.num_heads * tokens * tokens))


@cost.register(ComposedAttention)
def _(layer: ComposedAttention, shape: Shape, every_token: bool = False) -> Cost:
    return in_order([part for part in (layer.qkv, layer.heads, layer.norm, layer.proj) if part is not None], shape)


@cost.register(AttentionPool)
def _(layer: AttentionPool, shape: Shape, every_token: bool = False) -> Cost:
    batch, tokens, dim = shape
    inner = in_order((layer.proj, layer.norm, layer.mlp), (batch, 1, dim))
    macs = dim * dim + batch * (2 * tokens * dim * dim + 2 * tokens * dim) + inner.macs
    return Cost((batch, dim), macs, batch * tokens * (3 * dim + layer.num_heads) + inner.kept)


@cost.register(WindowAttention)
def _(layer: WindowAttention, shape: Shape, every_token: bool = False) -> Cost:
    windows, height, width, dim = shape
    inner = cost.dispatch(Attention)(layer, (windows, height * width, dim), every_token)
    cosine = isinstance(layer, CosineWindowAttention)  # q and k of length 1, and q with its factor
    return Cost(shape, inner.macs, inner.kept + (3 * prod(shape) if cosine else 0))


@cost.register(ShiftedWindows)
def _(layer: ShiftedWindows, shape: Shape, every_token: bool = False) -> Cost:
    batch, height, width, dim = shape
    window, _, size = layer.plan(height, width)
    windows = batch * (size[0] // window[0]) * (size[1] // window[1])  # padding counts
    return cost(layer.attention, (windows, *window, dim), every_token)._replace(shape=shape)


@cost.register(Block)
def _(layer: Block, shape: Shape, every_token: bool = False) -> Cost:
    attention = in_order((layer.norm1, layer.attn), shape, every_token)
    mlp = in_order((layer.norm2, layer.mlp), attention.shape, every_token)
    return Cost(mlp.shape, attention.macs + mlp.macs, attention.kept + mlp.kept)


@cost.register(ScaledBlock)
def _(layer: ScaledBlock, shape: Shape, every_token: bool = False) -> Cost:
    plain = cost.dispatch(Block)(layer, shape, every_token)
    return plain._replace(kept=plain.kept + 2 * prod(plain.shape))


@cost.register(ParallelThingsBlock)
def _(layer: ParallelThingsBlock, shape: Shape, every_token: bool = False) -> Cost:
    branches = [cost(branch, shape) for branch in (*layer.attns, *layer.ffns)]
    return Cost(shape, sum(each.macs for each in branches), sum(each.kept for each in branches))


@cost.register(ParallelScalingBlock)
def _(layer: ParallelScalingBlock, shape: Shape, every_token: bool = False) -> Cost:
    batch, tokens, dim = shape
    before = in_order((layer.in_norm, layer.in_proj), shape)
    heads = cost(layer.heads, (batch, tokens, 3 * dim))
    out = [part for part in (layer.out_proj, layer.attn_out_proj, layer.mlp_out_proj) if part is not None]
    macs = before.macs + heads.macs + batch * tokens * sum(part.weight.size for part in out)
    kept = before.kept + heads.kept + batch * tokens * (2 * layer.hidden + 2 * dim)
    return Cost(shape, macs, kept)


@cost.register(PatchProjection)
def _(layer: PatchProjection, shape: Shape, every_token: bool = False) -> Cost:
    batch, _, height, width = shape
    outputs, _, *patch = layer.weight.shape
    patches = (height // patch[0]) * (width // patch[1])
    return Cost((batch, patches, outputs), batch * patches * layer.weight.size, prod(shape))


@cost.register(PatchMerging)
def _(layer: PatchMerging, shape: Shape, every_token: bool = False) -> Cost:
    batch, height, width, dim = shape
    return in_order((layer.norm, layer.reduction), (batch, -(-height // 2), -(-width // 2), 4 * dim))._replace(
        shape=(batch, -(-height // 2), -(-width // 2), 2 * dim)
    )


@cost.register(Conv2d)
def _(layer: Conv2d, shape: Shape, every_token: bool = False) -> Cost:
    name, size, outputs = type(layer).__name__, (shape[2], shape[3]), layer.weight.shape[0]
    how = slide(name, size, layer.weight.shape[2:], layer.stride, layer.padding, layer.dilation)
    output = output_size(name, size, how)
    # taps in the padding count as any other
    return Cost((shape[0], outputs, *output), shape[0] * prod(output) * layer.weight.size, prod(shape))


@cost.register(MaxPool2d)
@cost.register(AvgPool2d)
def _(layer: MaxPool2d | AvgPool2d, shape: Shape, every_token: bool = False) -> Cost:
    name, size = type(layer).__name__, (shape[2], shape[3])
    stride = layer.kernel_size if layer.stride is None else layer.stride
    output = output_size(name, size, slide(name, size, layer.kernel_size, stride, layer.padding))
    return Cost((*shape[:2], *output))


@cost.register(AdaptiveAvgPool2d)
def _(layer: AdaptiveAvgPool2d, shape: Shape, every_token: bool = False) -> Cost:
    return Cost((*shape[:2], *pair(layer.output_size)))


@cost.register(Bottleneck)
def _(layer: Bottleneck, shape: Shape, every_token: bool = False) -> Cost:
    convolutions = (layer.conv1, layer.norm1, layer.conv2, layer.norm2, layer.conv3, layer.norm3)
    branch, shortcut = in_order(convolutions, shape), cost(layer.downsample, shape)
    return Cost(branch.shape, branch.macs + shortcut.macs, branch.kept + shortcut.kept)
