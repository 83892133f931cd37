"""The names of Hugging Face transformers for the families after ViT: CLIP, SigLIP, DINOv2, DINOv3 and BEiT."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from minivit.pretrained.layouts.layout import IGNORED, Layout, class_token_placed, with_bias, without_bias
from minivit.pretrained.renaming import HALVES, QUERY_ALONE, ROWS, STACKED, TOKEN, Rule
from minivit.protocol import Array

_BLOCK = "blocks.{i}"


def _qkv(theirs: str, names: tuple[str, ...], p: str = "{p}") -> Rule:
    return Rule(f"{_BLOCK}.attn.qkv.{p}", [f"{theirs}.{name}.{p}" for name in names], STACKED)


# CLIP and SigLIP: the image tower, alone or beside a text tower
_LAYER = "encoder.layers.{i}"
_TOWER = (
    Rule("pos_embed", "embeddings.position_embedding.weight", ROWS),
    Rule("patch_embed.proj.{p}", "embeddings.patch_embedding.{p}"),
    Rule(f"{_BLOCK}.norm1.{{p}}", f"{_LAYER}.layer_norm1.{{p}}"),
    Rule(f"{_BLOCK}.norm2.{{p}}", f"{_LAYER}.layer_norm2.{{p}}"),
    _qkv(f"{_LAYER}.self_attn", ("q_proj", "k_proj", "v_proj")),
    Rule(f"{_BLOCK}.attn.proj.{{p}}", f"{_LAYER}.self_attn.out_proj.{{p}}"),
    Rule(f"{_BLOCK}.mlp.{{part}}.{{p}}", f"{_LAYER}.mlp.{{part}}.{{p}}"),
    Rule("norm.{p}", "post_layernorm.{p}"),
)
_CLIP = (
    Rule("cls_token", "embeddings.class_embedding", TOKEN),
    Rule("norm_pre.{p}", "pre_layrnorm.{p}"),  # the misspelling is transformers'
    *_TOWER,
    Rule("head.{p}", "visual_projection.{p}"),
)
_SIGLIP = (
    *_TOWER,
    Rule("attn_pool.latent", "head.probe"),
    Rule([f"attn_pool.{each}.{{p}}" for each in ("q", "kv")], "head.attention.in_proj_{p}", QUERY_ALONE),
    Rule("attn_pool.proj.{p}", "head.attention.out_proj.{p}"),
    Rule("attn_pool.norm.{p}", "head.layernorm.{p}"),
    Rule("attn_pool.mlp.{part}.{p}", "head.mlp.{part}.{p}"),
)
_CLASSIFIER = (Rule("head.{p}", "classifier.{p}"),)
_TEXT = r"text_model\..*|text_projection\.weight|logit_scale|logit_bias"
_FIRST = (r"embeddings\.patch_embedding\.weight", r"encoder\.layers\.0\.self_attn\.q_proj\.weight")
_CLIP_SIGNS = (*_FIRST, r"pre_layrnorm\.weight")
_SIGLIP_SIGNS = (*_FIRST, r"embeddings\.position_embedding\.weight")
_CLASSIFIES = r"classifier\.weight"


def _pools_patches(arrays: dict[str, Array]) -> dict[str, Any]:
    """The classifiers of CLIP and SigLIP read the mean of the patches, and neither class token nor `head`."""
    return {"global_pool": "avg", "fc_norm": False}


def _with_convolution(arrays: dict[str, Array]) -> dict[str, Any]:
    """Refuse SigLIP 2's models of any aspect ratio, whose patches are flattened before the file's model sees them.

    Raises:
        ValueError: if the patch embedding is no convolution.
    """
    if arrays["embeddings.patch_embedding.weight"].ndim != 4:
        raise ValueError(
            "its patch embedding is a linear layer of flattened patches, as in SigLIP 2's NaFlex models, which take "
            "images of any aspect ratio, and minivit has not: choose one of fixed size, as siglip2-base-patch16-224"
        )
    return {}


def _towers() -> list[Layout]:
    shared: dict[str, Any] = {"ignored": IGNORED, "prefixes": ("vision_model.", ""), "beyond": _TEXT}
    clip: dict[str, Any] = {**shared, "family": "CLIP", "settings": {"norm_eps": 1e-5, "global_pool": "token"}}
    siglip: dict[str, Any] = {**shared, "family": "SigLIP", "settings": {"norm_eps": 1e-6, "gelu": "tanh"}}
    siglip |= {"absent": r"pre_layrnorm\..*|embeddings\.class_embedding"}
    return [
        Layout(
            "huggingface",
            "ViT",
            (*_CLIP_SIGNS, _CLASSIFIES),
            (*_CLIP, *_CLASSIFIER),
            omitted=r"post_layernorm\..*",  # its classifier reads the patches as the last block leaves them
            beside=r"classifier\..*",
            arguments=_pools_patches,
            head="classifier",
            written=False,
            **clip,
        ),
        Layout(
            "huggingface",
            "ViT",
            _CLIP_SIGNS,
            _CLIP,
            prepare=lambda arrays: with_bias(arrays, "visual_projection"),
            beside=r"visual_projection\..*",
            finish=lambda arrays: without_bias(arrays, "visual_projection"),
            **clip,
        ),
        Layout(
            "huggingface",
            "ViT",
            (*_SIGLIP_SIGNS, _CLASSIFIES),
            (*_SIGLIP, *_CLASSIFIER),
            omitted=r"head\..*",
            arguments=lambda arrays: _with_convolution(arrays) | _pools_patches(arrays),
            head="classifier",
            written=False,
            **siglip,
        ),
        Layout("huggingface", "ViT", _SIGLIP_SIGNS, _SIGLIP, arguments=_with_convolution, **siglip),
    ]


# DINOv2: (where q, k and v are, projection, the joint first layer of SwiGLU, its last layer) in published files, and in
# the memory of transformers 5, which separates gate and value
_DINO_LAYER = "encoder.layer.{i}"
_DINO = (
    Rule("cls_token", "embeddings.cls_token"),
    Rule("reg_token", "embeddings.register_tokens"),
    Rule("pos_embed", "embeddings.position_embeddings"),
    Rule("patch_embed.proj.{p}", "embeddings.patch_embeddings.projection.{p}"),
    *(Rule(f"{_BLOCK}.{each}.{{p}}", f"{_DINO_LAYER}.{each}.{{p}}") for each in ("norm1", "norm2")),
    *(Rule(f"{_BLOCK}.ls{n}.gamma", f"{_DINO_LAYER}.layer_scale{n}.lambda1") for n in (1, 2)),
    _qkv(f"{_DINO_LAYER}.attention.attention", ("query", "key", "value")),
    _qkv(f"{_DINO_LAYER}.attention", ("q_proj", "k_proj", "v_proj")),
    Rule(f"{_BLOCK}.attn.proj.{{p}}", f"{_DINO_LAYER}.attention.output.dense.{{p}}"),
    Rule(f"{_BLOCK}.attn.proj.{{p}}", f"{_DINO_LAYER}.attention.o_proj.{{p}}"),
)
_MLP = (Rule(f"{_BLOCK}.mlp.{{part}}.{{p}}", f"{_DINO_LAYER}.mlp.{{part}}.{{p}}"),)
_SWIGLU = (
    Rule(f"{_BLOCK}.mlp.fc1.{{p}}", f"{_DINO_LAYER}.mlp.weights_in.{{p}}"),
    Rule(f"{_BLOCK}.mlp.fc2.{{p}}", f"{_DINO_LAYER}.mlp.weights_out.{{p}}"),
    Rule(f"{_BLOCK}.mlp.fc1.{{p}}", [f"{_DINO_LAYER}.mlp.{each}_proj.{{p}}" for each in ("gate", "up")], HALVES),
    Rule(f"{_BLOCK}.mlp.fc2.{{p}}", f"{_DINO_LAYER}.mlp.down_proj.{{p}}"),
)
_END = (Rule("norm.{p}", "layernorm.{p}"), *_CLASSIFIER)
_CLASS, _REGISTERS, _POSITIONS = (
    f"embeddings.{each}" for each in ("cls_token", "register_tokens", "position_embeddings")
)


def _unplaced(arrays: dict[str, Array]) -> dict[str, Array]:
    return class_token_placed(arrays, _CLASS, _POSITIONS) if _REGISTERS in arrays else arrays


def _finished(arrays: dict[str, Array]) -> dict[str, Array]:
    """With the mask token of pretraining, without which transformers warns."""
    if "classifier.weight" in arrays:
        raise ValueError(
            "transformers' classifiers of DINOv2 read the class token and the mean of the patches side by side, and "
            "this head one of them: export it with num_classes=0, or as 'timm'"
        )
    table = arrays[_POSITIONS]
    return {**arrays, "embeddings.mask_token": np.zeros((1, table.shape[2]), table.dtype)}


def _dino(gated: bool, registers: bool) -> Layout:
    first, last = (r"(weights_in|gate_proj)", r"(weights_out|down_proj)") if gated else ("fc1", "fc2")
    first, last = (rf"encoder\.layer\.0\.mlp\.{each}\.weight" for each in (first, last))

    def as_wide(arrays: dict[str, Array]) -> bool:
        """Whether an MLP's first layer has as many channels as the last reads, or twice as many if it is gated."""
        rows = next(array.shape[:1] for name, array in arrays.items() if re.fullmatch(first, name))
        read = next(array.shape[-1:] for name, array in arrays.items() if re.fullmatch(last, name))
        return gated == (rows == tuple(2 * each for each in read)) or any("gate_proj" in name for name in arrays)

    signs = (r"encoder\.layer\.0\.layer_scale1\.lambda1", first, last)
    return Layout(
        "huggingface",
        "ViT",
        (*signs, *([r"embeddings\.register_tokens"] * registers)),
        (*_DINO, *(_SWIGLU if gated else _MLP), *_END),
        IGNORED,
        ("", "dinov2.", "dinov2_with_registers."),
        absent="" if registers else r"embeddings\.register_tokens",
        possible=as_wide,
        prepare=_unplaced,
        arguments=lambda arrays: {
            "no_embed_class": registers,
            **({"mlp_layer": "swiglu_packed"} if gated else {}),
        },
        head="classifier",
        family="DINOv2",
        settings={"norm_eps": 1e-6, "global_pool": "token"},
        positions={"mode": "bicubic", "antialias": True} if registers else None,
        finish=_finished,
    )


