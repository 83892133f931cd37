"""The names of torchvision, mostly numbers: ViT, Swin and Swin v2."""

from __future__ import annotations

from minivit.pretrained.layouts.layout import IGNORED, Layout
from minivit.pretrained.renaming import OUTER_THIRDS, Rule

_LAYER = "encoder.layers.encoder_layer_{i}"
_SWIN = (
    Rule("patch_embed.proj.{p}", "features.0.0.{p}"),
    Rule("patch_embed.norm.{p}", "features.0.2.{p}"),
    Rule("layers.{i}.blocks.{j}.norm1.{p}", "features.{2i+1}.{j}.norm1.{p}"),
    Rule("layers.{i}.blocks.{j}.norm2.{p}", "features.{2i+1}.{j}.norm2.{p}"),
    Rule("layers.{i}.blocks.{j}.mlp.fc1.{p}", "features.{2i+1}.{j}.mlp.0.{p}"),
    Rule("layers.{i}.blocks.{j}.mlp.fc2.{p}", "features.{2i+1}.{j}.mlp.3.{p}"),
    Rule("layers.{i}.blocks.{j}.attn.proj.{p}", "features.{2i+1}.{j}.attn.proj.{p}"),
    Rule("layers.{i}.blocks.{j}.attn.qkv.weight", "features.{2i+1}.{j}.attn.qkv.weight"),
    Rule("layers.{i}.downsample.{part}.{p}", "features.{2i}.{part}.{p}"),
    Rule("layers.{i}.blocks.{j}.attn.relative_position_index", "features.{2i+1}.{j}.attn.relative_position_index"),
    Rule("layers.{i}.blocks.{j}.attn.relative_coords_table", "features.{2i+1}.{j}.attn.relative_coords_table"),
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
            Rule("blocks.{i}.norm1.{p}", f"{_LAYER}.ln_1.{{p}}"),
            Rule("blocks.{i}.norm2.{p}", f"{_LAYER}.ln_2.{{p}}"),
            Rule("blocks.{i}.attn.qkv.weight", f"{_LAYER}.self_attention.in_proj_weight"),
            Rule("blocks.{i}.attn.qkv.bias", f"{_LAYER}.self_attention.in_proj_bias"),
            Rule("blocks.{i}.attn.proj.{p}", f"{_LAYER}.self_attention.out_proj.{{p}}"),
            Rule("blocks.{i}.mlp.fc1.{p}", f"{_LAYER}.mlp.0.{{p}}"),
            Rule("blocks.{i}.mlp.fc2.{p}", f"{_LAYER}.mlp.3.{{p}}"),
            Rule("blocks.{i}.mlp.fc1.{p}", f"{_LAYER}.mlp.linear_1.{{p}}"),  # files from before torchvision 0.13
            Rule("blocks.{i}.mlp.fc2.{p}", f"{_LAYER}.mlp.linear_2.{{p}}"),
            Rule("norm.{p}", "encoder.ln.{p}"),
            Rule("pre_logits.fc.{p}", "heads.pre_logits.{p}"),
            Rule("head.{p}", "heads.head.{p}"),
        ),
        head="heads.head",
    ),
    Layout(
        "torchvision",
        "SwinV2",
        (r"features\.0\.0\.weight", r"features\.1\.0\.attn\.logit_scale"),
        (
            *_SWIN,
            Rule(
                [f"layers.{{i}}.blocks.{{j}}.attn.{each}_bias" for each in "qv"],
                "features.{2i+1}.{j}.attn.qkv.bias",
                OUTER_THIRDS,
            ),
            Rule("layers.{i}.blocks.{j}.attn.logit_scale", "features.{2i+1}.{j}.attn.logit_scale"),
            Rule("layers.{i}.blocks.{j}.attn.cpb_mlp.{k}.{p}", "features.{2i+1}.{j}.attn.cpb_mlp.{k}.{p}"),
        ),
        IGNORED,
    ),
    Layout(
        "torchvision",
        "Swin",
        (r"features\.0\.0\.weight", r"features\.1\.0\.attn\.relative_position_bias_table"),
        (
            *_SWIN,
            Rule("layers.{i}.blocks.{j}.attn.qkv.bias", "features.{2i+1}.{j}.attn.qkv.bias"),
            Rule(
                "layers.{i}.blocks.{j}.attn.relative_position_bias_table",
                "features.{2i+1}.{j}.attn.relative_position_bias_table",
            ),
        ),
        IGNORED,
    ),
]
