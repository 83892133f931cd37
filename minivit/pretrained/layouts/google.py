"""The names and axes of Google's JAX code, vision_transformer and big_vision: (in, out), with an axis for heads."""

from __future__ import annotations

from math import isqrt
from typing import Any

import numpy as np

from minivit.pretrained.layouts.layout import Layout
from minivit.pretrained.renaming import FLAT, HWIO, JAX_OUT, JAX_QKV, JAX_QKV_BIAS, TRANSPOSED, Rule
from minivit.protocol import Array


def _unstacked(arrays: dict[str, Array]) -> dict[str, Array]:
    """One entry for each block, for arrays with a first axis for the depth, from a scan over blocks."""
    found: dict[str, Array] = {}
    for name, array in arrays.items():
        if "/encoderblock/" in name and array.ndim:
            found |= {name.replace("/encoderblock/", f"/encoderblock_{i}/"): array[i] for i in range(len(array))}
        else:
            found[name] = array
    return found


def _with_place_of_class(arrays: dict[str, Array]) -> dict[str, Array]:
    """Prepend a row of zeros to the positions where the class token has none: big_vision adds it after them.

    vision_transformer, whose table is under `posembed_input`, always has the row.
    """
    cls, positions = (next((n for n in arrays if n.endswith(end)), "") for end in ("cls", "pos_embedding"))
    if (
        not cls
        or not positions
        or positions.endswith("posembed_input/pos_embedding")
        or arrays[positions].ndim != 3
        or isqrt(arrays[positions].shape[1]) ** 2 != arrays[positions].shape[1]
    ):
        return arrays
    table = arrays[positions]
    return {**arrays, positions: np.concatenate((np.zeros_like(table[:, :1]), table), axis=1)}


def _heads(arrays: dict[str, Array]) -> dict[str, Any]:
    """The number of heads H, of which a kernel (D, H, d) of queries has an axis."""
    kernels = (array for name, array in arrays.items() if name.endswith("/query/kernel") and array.ndim == 3)
    kernel = next(kernels, None)
    return {} if kernel is None else {"num_heads": kernel.shape[1]}


def _google_block(attention: int, norm2: int, mlp: int) -> tuple[Rule, ...]:
    """The rules of a block; the projects number its parts differently."""
    block = "Transformer/encoderblock_{i}"
    heads = f"{block}/MultiHeadDotProductAttention_{attention}"
    qkv = ("query", "key", "value")
    rules = [
        Rule("blocks.{i}.attn.qkv.weight", [f"{heads}/{each}/kernel" for each in qkv], JAX_QKV),
        Rule("blocks.{i}.attn.qkv.bias", [f"{heads}/{each}/bias" for each in qkv], JAX_QKV_BIAS),
        Rule("blocks.{i}.attn.proj.weight", f"{heads}/out/kernel", JAX_OUT),
        Rule("blocks.{i}.attn.proj.bias", f"{heads}/out/bias"),
    ]
    for ours, theirs in (("norm1", "LayerNorm_0"), ("norm2", f"LayerNorm_{norm2}")):
        rules.append(Rule(f"blocks.{{i}}.{ours}.weight", f"{block}/{theirs}/scale"))
        rules.append(Rule(f"blocks.{{i}}.{ours}.bias", f"{block}/{theirs}/bias"))
    for ours, theirs in (("fc1", "Dense_0"), ("fc2", "Dense_1")):
        rules.append(Rule(f"blocks.{{i}}.mlp.{ours}.weight", f"{block}/MlpBlock_{mlp}/{theirs}/kernel", TRANSPOSED))
        rules.append(Rule(f"blocks.{{i}}.mlp.{ours}.bias", f"{block}/MlpBlock_{mlp}/{theirs}/bias"))
    return tuple(rules)


def _convolution(ours: str, our_number: str, theirs: str, their_number: str) -> tuple[Rule, ...]:
    """The rules of a standardized convolution and the GroupNorm after it."""
    return (
        Rule(f"{ours}.conv{our_number}.weight", f"{theirs}conv{their_number}/kernel", HWIO),
        Rule(f"{ours}.norm{our_number}.weight", f"{theirs}gn{their_number}/scale", FLAT),
        Rule(f"{ours}.norm{our_number}.bias", f"{theirs}gn{their_number}/bias", FLAT),
    )


_BACKBONE = "patch_embed.backbone"
_OUR_UNIT, _THEIR_UNIT = f"{_BACKBONE}.stages.{{i}}.blocks.{{j}}", "block{i+1}/unit{j+1}/"
_ROOT_ALONE = _convolution(_BACKBONE, "", "", "_root")
_STAGES = (
    *_convolution(f"{_BACKBONE}.stem", "", "", "_root"),
    *(rule for number in "123" for rule in _convolution(_OUR_UNIT, number, _THEIR_UNIT, number)),
    *_convolution(f"{_OUR_UNIT}.downsample", "", _THEIR_UNIT, "_proj"),
)
_VIT = (
    Rule("cls_token", "cls"),
    Rule("pos_embed", "Transformer/posembed_input/pos_embedding"),
    Rule("pos_embed", "pos_embedding"),
    Rule("patch_embed.proj.weight", "embedding/kernel", HWIO),
    Rule("patch_embed.proj.bias", "embedding/bias"),
    *_google_block(1, 2, 3),  # vision_transformer, with augreg
    *_google_block(0, 1, 0),  # big_vision
    Rule("norm.weight", "Transformer/encoder_norm/scale"),
    Rule("norm.bias", "Transformer/encoder_norm/bias"),
    Rule("pre_logits.fc.weight", "pre_logits/kernel", TRANSPOSED),
    Rule("pre_logits.fc.bias", "pre_logits/bias"),
    Rule("head.weight", "head/kernel", TRANSPOSED),
    Rule("head.bias", "head/bias"),
)


def _layout(stem: tuple[Rule, ...], signs: tuple[str, ...] = (), absent: str = "") -> Layout:
    return Layout(
        "google",
        "ViT",
        (r"embedding/kernel", r"Transformer/encoder_norm/scale", *signs),
        (*stem, *_VIT),
        prefixes=("", "params/", "opt/target/", "params/img/", "img/"),
        absent=absent,
        prepare=lambda arrays: _with_place_of_class(_unstacked(arrays)),
        arguments=_heads,
    )


GOOGLE = [
    _layout((), absent=r"conv_root/.*"),
    _layout(_ROOT_ALONE, (r"conv_root/kernel",), absent=r"block\d+/.*"),
    _layout(_STAGES, (r"conv_root/kernel", r"block1/unit1/conv1/kernel")),
]