# DINOv3: rotary positions, of which it stores nothing; blocks are `layer` in files, and `model.layer` in memory
_LAYER3 = "layer.{i}"
_DINOV3 = (
    Rule("cls_token", "embeddings.cls_token"),
    Rule("reg_token", "embeddings.register_tokens"),
    Rule("patch_embed.proj.{p}", "embeddings.patch_embeddings.{p}"),
    *(Rule(f"{_BLOCK}.{each}.{{p}}", f"{_LAYER3}.{each}.{{p}}") for each in ("norm1", "norm2")),
    *(Rule(f"{_BLOCK}.ls{n}.gamma", f"{_LAYER3}.layer_scale{n}.lambda1") for n in (1, 2)),
    _qkv(f"{_LAYER3}.attention", ("q_proj", "k_proj", "v_proj")),
    *(Rule(f"{_BLOCK}.attn.{each}_bias", f"{_LAYER3}.attention.{each}_proj.bias") for each in "qv"),
    Rule(f"{_BLOCK}.attn.proj.{{p}}", f"{_LAYER3}.attention.o_proj.{{p}}"),
    Rule(
        [f"{_BLOCK}.mlp.{each}.{{p}}" for each in ("fc1_g", "fc1_x")],
        [f"{_LAYER3}.mlp.{each}_proj.{{p}}" for each in ("gate", "up")],
    ),
    Rule(f"{_BLOCK}.mlp.fc1.{{p}}", f"{_LAYER3}.mlp.up_proj.{{p}}"),
    Rule(f"{_BLOCK}.mlp.fc2.{{p}}", f"{_LAYER3}.mlp.down_proj.{{p}}"),
    Rule("norm.{p}", "norm.{p}"),
)


