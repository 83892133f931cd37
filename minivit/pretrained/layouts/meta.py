"""The names of facebookresearch's DeiT III, DINO, iBOT, DINOv2 and MAE, which are timm's but for a few.

Their encoders alone, where no name differs (DINO, I-JEPA, MAE without its decoder), are read as timm's.
"""

from __future__ import annotations

from typing import Any

from minivit.pretrained.layouts.layout import IGNORED, MASK_TOKEN, Layout, class_token_placed
from minivit.pretrained.layouts.microsoft import TIMM
from minivit.pretrained.renaming import Rule
from minivit.protocol import Array

_BLOCK = "blocks.{i}"
_SAME = (
    *("cls_token", "dist_token", "pos_embed", "patch_embed.proj.{p}", "norm.{p}", "fc_norm.{p}", "head.{p}"),
    *(f"{_BLOCK}.{each}.{{p}}" for each in ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")),
    *(f"{_BLOCK}.{each}.gamma" for each in ("ls1", "ls2")),
)
_RULES = (
    *(Rule(f"{_BLOCK}.ls{n}.gamma", f"{_BLOCK}.gamma_{n}") for n in (1, 2)),  # DeiT III
    Rule("reg_token", "register_tokens"),  # DINOv2, whose gated MLP follows
    Rule(f"{_BLOCK}.mlp.fc1.{{p}}", f"{_BLOCK}.mlp.w12.{{p}}"),
    Rule(f"{_BLOCK}.mlp.fc2.{{p}}", f"{_BLOCK}.mlp.w3.{{p}}"),
    *(Rule(name, name) for name in _SAME),
)
_GATED = r"blocks\.0\.mlp\.w12\.weight"


def _unplaced(arrays: dict[str, Array]) -> dict[str, Array]:
    return class_token_placed(arrays, "cls_token", "pos_embed")


def _layout(family: str, *signs: str, **more: Any) -> Layout:
    return Layout(
        "meta",
        "ViT",
        (*TIMM[1].signs, *signs),
        _RULES,
        IGNORED,
        family=family,
        settings={"global_pool": "token"},
        written=False,
        **more,
    )


def _says(**arguments: Any) -> dict[str, Any]:
    return {"arguments": lambda arrays: arguments}


META = [
    # its class token has no position; other projects with this LayerScale have positions within attention
    _layout(
        "DeiT III",
        r"blocks\.0\.gamma_1",
        r"pos_embed",
        r"cls_token",
        absent=r"blocks\..*\.(q_bias|v_bias|relative_position.*)|rel_pos_bias\..*|blocks_token_only\..*",
        **_says(no_embed_class=True),
    ),
    # DINOv2 adds positions before it inserts the registers, so that of the class token can be a part of the token
    *(
        _layout(
            "DINOv2",
            r"register_tokens",
            *signs,
            prepare=_unplaced,
            positions={"mode": "bicubic", "antialias": True},
            **_says(no_embed_class=True, **gated),
        )
        for signs, gated in (((_GATED,), {"mlp_layer": "swiglu_packed"}), ((), {}))
    ),
    _layout("DINOv2", _GATED, **_says(no_embed_class=False, mlp_layer="swiglu_packed")),
    _layout("DINOv2", r"mask_token", r"blocks\.0\.ls1\.gamma", **_says(no_embed_class=False)),
    _layout("MAE", r"decoder_embed\.weight", omitted=rf"{MASK_TOKEN}|decoder_.*", **_says(no_embed_class=False)),
    # the projection head of self-distillation, beside the encoder
    _layout(
        "DINO",
        r"head\.last_layer\..*",
        prefixes=("backbone.",),
        omitted=rf"{MASK_TOKEN}|masked_embed",
        beyond=r"head\.(mlp2?|last_layer2?)\..*",
        **_says(no_embed_class=False),
    ),
]
