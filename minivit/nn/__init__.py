"""Layers that own parameters; each follows `y, back = layer(x, rng)`.

Read in this order: `parameter.py` (Param), `layer.py` (Layer, Chain, apply), `basic.py`, `position_bias.py`,
`attention.py`, `window_attention.py`, `mlp.py`, `block.py`, `convolution.py`, `map_norm.py`, `pooling.py`,
`bottleneck.py`, `patch_embed.py`, `patch_merging.py`, `recompute.py`, `kept.py`, `counting.py`; `init.py` says where
weights start. Then `minivit/models/`.
"""

from minivit.nn.attention import Attention, LinearHeadAttention
from minivit.nn.basic import (
    Dropout,
    DropPath,
    Embedding,
    Gelu,
    Identity,
    LayerNorm,
    Linear,
    LinearGELU,
    Relu,
    Sequential,
    Tanh,
)
from minivit.nn.block import Block
from minivit.nn.bottleneck import Bottleneck
from minivit.nn.convolution import Conv2d, StdConv2d
from minivit.nn.counting import multiply_adds
from minivit.nn.layer import Chain, Layer, apply
from minivit.nn.map_norm import BatchNorm2d, GroupNorm, update_statistics
from minivit.nn.mlp import Mlp
from minivit.nn.parameter import Buffer, Param
from minivit.nn.patch_embed import PatchEmbed
from minivit.nn.patch_merging import PatchMerging
from minivit.nn.pooling import AdaptiveAvgPool2d, AvgPool2d, MaxPool2d
from minivit.nn.position_bias import ContinuousPositionBias, RelativePositionBias
from minivit.nn.recompute import Recompute
from minivit.nn.window_attention import CosineWindowAttention, ShiftedWindows, WindowAttention

__all__ = [
    "AdaptiveAvgPool2d",
    "Attention",
    "AvgPool2d",
    "BatchNorm2d",
    "Block",
    "Bottleneck",
    "Buffer",
    "Chain",
    "ContinuousPositionBias",
    "Conv2d",
    "CosineWindowAttention",
    "DropPath",
    "Dropout",
    "Embedding",
    "Gelu",
    "GroupNorm",
    "Identity",
    "Layer",
    "LayerNorm",
    "Linear",
    "LinearGELU",
    "LinearHeadAttention",
    "MaxPool2d",
    "Mlp",
    "Param",
    "PatchEmbed",
    "PatchMerging",
    "Recompute",
    "RelativePositionBias",
    "Relu",
    "Sequential",
    "ShiftedWindows",
    "StdConv2d",
    "Tanh",
    "WindowAttention",
    "apply",
    "multiply_adds",
    "update_statistics",
]
