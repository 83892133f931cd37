"""How each source names the same arrays: one table for each, read in both directions.

Our names are timm's. Sources: google-research/vision_transformer and big_vision (JAX), torchvision, Hugging Face
transformers, microsoft/Swin-Transformer; the names are those in their published files. Next: `profiles.py`.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field

from minivit.weights.rules import (
    HWIO,
    JAX_OUT,
    JAX_QKV,
    JAX_QKV_BIAS,
    OUTER_THIRDS,
    STACKED,
    TRANSPOSED,
    Rule,
)


@dataclass(frozen=True)
class Layout:
    """A source's way of writing one kind of model.

    Attributes:
        source: "timm", "huggingface", "torchvision", "microsoft" or "google".
        model: the class it is loaded into, "ViT", "Swin" or "SwinV2".
        signs: patterns of names; the layout is recognised where each fits some name.
        rules: the table; none for a source that uses our names.
        ignored: patterns of names that carry nothing learned.
        prefixes: what may stand before every name.
    """

    source: str
    model: str
    signs: tuple[str, ...]
    rules: tuple[Rule, ...] = ()
    ignored: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = field(default=("",))

    def recognises(self, names: Collection[str]) -> bool:
        return all(any(re.fullmatch(sign, name) for name in names) for sign in self.signs)


# tables that every program computes again: never learned, so left behind
_BUFFERS = (
    r".*relative_position_index",
    r".*relative_coords_table",
    r".*attn_mask",
    r".*position_ids",
    r".*num_batches_tracked",
)


def _same(*names: str) -> list[Rule]:
    return [Rule(name, name) for name in names]


TIMM = [
    Layout("timm", "ViT", (r"blocks\.0\.attn\.qkv\.weight", r"patch_embed\.proj\.weight"), ignored=_BUFFERS),
    Layout("timm", "SwinV2", (r"layers\.0\.blocks\.0\.attn\.logit_scale",), ignored=_BUFFERS),
    Layout("timm", "Swin", (r"layers\.0\.blocks\.0\.attn\.relative_position_bias_table",), ignored=_BUFFERS),
]

# --- Microsoft: merging stands at the end of its stage, and the head is one layer ------------------------------------

_MICROSOFT_RULES = (
    Rule("layers.{i+1}.downsample.{part}.{p}", "layers.{i}.downsample.{part}.{p}"),
    Rule("head.fc.{p}", "head.{p}"),
    *_same(
        "patch_embed.{part}.{p}",
        "absolute_pos_embed",
        "layers.{i}.blocks.{j}.{norm}.{p}",
        "layers.{i}.blocks.{j}.attn.{table}",  # relative_position_bias_table, logit_scale, q_bias, v_bias
        "layers.{i}.blocks.{j}.attn.{part}.{p}",
        "layers.{i}.blocks.{j}.attn.cpb_mlp.{k}.{p}",
        "layers.{i}.blocks.{j}.mlp.{part}.{p}",
        "norm.{p}",
    ),
)
MICROSOFT = [
    Layout(
        "microsoft",
        model,
        (rf"layers\.0\.blocks\.0\.attn\.{sign}", r"head\.weight|layers\.0\.downsample\.norm\.weight"),
        _MICROSOFT_RULES,
        _BUFFERS,
    )
    for model, sign in (("SwinV2", "logit_scale"), ("Swin", "relative_position_bias_table"))
]

# --- Hugging Face: q, k and v apart ----------------------------------------------------------------------------------

_HF_VIT = (
    Rule("cls_token", "embeddings.cls_token"),
    Rule("dist_token", "embeddings.distillation_token"),
    Rule("pos_embed", "embeddings.position_embeddings"),
    Rule("patch_embed.proj.{p}", "embeddings.patch_embeddings.projection.{p}"),
    Rule("blocks.{i}.norm1.{p}", "encoder.layer.{i}.layernorm_before.{p}"),
    Rule("blocks.{i}.norm2.{p}", "encoder.layer.{i}.layernorm_after.{p}"),
    Rule(
        "blocks.{i}.attn.qkv.{p}",
        [f"encoder.layer.{{i}}.attention.attention.{each}.{{p}}" for each in ("query", "key", "value")],
        STACKED,
    ),
    Rule("blocks.{i}.attn.proj.{p}", "encoder.layer.{i}.attention.output.dense.{p}"),
    Rule("blocks.{i}.mlp.fc1.{p}", "encoder.layer.{i}.intermediate.dense.{p}"),
    Rule("blocks.{i}.mlp.fc2.{p}", "encoder.layer.{i}.output.dense.{p}"),
    Rule("norm.{p}", "layernorm.{p}"),
    Rule("head.{p}", "classifier.{p}"),
    Rule("head.{p}", "cls_classifier.{p}"),
    Rule("head_dist.{p}", "distillation_classifier.{p}"),
)
_HF_BLOCK = "encoder.layers.{i}.blocks.{j}"
_HF_SWIN = (
    Rule("patch_embed.proj.{p}", "embeddings.patch_embeddings.projection.{p}"),
    Rule("patch_embed.norm.{p}", "embeddings.norm.{p}"),
    Rule("absolute_pos_embed", "embeddings.position_embeddings"),
    Rule("layers.{i}.blocks.{j}.norm1.{p}", f"{_HF_BLOCK}.layernorm_before.{{p}}"),
    Rule("layers.{i}.blocks.{j}.norm2.{p}", f"{_HF_BLOCK}.layernorm_after.{{p}}"),
    Rule("layers.{i}.blocks.{j}.attn.proj.{p}", f"{_HF_BLOCK}.attention.output.dense.{{p}}"),
    Rule("layers.{i}.blocks.{j}.mlp.fc1.{p}", f"{_HF_BLOCK}.intermediate.dense.{{p}}"),
    Rule("layers.{i}.blocks.{j}.mlp.fc2.{p}", f"{_HF_BLOCK}.output.dense.{{p}}"),
    Rule("layers.{i+1}.downsample.{part}.{p}", "encoder.layers.{i}.downsample.{part}.{p}"),
    Rule("norm.{p}", "layernorm.{p}"),
    Rule("head.fc.{p}", "classifier.{p}"),
)


def _hf_stacked(p: str) -> Rule:
    names = [f"{_HF_BLOCK}.attention.self.{each}.{p}" for each in ("query", "key", "value")]
    return Rule(f"layers.{{i}}.blocks.{{j}}.attn.qkv.{p}", names, STACKED)


HUGGINGFACE = [
    Layout(
        "huggingface",
        "SwinV2",
        (r"(swinv2\.)?encoder\.layers\.0\.blocks\.0\.attention\.self\.logit_scale",),
        (
            *_HF_SWIN,
            _hf_stacked("weight"),
            Rule("layers.{i}.blocks.{j}.attn.q_bias", f"{_HF_BLOCK}.attention.self.query.bias"),
            Rule("layers.{i}.blocks.{j}.attn.v_bias", f"{_HF_BLOCK}.attention.self.value.bias"),
            Rule("layers.{i}.blocks.{j}.attn.logit_scale", f"{_HF_BLOCK}.attention.self.logit_scale"),
            Rule(
                "layers.{i}.blocks.{j}.attn.cpb_mlp.{k}.{p}",
                f"{_HF_BLOCK}.attention.self.continuous_position_bias_mlp.{{k}}.{{p}}",
            ),
        ),
        _BUFFERS,
        ("swinv2.", ""),
    ),
    Layout(
        "huggingface",
        "Swin",
        (r"(swin\.)?encoder\.layers\.0\.blocks\.0\.attention\.self\.relative_position_bias_table",),
        (
            *_HF_SWIN,
            _hf_stacked("{p}"),
            Rule(
                "layers.{i}.blocks.{j}.attn.relative_position_bias_table",
                f"{_HF_BLOCK}.attention.self.relative_position_bias_table",
            ),
        ),
        _BUFFERS,
        ("swin.", ""),
    ),
    Layout(
        "huggingface",
        "ViT",
        (r"((vit|deit)\.)?encoder\.layer\.0\.attention\.attention\.query\.weight",),
        _HF_VIT,
        (*_BUFFERS, r".*pooler\..*", r".*mask_token"),
        ("vit.", "deit.", ""),
    ),
]

# --- torchvision: numbers instead of names ---------------------------------------------------------------------------

_TV_LAYER = "encoder.layers.encoder_layer_{i}"
_TV_SWIN = (
    Rule("patch_embed.proj.{p}", "features.0.0.{p}"),
    Rule("patch_embed.norm.{p}", "features.0.2.{p}"),
    Rule("layers.{i}.blocks.{j}.norm1.{p}", "features.{2i+1}.{j}.norm1.{p}"),
    Rule("layers.{i}.blocks.{j}.norm2.{p}", "features.{2i+1}.{j}.norm2.{p}"),
    Rule("layers.{i}.blocks.{j}.mlp.fc1.{p}", "features.{2i+1}.{j}.mlp.0.{p}"),
    Rule("layers.{i}.blocks.{j}.mlp.fc2.{p}", "features.{2i+1}.{j}.mlp.3.{p}"),
    Rule("layers.{i}.blocks.{j}.attn.proj.{p}", "features.{2i+1}.{j}.attn.proj.{p}"),
    Rule("layers.{i}.blocks.{j}.attn.qkv.weight", "features.{2i+1}.{j}.attn.qkv.weight"),
    Rule("layers.{i}.downsample.{part}.{p}", "features.{2i}.{part}.{p}"),
    Rule("norm.{p}", "norm.{p}"),
    Rule("head.fc.{p}", "head.{p}"),
)
TORCHVISION = [
    Layout(
        "torchvision",
        "ViT",
        (r"conv_proj\.weight", r"encoder\.layers\.encoder_layer_0\.ln_1\.weight"),
        (
            Rule("cls_token", "class_token"),
            Rule("pos_embed", "encoder.pos_embedding"),
            Rule("patch_embed.proj.{p}", "conv_proj.{p}"),
            Rule("blocks.{i}.norm1.{p}", f"{_TV_LAYER}.ln_1.{{p}}"),
            Rule("blocks.{i}.norm2.{p}", f"{_TV_LAYER}.ln_2.{{p}}"),
            Rule("blocks.{i}.attn.qkv.weight", f"{_TV_LAYER}.self_attention.in_proj_weight"),
            Rule("blocks.{i}.attn.qkv.bias", f"{_TV_LAYER}.self_attention.in_proj_bias"),
            Rule("blocks.{i}.attn.proj.{p}", f"{_TV_LAYER}.self_attention.out_proj.{{p}}"),
            Rule("blocks.{i}.mlp.fc1.{p}", f"{_TV_LAYER}.mlp.0.{{p}}"),
            Rule("blocks.{i}.mlp.fc2.{p}", f"{_TV_LAYER}.mlp.3.{{p}}"),
            Rule("blocks.{i}.mlp.fc1.{p}", f"{_TV_LAYER}.mlp.linear_1.{{p}}"),  # files from before torchvision 0.13
            Rule("blocks.{i}.mlp.fc2.{p}", f"{_TV_LAYER}.mlp.linear_2.{{p}}"),
            Rule("norm.{p}", "encoder.ln.{p}"),
            Rule("pre_logits.fc.{p}", "heads.pre_logits.{p}"),
            Rule("head.{p}", "heads.head.{p}"),
        ),
    ),
    Layout(
        "torchvision",
        "SwinV2",
        (r"features\.0\.0\.weight", r"features\.1\.0\.attn\.logit_scale"),
        (
            *_TV_SWIN,
            Rule(
                [f"layers.{{i}}.blocks.{{j}}.attn.{each}_bias" for each in "qv"],
                "features.{2i+1}.{j}.attn.qkv.bias",
                OUTER_THIRDS,
            ),
            Rule("layers.{i}.blocks.{j}.attn.logit_scale", "features.{2i+1}.{j}.attn.logit_scale"),
            Rule("layers.{i}.blocks.{j}.attn.cpb_mlp.{k}.{p}", "features.{2i+1}.{j}.attn.cpb_mlp.{k}.{p}"),
        ),
        _BUFFERS,
    ),
    Layout(
        "torchvision",
        "Swin",
        (r"features\.0\.0\.weight", r"features\.1\.0\.attn\.relative_position_bias_table"),
        (
            *_TV_SWIN,
            Rule("layers.{i}.blocks.{j}.attn.qkv.bias", "features.{2i+1}.{j}.attn.qkv.bias"),
            Rule(
                "layers.{i}.blocks.{j}.attn.relative_position_bias_table",
                "features.{2i+1}.{j}.attn.relative_position_bias_table",
            ),
        ),
        _BUFFERS,
    ),
]

# --- Google: JAX's axes, (in, out) and heads apart -------------------------------------------------------------------

_JAX = "Transformer/encoderblock_{i}"
_JAX_ATTENTION = f"{_JAX}/MultiHeadDotProductAttention_1"
GOOGLE = [
    Layout(
        "google",
        "ViT",
        (r"embedding/kernel", r"Transformer/encoder_norm/scale"),
        (
            Rule("cls_token", "cls"),
            Rule("pos_embed", "Transformer/posembed_input/pos_embedding"),
            Rule("patch_embed.proj.weight", "embedding/kernel", HWIO),
            Rule("patch_embed.proj.bias", "embedding/bias"),
            Rule("blocks.{i}.norm1.weight", f"{_JAX}/LayerNorm_0/scale"),
            Rule("blocks.{i}.norm1.bias", f"{_JAX}/LayerNorm_0/bias"),
            Rule("blocks.{i}.norm2.weight", f"{_JAX}/LayerNorm_2/scale"),
            Rule("blocks.{i}.norm2.bias", f"{_JAX}/LayerNorm_2/bias"),
            Rule(
                "blocks.{i}.attn.qkv.weight",
                [f"{_JAX_ATTENTION}/{each}/kernel" for each in ("query", "key", "value")],
                JAX_QKV,
            ),
            Rule(
                "blocks.{i}.attn.qkv.bias",
                [f"{_JAX_ATTENTION}/{each}/bias" for each in ("query", "key", "value")],
                JAX_QKV_BIAS,
            ),
            Rule("blocks.{i}.attn.proj.weight", f"{_JAX_ATTENTION}/out/kernel", JAX_OUT),
            Rule("blocks.{i}.attn.proj.bias", f"{_JAX_ATTENTION}/out/bias"),
            Rule("blocks.{i}.mlp.fc1.weight", f"{_JAX}/MlpBlock_3/Dense_0/kernel", TRANSPOSED),
            Rule("blocks.{i}.mlp.fc1.bias", f"{_JAX}/MlpBlock_3/Dense_0/bias"),
            Rule("blocks.{i}.mlp.fc2.weight", f"{_JAX}/MlpBlock_3/Dense_1/kernel", TRANSPOSED),
            Rule("blocks.{i}.mlp.fc2.bias", f"{_JAX}/MlpBlock_3/Dense_1/bias"),
            Rule("norm.weight", "Transformer/encoder_norm/scale"),
            Rule("norm.bias", "Transformer/encoder_norm/bias"),
            Rule("pre_logits.fc.weight", "pre_logits/kernel", TRANSPOSED),
            Rule("pre_logits.fc.bias", "pre_logits/bias"),
            Rule("head.weight", "head/kernel", TRANSPOSED),
            Rule("head.bias", "head/bias"),
        ),
        prefixes=("", "params/", "opt/target/", "params/img/"),
    )
]

# Microsoft's Swin has the names of timm's and a few of its own, so it is asked first
LAYOUTS = [*MICROSOFT, *TIMM, *HUGGINGFACE, *TORCHVISION, *GOOGLE]
