"""Layers that own parameters; each follows `y, back = layer(x, rng)`.

`layer.py` defines forward and back. Concerns of all layers have one file each: `counting.py` (shapes and
multiply-adds), `kept_memory.py` (memory that the backs hold), `printing.py` (repr), `init.py` (initial weights).
"""

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
    Sequential,
    SiLU,
    Tanh,
)
from minivit.nn.block import Block
from minivit.nn.bottleneck import Bottleneck
from minivit.nn.convolution import Conv2d, StdConv2d
from minivit.nn.counting import multiply_adds
from minivit.nn.heads import AttentionPool, ComposedAttention, DifferentialHeads, Heads
from minivit.nn.layer import Chain, Layer, apply
from minivit.nn.lora import LoRALinear, LoRALinearGELU
from minivit.nn.map_norm import BatchNorm2d, GroupNorm, update_statistics
from minivit.nn.mlp import Mlp, PackedSwiGLU, SwiGLU
from minivit.nn.more_blocks import Branch, ParallelScalingBlock, ParallelThingsBlock, ScaledBlock
from minivit.nn.parameter import Buffer, Parameter
from minivit.nn.patch_embed import PatchEmbed
from minivit.nn.patch_merging import PatchMerging
from minivit.nn.pooling import AdaptiveAvgPool2d, AvgPool2d, MaxPool2d
from minivit.nn.position_bias import ContinuousPositionBias, RelativePositionBias
from minivit.nn.printing import tree as _tree  # noqa: F401  # gives backward functions their repr
from minivit.nn.recompute import Recompute
from minivit.nn.rotary import RotaryPositions
from minivit.nn.window_attention import CosineWindowAttention, ShiftedWindows, WindowAttention
from minivit.renamed import old_names

__all__ = [
    "AdaptiveAvgPool2d",
    "Attention",
    "AttentionPool",
    "AvgPool2d",
    "BatchNorm2d",
    "Block",
    "Bottleneck",
    "Branch",
    "Buffer",
    "Chain",
    "ComposedAttention",
    "ContinuousPositionBias",
    "Conv2d",
    "CosineWindowAttention",
    "DifferentialHeads",
    "Dropout",
    "DropPath",
    "Embedding",
    "GELU",
    "GroupNorm",
    "Heads",
    "Identity",
    "Layer",
    "LayerNorm",
    "LayerScale",
    "Linear",
    "LinearGELU",
    "LoRALinear",
    "LoRALinearGELU",
    "MaxPool2d",
    "Mlp",
    "PackedSwiGLU",
    "ParallelScalingBlock",
    "ParallelThingsBlock",
    "Parameter",
    "PatchEmbed",
    "PatchMerging",
    "QuickGELU",
    "Recompute",
    "RelativePositionBias",
    "RotaryPositions",
    "ReLU",
    "RMSNorm",
    "ScaledBlock",
    "Sequential",
    "ShiftedWindows",
    "SiLU",
    "StdConv2d",
    "SwiGLU",
    "Tanh",
    "WindowAttention",
    "apply",
    "multiply_adds",
    "update_statistics",
]

__getattr__ = old_names(__name__, {"Gelu": "GELU", "Param": "Parameter", "Relu": "ReLU"})