def _as_in_files(arrays: dict[str, Array]) -> dict[str, Array]:
    """The names in files for those in memory, and no array of 0 registers."""
    return {name.removeprefix("model."): array for name, array in arrays.items() if name != _REGISTERS or array.size}


def _with_empty_tokens(arrays: dict[str, Array]) -> dict[str, Array]:
    """With the mask token of pretraining and 0 registers, without which transformers warns."""
    token = arrays[_CLASS]
    return {
        _REGISTERS: np.zeros((1, 0, token.shape[2]), token.dtype),
        **arrays,
        "embeddings.mask_token": np.zeros_like(token),
    }


_DINOV3_LAYOUT = Layout(
    "huggingface",
    "ViT",
    (
        r"embeddings\.cls_token",
        r"embeddings\.patch_embeddings\.weight",
        r"(model\.)?layer\.0\.layer_scale1\.lambda1",
        r"norm\.weight",
    ),
    _DINOV3,
    IGNORED,
    prepare=_as_in_files,
    family="DINOv3",
    settings={"norm_eps": 1e-5, "global_pool": "token", "pos_embed": "rotary", "dynamic_img_size": True},
    finish=_with_empty_tokens,
)

# BEiT: (block, where q, k and v are, their names, the block's other layers, its table) in files, and in memory
_BEIT_BLOCKS = (
    (
        "encoder.layer.{i}",
        "attention.attention",
        ("query", "key", "value"),
        ("attention.output.dense", "intermediate.dense", "output.dense"),
        "attention.attention.relative_position_bias",
    ),
    (
        "layers.{i}",
        "attention",
        ("q_proj", "k_proj", "v_proj"),
        ("attention.o_proj", "mlp.fc1", "mlp.fc2"),
        "relative_position_bias",
    ),
)
_TABLE = "relative_position_bias_table"


