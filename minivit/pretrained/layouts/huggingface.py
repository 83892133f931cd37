"""The names of Hugging Face transformers, with separate q, k and v: ViT, DeiT, Swin and Swin v2."""

from __future__ import annotations

from minivit.pretrained.layouts.layout import IGNORED, MASK_TOKEN, Layout
from minivit.pretrained.renaming import STACKED, Rule

# published files have the names of transformers' early versions; since version 5 its models have others, which
# torch.save(model.state_dict()) writes: (block, where q, k and v are, projection, fc1, fc2)
_PUBLISHED = ("attention.output.dense", "intermediate.dense", "output.dense")
_MEMORY = ("attention.o_proj", "mlp.fc1", "mlp.fc2")
_QKV = ("query", "key", "value")
_QKV_MEMORY = ("q_proj", "k_proj", "v_proj")


def _block(ours: str, theirs: str, parts: tuple[str, str, str]) -> tuple[Rule, ...]:
    """The norms and linear layers of a block, without q, k and v."""
    pairs = zip(("norm1", "norm2", "attn.proj", "mlp.fc1", "mlp.fc2"), ("layernorm_before", "layernorm_after", *parts))
    return tuple(Rule(f"{ours}.{our}.{{p}}", f"{theirs}.{their}.{{p}}") for our, their in pairs)


def _qkv(ours: str, theirs: str, names: tuple[str, ...], p: str = "{p}") -> Rule:
    return Rule(f"{ours}.attn.qkv.{p}", [f"{theirs}.{name}.{p}" for name in names], STACKED)


_OUR_VIT, _OUR_SWIN = "blocks.{i}", "layers.{i}.blocks.{j}"
_SWIN_BLOCK = "encoder.layers.{i}.blocks.{j}"
_VIT = (
    Rule("cls_token", "embeddings.cls_token"),
    Rule("dist_token", "embeddings.distillation_token"),
    Rule("pos_embed", "embeddings.position_embeddings"),
    Rule("patch_embed.proj.{p}", "embeddings.patch_embeddings.projection.{p}"),
    *_block(_OUR_VIT, "encoder.layer.{i}", _PUBLISHED),
    _qkv(_OUR_VIT, "encoder.layer.{i}.attention.attention", _QKV),
    *_block(_OUR_VIT, "layers.{i}", _MEMORY),
    _qkv(_OUR_VIT, "layers.{i}.attention", _QKV_MEMORY),
    Rule("norm.{p}", "layernorm.{p}"),
    Rule(["head.{p}", "head_dist.{p}"], ["cls_classifier.{p}", "distillation_classifier.{p}"]),
    Rule("head.{p}", "classifier.{p}"),
)
_SWIN = (
    Rule("patch_embed.proj.{p}", "embeddings.patch_embeddings.projection.{p}"),
    Rule("patch_embed.norm.{p}", "embeddings.norm.{p}"),
    Rule("absolute_pos_embed", "embeddings.position_embeddings"),
    *_block(_OUR_SWIN, _SWIN_BLOCK, _PUBLISHED),
    *_block(_OUR_SWIN, _SWIN_BLOCK, _MEMORY),
    Rule("layers.{i+1}.downsample.{part}.{p}", "encoder.layers.{i}.downsample.{part}.{p}"),
    Rule("norm.{p}", "layernorm.{p}"),
    Rule("head.fc.{p}", "classifier.{p}"),
)
_ATTENTION = f"{_SWIN_BLOCK}.attention"
_HEADS = r"(cls_|distillation_)?classifier\..*"
_OMITTED = rf"{MASK_TOKEN}|pooler\..*"  # a layer and tanh behind the class token, which no classifier reads
_ZERO = r"encoder\.layers\.0\.blocks\.0\.attention\."

HUGGINGFACE = [
    Layout(
        "huggingface",
        "SwinV2",
        (_ZERO + r"self\.logit_scale",),
        (
            *_SWIN,
            _qkv(_OUR_SWIN, f"{_ATTENTION}.self", _QKV, "weight"),
            Rule(f"{_OUR_SWIN}.attn.q_bias", f"{_ATTENTION}.self.query.bias"),
            Rule(f"{_OUR_SWIN}.attn.v_bias", f"{_ATTENTION}.self.value.bias"),
            Rule(f"{_OUR_SWIN}.attn.logit_scale", f"{_ATTENTION}.self.logit_scale"),
            Rule(
                f"{_OUR_SWIN}.attn.cpb_mlp.{{k}}.{{p}}",
                f"{_ATTENTION}.self.continuous_position_bias_mlp.{{k}}.{{p}}",
            ),
        ),
        IGNORED,
        ("swinv2.", ""),
        _HEADS,
        head="classifier",
        omitted=_OMITTED,
    ),
    Layout(
        "huggingface",
        "Swin",
        (_ZERO + r"(self|relative_position_bias)\.relative_position_bias_table",),
        (
            *_SWIN,
            _qkv(_OUR_SWIN, f"{_ATTENTION}.self", _QKV),
            _qkv(_OUR_SWIN, _ATTENTION, _QKV_MEMORY),
            *(
                Rule(f"{_OUR_SWIN}.attn.relative_position_bias_table", f"{_ATTENTION}.{where}_table")
                for where in ("self.relative_position_bias", "relative_position_bias.relative_position_bias")
            ),
        ),
        IGNORED,
        ("swin.", ""),
        _HEADS,
        head="classifier",
        omitted=_OMITTED,
    ),
    *(
        Layout(
            "huggingface",
            "ViT",
            (r"(encoder\.layer\.0\.attention\.attention\.query|layers\.0\.attention\.q_proj)\.weight", *signs),
            _VIT,
            IGNORED,
            prefixes,
            _HEADS,
            absent=r".*(layer_scale1\.lambda1|lambda_1|relative_position_bias_table)",  # DINOv2, BEiT
            head="classifier",
            omitted=_OMITTED,
            beyond=r"decoder\..*",  # of masked autoencoders
        )
        for prefixes, signs in (
            (("deit.", ""), (r"embeddings\.distillation_token",)),
            (("vit.", "deit.", "ijepa.", ""), ()),
        )
    ),
]
