"""The names of facebookresearch's DeiT III, DINO, iBOT, DINOv2, DINOv3 and MAE, which are timm's but for a few.

Their encoders alone, where no name differs (DINO, I-JEPA, MAE without its decoder), are read as timm's.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minivit.nn.rotary import PERIODS, rotary_periods
from minivit.pretrained.layouts.layout import IGNORED, MASK_TOKEN, Layout, class_token_placed
from minivit.pretrained.layouts.microsoft import TIMM
from minivit.pretrained.profiles import PLAIN
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
_DINOV3_RULES = (
    Rule("reg_token", "storage_tokens"),
    *(Rule(f"{_BLOCK}.attn.{each}_bias", f"{_BLOCK}.attn.{each}_bias") for each in "qv"),
    Rule(f"{_BLOCK}.mlp.fc1_g.{{p}}", f"{_BLOCK}.mlp.w1.{{p}}"),
    Rule(f"{_BLOCK}.mlp.fc1_x.{{p}}", f"{_BLOCK}.mlp.w2.{{p}}"),
    *_RULES,
)
_GATED = r"blocks\.0\.mlp\.w12\.weight"


def _unplaced(arrays: dict[str, Array]) -> dict[str, Array]:
    return class_token_placed(arrays, "cls_token", "pos_embed")


_PERIODS = "rope_embed.periods"


def _rotation(arrays: dict[str, Array]) -> dict[str, Any]:
    """What the periods of the rotation show: the heads' size, and their rounding.

    Raises:
        ValueError: for periods of another formula.
    """
    periods, dim = arrays[_PERIODS], arrays["blocks.0.attn.qkv.weight"].shape[1]
    size = 4 * periods.size
    if size == 0 or dim % size:
        raise ValueError(
            f"{_PERIODS} has {periods.size} numbers, a quarter of a head's channels, of which it has {dim}"
        )
    for rounding in PERIODS:
        if np.allclose(periods, rotary_periods(size, rounding), rtol=1e-6, atol=0):  # float32's rounding
            return {"num_heads": dim // size, "rotary_periods": rounding}
    raise ValueError(
        f"its {_PERIODS} go from {periods.min():.4g} to {periods.max():.4g}, and minivit's rotary positions have "
        f"100^(j/{periods.size}), which may be rounded to bfloat16: choose another file"
    )


def _masked(arrays: dict[str, Array]) -> dict[str, Array]:
    """The biases of q, k and v times their masks: k has none. A mask that was never set is NaN, and masks k."""
    biases = {name: arrays[name] for name in arrays if name.endswith(".attn.qkv.bias")}
    for name, bias in biases.items():
        mask = arrays.get(f"{name}_mask")
        if mask is not None:
            usual = np.repeat((1, 0, 1), bias.size // 3)
            mask = np.where(np.isnan(mask), usual, mask)
            biases[name] = np.where(mask == 0, 0, bias * mask).astype(bias.dtype)
    thirds = {name.removesuffix("qkv.bias"): np.split(bias, 3) for name, bias in biases.items()}
    if not any(k.any() for _, k, _ in thirds.values()):
        biases = {f"{name}{p}_bias": part for name, (q, _, v) in thirds.items() for p, part in (("q", q), ("v", v))}
    others = {name: array for name, array in arrays.items() if not name.endswith((".qkv.bias", ".qkv.bias_mask"))}
    return {**others, **biases}


def _layout(family: str, *signs: str, **more: Any) -> Layout:
    return Layout(
        "meta",
        "ViT",
        (*TIMM[1].signs, *signs),
        more.pop("rules", _RULES),
        more.pop("ignored", IGNORED),
        family=family,
        settings={"global_pool": "token", **more.pop("settings", {})},
        written=False,
        **more,
    )


def _says(**arguments: Any) -> dict[str, Any]:
    return {"arguments": lambda arrays: arguments}


META = [
    # the norm of small crops serves training alone
    _layout(
        "DINOv3",
        r"rope_embed\.periods",
        rules=_DINOV3_RULES,
        ignored=(*IGNORED, r"rope_embed\.periods"),
        settings={"norm_eps": 1e-5, "pos_embed": "rotary", "dynamic_img_size": True},
        prepare=_masked,
        arguments=_rotation,
        omitted=rf"{MASK_TOKEN}|local_cls_norm\..*",
    ),
    # its class token has no position; other projects with this LayerScale have positions within attention
    _layout(
        "DeiT III",
        r"blocks\.0\.gamma_1",
        r"pos_embed",
        r"cls_token",
        absent=r"blocks\..*\.(q_bias|v_bias|relative_position.*)|rel_pos_bias\..*|blocks_token_only\..*",
        positions=PLAIN,
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
    _layout(
        "MAE",
        r"decoder_embed\.weight",
        omitted=rf"{MASK_TOKEN}|decoder_.*",
        positions=PLAIN,
        **_says(no_embed_class=False),
    ),
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