def _beit_block(block: str, attention: str, names: tuple[str, ...], layers: tuple[str, ...], table: str) -> list[Rule]:
    ours = ("norm1", "norm2", "attn.proj", "mlp.fc1", "mlp.fc2")
    theirs = ("layernorm_before", "layernorm_after", *layers)
    return [
        *(Rule(f"{_BLOCK}.{each}.{{p}}", f"{block}.{name}.{{p}}") for each, name in zip(ours, theirs)),
        _qkv(f"{block}.{attention}", names, "weight"),
        *(Rule(f"{_BLOCK}.attn.{p}_bias", f"{block}.{attention}.{name}.bias") for p, name in zip("qv", names[::2])),
        *(Rule(f"{_BLOCK}.ls{n}.gamma", f"{block}.lambda_{n}") for n in (1, 2)),
        Rule(f"{_BLOCK}.attn.{_TABLE}", f"{block}.{table}.{_TABLE}"),
    ]


_BEIT = (
    Rule("cls_token", "embeddings.cls_token"),
    Rule("pos_embed", "embeddings.position_embeddings"),
    Rule("patch_embed.proj.{p}", "embeddings.patch_embeddings.projection.{p}"),
    *(rule for names in _BEIT_BLOCKS for rule in _beit_block(*names)),
    Rule("fc_norm.{p}", "pooler.layernorm.{p}"),
    Rule("norm.{p}", "layernorm.{p}"),
    *_CLASSIFIER,
)


def _with_own_tables(arrays: dict[str, Array]) -> dict[str, Array]:
    """A table that all blocks share, added to each block's own or in its place: the scores are the same."""
    shared = re.compile(rf"(encoder\.relative_position_bias|shared_position_bias)\.{_TABLE}")
    tables = [array for name, array in arrays.items() if shared.fullmatch(name)]
    found = {name: array for name, array in arrays.items() if not shared.fullmatch(name)}
    for name in [name for name in found if tables and name.endswith(".layernorm_before.weight")]:
        block = name.removesuffix("layernorm_before.weight")
        table = f"{block}{_BEIT_BLOCKS[block.startswith('layers')][-1]}.{_TABLE}"
        found[table] = found[table] + tables[0] if table in found else tables[0].copy()
    return found


_BEIT_LAYOUT = Layout(
    "huggingface",
    "ViT",
    (
        r"(encoder\.layer\.0\.attention\.attention\.query|layers\.0\.attention\.q_proj)\.weight",
        r".*(relative_position_bias_table|lambda_1)",
        r"embeddings\.cls_token",
    ),
    _BEIT,
    IGNORED,
    ("beit.", ""),
    r"classifier\..*",
    prepare=_with_own_tables,
    arguments=lambda arrays: {"global_pool": "avg" if "pooler.layernorm.weight" in arrays else "token"},
    head="classifier",
    family="BEiT",
    settings={"norm_eps": 1e-12, "pos_embed": "relative"},
    biases={"mode": "bilinear", "antialias": False},
    square="transformers' BEiT reads its table of biases as width by height, which resamples it at its own size too",
    beyond=r"lm_head\..*",  # which predicts the visual tokens of masked patches
)

HUGGINGFACE_FAMILIES = [
    *_towers(),
    *(_dino(gated, registers) for registers in (True, False) for gated in (False, True)),
    _DINOV3_LAYOUT,
    _BEIT_LAYOUT,
]
