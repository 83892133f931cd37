"""The names of microsoft/Swin-Transformer, of timm, whose names are ours, and of WZMIAOMIAO.

Here patch merging ends its stage, and the head is one layer. WZMIAOMIAO is
deep-learning-for-image-processing, a Chinese course.
"""

from __future__ import annotations

import re

from minivit.pretrained.layouts.layout import IGNORED, Layout
from minivit.pretrained.renaming import Rule
from minivit.protocol import Array

_PROJECTION = r"blocks\.0\.((attns\.0\.)?attn\.qkv|in_proj)\.weight"  # also of blocks with branches in parallel


def as_layer_scale(arrays: dict[str, Array]) -> dict[str, Array]:
    """The factors that BEiT, DeiT III and DINOv3 keep in the block, under the names of a LayerScale."""
    return {re.sub(r"^(blocks\.\d+)\.gamma_([12])$", r"\1.ls\2.gamma", name): array for name, array in arrays.items()}


def as_gammas(arrays: dict[str, Array]) -> dict[str, Array]:
    """The inverse."""
    return {re.sub(r"^(blocks\.\d+)\.ls([12])\.gamma$", r"\1.gamma_\2", name): array for name, array in arrays.items()}


TIMM = [
    Layout(
        "timm",
        "ViT",
        (_PROJECTION, r"patch_embed\.proj\.weight", r"blocks\.0\.gamma_1"),
        ignored=(*IGNORED, r"rope\.(periods|pos_embed_cached)"),
        prepare=as_layer_scale,
    ),
    Layout("timm", "ViT", (_PROJECTION, r"patch_embed\.proj\.weight"), ignored=IGNORED),
    Layout("timm", "SwinV2", (r"layers\.0\.blocks\.0\.attn\.logit_scale",), ignored=IGNORED, head="head.fc"),
    Layout(
        "timm",
        "Swin",
        (r"layers\.0\.blocks\.0\.attn\.relative_position_bias_table",),
        ignored=IGNORED,
        head="head.fc",
    ),
]
# its ViT has timm's names and computes the same, so its files are read as timm's
WZMIAOMIAO_VIT = Layout("wzmiaomiao", "ViT", TIMM[1].signs, ignored=IGNORED)


def _same(*names: str) -> list[Rule]:
    return [Rule(name, name) for name in names]


_MICROSOFT_RULES = (
    Rule("layers.{i+1}.downsample.{part}.{p}", "layers.{i}.downsample.{part}.{p}"),
    Rule("head.fc.{p}", "head.{p}"),
    *_same(
        "patch_embed.{part}.{p}",
        "absolute_pos_embed",
        "layers.{i}.blocks.{j}.attn_mask",
        "layers.{i}.blocks.{j}.{norm}.{p}",
        "layers.{i}.blocks.{j}.attn.{table}",  # relative_position_bias_table, logit_scale, q_bias, v_bias, buffers
        "layers.{i}.blocks.{j}.attn.{part}.{p}",
        "layers.{i}.blocks.{j}.attn.cpb_mlp.{k}.{p}",
        "layers.{i}.blocks.{j}.mlp.{part}.{p}",
        "norm.{p}",
    ),
)


def tables_of_biases(arrays: dict[str, Array]) -> dict[str, Array]:
    """The tables of relative biases, with the same name in their layout and in ours."""
    return {name: array for name, array in arrays.items() if name.endswith("relative_position_bias_table")}


_ATTENTION = r"layers\.0\.blocks\.0\.attn\."
_MICROSOFT_SIGN = r"head\.weight|layers\.0\.downsample\.norm\.weight"
_V1_SIGNS = (_ATTENTION + "relative_position_bias_table", _MICROSOFT_SIGN)
MICROSOFT = [
    Layout("microsoft", "SwinV2", (_ATTENTION + "logit_scale", _MICROSOFT_SIGN), _MICROSOFT_RULES, IGNORED),
    # the same names, with the index but without the masks of the shifted blocks: it computes them from the image,
    # and never reduces windows. Microsoft's code reduces windows that cover every map, and then has no masks either
    Layout(
        "wzmiaomiao",
        "Swin",
        (*_V1_SIGNS, _ATTENTION + "relative_position_index"),
        _MICROSOFT_RULES,
        IGNORED,
        absent=r".*attn_mask",
        possible=lambda arrays: len({table.shape[0] for table in tables_of_biases(arrays).values()}) == 1,
    ),
    Layout("microsoft", "Swin", _V1_SIGNS, _MICROSOFT_RULES, IGNORED),
]
