"""The formula of each kind of layer in one line of plain text, for tables and messages.

The layers need no code for it. In a composite's line the names are those of its parts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minivit import functional as F
from minivit.models import Model
from minivit.models.embedding import MapTokens, Tokens
from minivit.models.heads import Classifier, DistilledHead, Pool, PreLogits
from minivit.nn import (
    GELU,
    AdaptiveAvgPool2d,
    Attention,
    AttentionPool,
    AvgPool2d,
    BatchNorm2d,
    Block,
    Bottleneck,
    Chain,
    ComposedAttention,
    ContinuousPositionBias,
    Conv2d,
    CosineWindowAttention,
    DifferentialHeads,
    Dropout,
    DropPath,
    Embedding,
    GroupNorm,
    Heads,
    Identity,
    Layer,
    LayerNorm,
    LayerScale,
    Linear,
    LinearGELU,
    MaxPool2d,
    Mlp,
    ParallelScalingBlock,
    ParallelThingsBlock,
    PatchEmbed,
    PatchMerging,
    QuickGELU,
    Recompute,
    RelativePositionBias,
    ReLU,
    RMSNorm,
    RotaryPositions,
    ScaledBlock,
    ShiftedWindows,
    SiLU,
    StdConv2d,
    SwiGLU,
    Tanh,
    WindowAttention,
)
from minivit.nn.patch_embed import PatchProjection


def formula(layer: Any) -> str:
    """The line of a layer or of a loss; if none is known, the first line of its docstring, or "".

    A subclass without its own line has that of its base.
    """
    if not isinstance(layer, Layer):
        inner = getattr(layer, "func", layer)  # a functools.partial is its function
        return _LOSSES.get(inner, _first_line(inner))
    for kind in type(layer).__mro__:
        if kind in _FORMULAS:
            return _FORMULAS[kind](layer)
        if kind.__module__.partition(".")[0] != "minivit":
            words = _first_line(kind)
            if words and issubclass(kind, Layer):
                return words
    return ""


def _first_line(thing: Any) -> str:
    return (getattr(thing, "__doc__", None) or "").strip().partition("\n")[0]


def _tokens(layer: Any) -> str:
    patches = "patch_embed(x)"
    prefix = ["cls", "dist"][: len(getattr(layer, "prefix", []))]
    joined = f"[{'; '.join([*prefix, patches])}]" if prefix else patches
    return f"{joined} + positions" if layer.positions else joined


def _patch_embed(layer: Any) -> str:
    line = "proj(x)" if layer.backbone is None else "proj(backbone(x))"
    return line if layer.norm is None else f"norm({line})"


def _block(layer: Any) -> str:
    if layer.post_norm:
        return "m = x + norm1(attn(x)); m + norm2(mlp(m))"
    return "m = x + attn(norm1(x)); m + mlp(norm2(m))"


def _pool(layer: Any) -> str:
    if layer.mode == "avg":
        return "mean over tokens"
    if layer.mode == "map":
        return f"x[:, {layer.prefix}:]" if layer.prefix else "x"
    return "x[:, 0]" if layer.prefix == 1 else f"x[:, :{layer.prefix}]"


def _linear(layer: Any) -> str:
    return "x W^T" if layer.bias is None else "x W^T + b"


def _gelu(layer: Any, x: str) -> str:
    if layer.approximate == "none":
        return f"{x} Phi({x})"
    return f"{x} (1 + tanh(0.798 ({x} + 0.0447 {x}^3))) / 2"


# v is mixed by the weights, the heads are concatenated, and `proj` mixes them
_FORMULAS: dict[type[Any], Callable[[Any], str]] = {
    Linear: _linear,
    LinearGELU: lambda layer: f"{_gelu(layer, 'h')}, h = {_linear(layer)}",
    LayerNorm: lambda layer: "(x - mean) / sqrt(var + eps) w + b",
    Embedding: lambda layer: "W[x]",
    Identity: lambda layer: "x",
    Conv2d: lambda layer: "W * x" if layer.bias is None else "W * x + b",
    StdConv2d: lambda layer: "std(W) * x" if layer.bias is None else "std(W) * x + b",
    GroupNorm: lambda layer: "(x - mean) / sqrt(var + eps) w + b, by groups",
    BatchNorm2d: lambda layer: "(x - mean) / sqrt(var + eps) w + b, by channels",
    MaxPool2d: lambda layer: "largest of each window",
    AvgPool2d: lambda layer: "mean of each window",
    AdaptiveAvgPool2d: lambda layer: "mean of each cell",
    RelativePositionBias: lambda layer: "table[offset]",
    RotaryPositions: lambda layer: "x cos(angle) + J x sin(angle)",
    ContinuousPositionBias: lambda layer: "16 sigmoid(cpb_mlp(offset))",
    GELU: lambda layer: _gelu(layer, "x"),
    ReLU: lambda layer: "max(x, 0)",
    Tanh: lambda layer: "tanh(x)",
    Dropout: lambda layer: f"numbers dropped, rate {layer.rate:g}",
    DropPath: lambda layer: f"samples dropped, rate {layer.rate:g}",
    Attention: lambda layer: "proj(softmax(q k^T / sqrt(d)) v)",
    WindowAttention: lambda layer: "proj(softmax(q k^T / sqrt(d) + bias) v)",
    CosineWindowAttention: lambda layer: "proj(softmax(s cos(q, k) + bias) v)",
    ShiftedWindows: lambda layer: "roll, partition, attention(x), reverse",
    RMSNorm: lambda layer: "x / sqrt(mean(x^2) + eps) w",
    LayerScale: lambda layer: "x gamma",
    QuickGELU: lambda layer: "x sigmoid(1.702 x)",
    SiLU: lambda layer: "x sigmoid(x)",
    Heads: lambda layer: "softmax(q k^T / sqrt(d)) v",
    DifferentialHeads: lambda layer: "norm((softmax(q1 k1^T / sqrt(d)) - lambda softmax(q2 k2^T / sqrt(d))) v)",
    ComposedAttention: lambda layer: "proj(heads(q, k, v))",
    AttentionPool: lambda layer: "p = proj(softmax(q k^T / sqrt(d)) v); p + mlp(norm(p))",
    Mlp: lambda layer: "fc2(fc1(x))",
    SwiGLU: lambda layer: "fc2(silu(gate) value)",
    ScaledBlock: lambda layer: "m = x + ls1(attn(norm1(x))); m + ls2(mlp(norm2(m)))",
    ParallelThingsBlock: lambda layer: "m = x + sum attns(x); m + sum ffns(m)",
    ParallelScalingBlock: lambda layer: "x + attention(norm(x)) + mlp(norm(x))",
    Block: _block,
    Bottleneck: lambda layer: "max(0, norm3(conv3(...conv1(x))) + downsample(x))",
    PatchProjection: lambda layer: "patches(x) W^T + b",
    PatchEmbed: _patch_embed,
    PatchMerging: lambda layer: "norm(reduction(2x2))" if layer.post_norm else "reduction(norm(2x2))",
    Recompute: lambda layer: "layer(x), run again in the backward pass",
    Tokens: _tokens,
    MapTokens: _tokens,
    Pool: _pool,
    PreLogits: lambda layer: "tanh(fc(x))",
    Classifier: lambda layer: "fc(drop(x))",
    DistilledHead: lambda layer: "(head(x0) + head_dist(x1)) / 2",
    Model: lambda layer: "images to logits",
    Chain: lambda layer: "its parts in turn",
}

_LOSSES: dict[Any, str] = {
    F.softmax_cross_entropy: "-mean log softmax(x)[label]",
    F.mean_squared_error: "mean (x - target)^2",
}
