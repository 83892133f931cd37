"""Which model a set of arrays belongs to: its class and arguments, read off the names and shapes.

What shapes cannot tell (heads of a ViT, the image size of a Swin) comes from config.json where there is one, from the
published size of the same widths, or from the convention of that family. Next: `fit.py`.
"""

from __future__ import annotations

import re
from math import isqrt
from typing import Any

from minivit.models import configs
from minivit.protocol import refuse

Shapes = dict[str, tuple[int, ...]]


def arguments(model: str, shapes: Shapes, config: dict[str, Any], buffers: Shapes) -> dict[str, Any]:
    """The arguments of the class `model` that fit.

    Args:
        model: "ViT", "Swin" or "SwinV2".
        shapes: of the arrays under our names.
        config: config.json beside the file, or empty.
        buffers: shapes of the tables that came with the file and are not learned, under our names.

    Raises:
        ValueError: if the arrays make no such model.
    """
    found = _vit(shapes, config) if model == "ViT" else _swin(model, shapes, config, buffers)
    patch = shapes["patch_embed.proj.weight"]
    found |= {"patch_size": _short(patch[2:]), "in_chans": patch[1], "patch_norm": "patch_embed.norm.weight" in shapes}
    return found


def _vit(shapes: Shapes, config: dict[str, Any]) -> dict[str, Any]:
    dim, _, height, width = shapes["patch_embed.proj.weight"]
    prefix = ("cls_token" in shapes) + ("dist_token" in shapes)
    head = shapes.get("head.weight")
    hidden = shapes["blocks.0.mlp.fc1.weight"][0]
    found: dict[str, Any] = {
        "embed_dim": dim,
        "depth": _count(shapes, r"blocks\.(\d+)\."),
        "mlp_ratio": hidden / dim,
        "num_classes": head[0] if head else 0,
        "class_token": "cls_token" in shapes,
        "distilled": "dist_token" in shapes,
        "global_pool": "avg" if "fc_norm.weight" in shapes or not prefix else "token",
        "qkv_bias": "blocks.0.attn.qkv.bias" in shapes,
        "pos_embed": "learned_1d" if "pos_embed" in shapes else "none",
        "representation_size": shapes["pre_logits.fc.weight"][0] if "pre_logits.fc.weight" in shapes else None,
    }
    if "pos_embed" in shapes:
        tokens = shapes["pos_embed"][1] - prefix
        side = isqrt(tokens)
        refuse(side * side != tokens, f"pos_embed has {tokens} places, which make no square: say img_size=(H, W)")
        found["img_size"] = _short((side * height, side * width))
    found["num_heads"] = _vit_heads(found, config)
    return found


def _vit_heads(found: dict[str, Any], config: dict[str, Any]) -> int:
    """Heads leave no trace in the shapes of a ViT."""
    told = config.get("num_attention_heads") or config.get("num_heads")
    if told:
        return int(told)
    same = ("embed_dim", "depth")
    for _, published in configs.published():
        if all(published.get(name) == found[name] for name in same):
            return int(published["num_heads"])
    return max(1, found["embed_dim"] // 64)  # the width of a head in every published ViT


def _swin(model: str, shapes: Shapes, config: dict[str, Any], buffers: Shapes) -> dict[str, Any]:
    stages = _count(shapes, r"layers\.(\d+)\.")
    depths = [_count(shapes, rf"layers\.{stage}\.blocks\.(\d+)\.") for stage in range(stages)]
    dim = shapes["patch_embed.proj.weight"][0]
    head = shapes.get("head.fc.weight")
    bias = "qkv.bias" if model == "Swin" else "q_bias"
    found: dict[str, Any] = {
        "embed_dim": dim,
        "depths": tuple(depths),
        "num_heads": tuple(_swin_heads(shapes, stage) for stage in range(stages)),
        "mlp_ratio": shapes["layers.0.blocks.0.mlp.fc1.weight"][0] / dim,
        "num_classes": head[0] if head else 0,
        "qkv_bias": f"layers.0.blocks.0.attn.{bias}" in shapes,
        "ape": "absolute_pos_embed" in shapes,
        "allow_odd_depths": any(depth % 2 for depth in depths),
    }
    windows = [_window(shapes, buffers, stage) for stage in range(stages)]
    patch = shapes["patch_embed.proj.weight"][2]
    if windows[0]:
        found["window_size"] = max(filter(None, windows))
        # a window that shrank in the last stage is that stage's map; else each published model's last map is one window
        found["img_size"] = (windows[-1] or windows[0]) * patch * 2 ** (stages - 1)
    elif config.get("window_size"):
        found["window_size"] = config["window_size"]
    if "image_size" in config:
        found["img_size"] = config["image_size"]
    if "pretrained_window_sizes" in config and model == "SwinV2":
        found["pretrained_window_sizes"] = tuple(config["pretrained_window_sizes"])[:stages]
    if "absolute_pos_embed" in shapes:
        found["img_size"] = isqrt(shapes["absolute_pos_embed"][1]) * patch
    return found


def _swin_heads(shapes: Shapes, stage: int) -> int:
    attention = f"layers.{stage}.blocks.0.attn"
    table = shapes.get(f"{attention}.relative_position_bias_table")
    return table[1] if table else shapes[f"{attention}.logit_scale"][0]


def _window(shapes: Shapes, buffers: Shapes, stage: int) -> int | None:
    """The side of a stage's window: a table has (2M-1)^2 rows, an index M^2; v2's MLP knows no window."""
    attention = f"layers.{stage}.blocks.0.attn"
    table = shapes.get(f"{attention}.relative_position_bias_table")
    if table:
        return (isqrt(table[0]) + 1) // 2
    index = buffers.get(f"{attention}.relative_position_index")
    if index:
        return isqrt(index[-1]) if len(index) == 2 else isqrt(isqrt(index[0]))
    return None


def _count(shapes: Shapes, pattern: str) -> int:
    """One more than the largest number at a place of the names."""
    matches = (re.match(pattern, name) for name in shapes)
    return 1 + max((int(match[1]) for match in matches if match), default=-1)


def _short(size: tuple[int, ...]) -> int | tuple[int, int]:
    return size[0] if size[0] == size[1] else (size[0], size[1])
