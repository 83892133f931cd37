"""Layers that own parameters; each follows `y, back = layer(x, rng)`.

Read in this order: `layer.py` (Param, Layer, Chain), `basic.py`, `position_bias.py`, `attention.py`,
`window_attention.py`, `mlp.py`, `block.py`, `patch_embed.py`, `patch_merging.py`, `recompute.py`; `init.py` says where
weights start. Then `minivit/models/`.
"""

from minivit.nn.attention import Attention
from minivit.nn.basic import (
    Dropout,
    DropPath,
    Embedding,
    Gelu,
    LayerNorm,
    Linear,
    Relu,
    Sequential,
    Tanh,
)
from minivit.nn.block import Block
from minivit.nn.layer import Chain, Layer, Param
from minivit.nn.mlp import Mlp
from minivit.nn.patch_embed import PatchEmbed
from minivit.nn.patch_merging import PatchMerging
from minivit.nn.position_bias import ContinuousPositionBias, RelativePositionBias
from minivit.nn.recompute import Recompute
from minivit.nn.window_attention import CosineWindowAttention, ShiftedWindows, WindowAttention

__all__ = [
    "Attention",
    "Block",
    "Chain",
    "ContinuousPositionBias",
    "CosineWindowAttention",
    "DropPath",
    "Dropout",
    "Embedding",
    "Gelu",
    "Layer",
    "LayerNorm",
    "Linear",
    "Mlp",
    "Param",
    "PatchEmbed",
    "PatchMerging",
    "Recompute",
    "RelativePositionBias",
    "Relu",
    "Sequential",
    "ShiftedWindows",
    "Tanh",
    "WindowAttention",
]
