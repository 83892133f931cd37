"""The arguments of the model of a set of arrays, inferred from the names and shapes.

Arguments that leave no trace in shapes (heads of a ViT, the image size of a Swin) come from config.json, from the
published model of equal widths, or from the convention of the family.
"""

from __future__ import annotations

import re
from math import gcd, isqrt, prod
from typing import Any

from minivit.models.options import patch_grid, prefix_tokens
from minivit.models.resnet import reduction
from minivit.pretrained import hidden, vit_block
from minivit.pretrained.window_sizes import image_of_masks, trained_windows, window_sizes
from minivit.protocol import Array
from minivit.sizes import pair, short

Shapes = dict[str, tuple[int, ...]]
Arguments = dict[str, Any]


def arguments(
    model: str,
    arrays: dict[str, Array],
    config: Arguments,
    buffers: dict[str, Array],
    settings: Arguments,
    requested: Arguments,
) -> Arguments:
    """The arguments of the class `model` for these arrays.

    Args:
        model: "ViT", "Swin" or "SwinV2".
        arrays: under our names.
        config: the arguments in config.json next to the file; see `config_json.py`.
        buffers: the file's tables that are not learned, under our names.
        settings: arguments in which the source differs; see `profiles.py`.
        requested: the requested arguments; their img_size and window_size are used where nothing else determines the
            sides of a grid or window.

    Raises:
        ValueError: if the arrays make no such model.
    """
    shapes: Shapes = {name: tuple(array.shape) for name, array in arrays.items()}
    empty = [name for name, shape in shapes.items() if 0 in shape]
    if empty:
        raise ValueError(f"{empty[:1]} holds no numbers: fetch the file again")
    _check_parts(shapes)
    try:
        if model == "ViT":
            found = _vit(shapes, config, settings, requested)
        else:
            found = _swin(model, shapes, config, buffers, settings, requested)
    except (KeyError, IndexError, ZeroDivisionError) as error:
        what = f"there is no {error}" if isinstance(error, KeyError) else f"an array of other axes ({error})"
        raise ValueError(f"{what}: check where it came from") from None
    found |= {"patch_norm": "patch_embed.norm.weight" in shapes}
    return found | {
        name: config[name] for name in _FROM_CONFIG if name in config and (model == "ViT" or name not in _OF_VIT)
    }


# names of parts that minivit's ViT has not, or has under other names; a pattern matches the beginning of a name
_OTHER_PARTS = {
    r"(register_tokens|storage_tokens)": "register tokens under another name",
    r"blocks\.\d+\.mlp\.w\d+\.": "a gated MLP under another name",
    r"blocks\.\d+\.(attns|ffns)\.(?![01]\.)": "more than two parallel branches",
    r"blocks\.\d+\.(attn\.)?lambda_[ab]$": "one factor for each softmax of differential attention",
}


def _check_parts(shapes: Shapes) -> None:
    """Refuse a model with other parts by their names, before its tables are read."""
    parts = {}
    for pattern, part in _OTHER_PARTS.items():
        name = next((name for name in shapes if re.match(pattern, name)), None)
        if name is not None:
            parts[part] = name
    if parts:
        found = ", ".join(f"{part} ({name})" for part, name in parts.items())
        raise ValueError(f"it has {found}, and minivit's models have no such parts: choose a file of another model")


_OF_VIT = ("global_pool", "fc_norm", "dynamic_img_size", "pool_include_prefix", "rotary_periods")
# options that leave no trace in the arrays, or less than in config.json
_RATES = ("drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate")
_FROM_CONFIG = ("norm_eps", "gelu", "covered", *_OF_VIT, *_RATES)


def _vit(shapes: Shapes, config: Arguments, settings: Arguments, requested: Arguments) -> Arguments:
    dim, channels, height, width = shapes["patch_embed.proj.weight"]
    head = shapes.get("head.weight")
    behind = "fc_norm.weight" in shapes
    class_token = "cls_token" in shapes
    attention_pool = "attn_pool.latent" in shapes
    found: Arguments = {
        "patch_size": short((height, width)),
        "in_chans": channels,
        **_stem(shapes),
        "embed_dim": dim,
        "depth": _count(shapes, r"blocks\.(\d+)\."),
        "num_classes": head[0] if head else 0,
        "class_token": class_token,
        "distilled": "dist_token" in shapes,
        "reg_tokens": shapes["reg_token"][1] if "reg_token" in shapes else 0,
        "pre_norm": "norm_pre.weight" in shapes,
        "final_norm": behind or "norm.weight" in shapes,
        "global_pool": "map" if attention_pool else "avg" if behind or not class_token else "token",
        "fc_norm": behind,
        "pos_embed": "learned_1d" if "pos_embed" in shapes else "relative" if _BIASES in shapes else "none",
        "representation_size": shapes["pre_logits.fc.weight"][0] if "pre_logits.fc.weight" in shapes else None,
        **vit_block.arguments(shapes, dim, config),
        **{name: config[name] for name in ("post_norm", "partial_patches") if name in config},
    }
    if "pos_embed" in shapes:
        found |= _positions(shapes["pos_embed"][1], found, {**settings, **config}, requested)
        sides = zip(pair(found["img_size"]), pair(found["patch_size"]))
        if "resnet_layers" not in found and any(side % patch for side, patch in sides):
            found.setdefault("partial_patches", "drop")
    elif _BIASES in shapes:
        found["img_size"] = _biased_image(shapes[_BIASES][0], found, config, requested)
        found["num_heads"] = shapes[_BIASES][1]
    elif "img_size" in config or "input_size" in config:
        found["img_size"] = config.get("img_size", config.get("input_size"))
    if found["distilled"] and "head_dist.weight" not in shapes and bool(head):
        raise ValueError(
            "it has a distillation token and one head (transformers' DeiTForImageClassification), which minivit has "
            "not: choose num_classes=0 for the features, or another file"
        )
    if head and head[-1] == 2 * dim and requested.get("num_classes") in (None, head[0]):
        raise ValueError(
            f"its head reads {head[-1]} channels, two vectors side by side, such as the class token and the mean of "
            "the patches in transformers' Dinov2ForImageClassification, and minivit's heads read one: choose "
            "num_classes=0 for the features, or another file"
        )
    pooled = config.get("global_pool", found["global_pool"])
    if (pooled == "map") != attention_pool:
        has = "have" if attention_pool else "have no"
        raise ValueError(
            f"config.json says global_pool={pooled!r:.60}, and the arrays {has} attention pooling: it belongs to "
            "another file. Remove it, or fetch both again"
        )
    if isinstance(config.get("num_heads"), tuple):
        raise ValueError(f"config.json says num_heads={config['num_heads']!r:.60}, expected one number for a ViT")
    return found | hidden.options(found, {**settings, **config}, requested)


_BIASES = "blocks.0.attn.relative_position_bias_table"


def _biased_image(rows: int, found: Arguments, config: Arguments, requested: Arguments) -> Any:
    """The image size of a table of biases, (2h-1)(2w-1) rows for a grid of h x w and three for prefix tokens."""
    offsets = rows - (3 if prefix_tokens(found) else 0)
    for size in (config.get("img_size"), config.get("input_size"), requested.get("img_size")):
        if size is not None:
            height, width = patch_grid(found, size)
            if (2 * height - 1) * (2 * width - 1) == offsets:
                return size
    side = isqrt(offsets)
    if side**2 != offsets or side % 2 == 0:
        raise ValueError(f"{_BIASES} has {rows} rows, which make no square grid: give img_size=(H, W)")
    return short((side + 1) // 2 * length for length in pair(found["patch_size"]))


def _positions(rows: int, found: Arguments, config: Arguments, requested: Arguments) -> Arguments:
    """The image size of a table of `rows` positions, and whether prefix tokens have rows."""
    prefix, asked = prefix_tokens(found), requested.get("img_size")
    said = config.get("no_embed_class", requested.get("no_embed_class"))
    possible = [False, True] if said is None else [bool(said)]
    sizes, fault = {}, None
    for unplaced in possible if prefix else [False]:
        try:
            sizes[unplaced] = _image("pos_embed", rows - (0 if unplaced else prefix), found, config, asked)
        except ValueError as error:
            fault = fault or error
    if len(sizes) > 1:
        raise ValueError(f"pos_embed has {rows} rows, with or without those of prefix tokens: give no_embed_class=")
    if fault is not None and not sizes:
        raise fault
    ((unplaced, size),) = sizes.items()
    return {"img_size": size, "no_embed_class": unplaced}


def _stem(shapes: Shapes) -> Arguments:
    """The convolutional stem of a hybrid, if there is one."""
    backbone = "patch_embed.backbone"
    names = [name for name in shapes if name.startswith(backbone)]
    if not names:
        return {}
    layers: tuple[int, ...] = ()
    root = shapes.get(f"{backbone}.conv.weight")
    if root is None:
        if f"{backbone}.stem.conv.weight" not in shapes:
            raise ValueError(
                f"its stem has {names[0]!r:.80}, and minivit's only stem is a ResNetV2's, which begins with "
                f"{backbone}.stem.conv.weight"
            )
        root = shapes[f"{backbone}.stem.conv.weight"]
        stage = rf"{re.escape(backbone)}\.stages\."
        count = _count(shapes, rf"{stage}(\d+)\.")
        layers = tuple(_count(shapes, rf"{stage}{number}\.blocks\.(\d+)\.") for number in range(count))
    # groups leave no trace in shapes: 32 in all published models, here the largest such number that divides the width
    groups = gcd(32, root[0])
    return {"resnet_layers": layers, "resnet_width": root[0], "resnet_groups": groups, "in_chans": root[1]}


def _image(name: str, count: int, found: Arguments, config: Arguments, requested: Any) -> Any:
    """The image size of a table of `count` positions: config.json's, a square, or the requested one."""

    # every other project drops partial patches, or has none
    dropping = {**found, "partial_patches": found.get("partial_patches", "drop")}

    def fits(size: Any, grid: Arguments) -> bool:
        return size is not None and prod(patch_grid(grid, size)) == count

    said = config.get("img_size")
    if said is not None and not fits(said, dropping):
        rows, columns = patch_grid(dropping, said)
        raise ValueError(
            f"config.json says img_size={said!r:.60}, a grid of {rows}x{columns}, and {name} has {count} positions: it "
            "belongs to another file. Remove it, or fetch both again"
        )
    side = isqrt(count)
    step = 1 if "resnet_layers" not in found else reduction(found["resnet_layers"])
    square = short(side * length * step for length in pair(found["patch_size"]))
    for size, grid in ((said, dropping), (config.get("input_size"), dropping), (square, found), (requested, found)):
        if fits(size, grid):
            return size
    raise ValueError(f"{name} has {count} positions, which make no square: give img_size=(H, W)")


def _swin(
    model: str,
    shapes: Shapes,
    config: Arguments,
    buffers: dict[str, Array],
    settings: Arguments,
    requested: Arguments,
) -> Arguments:
    stages = _count(shapes, r"layers\.(\d+)\.")
    depths = tuple(_count(shapes, rf"layers\.{stage}\.blocks\.(\d+)\.") for stage in range(stages))
    dim, channels, patch, _ = shapes["patch_embed.proj.weight"]
    head = shapes.get("head.fc.weight")
    first = "layers.0.blocks.0"
    found: Arguments = {
        "patch_size": short(shapes["patch_embed.proj.weight"][2:]),
        "in_chans": channels,
        "embed_dim": dim,
        "depths": depths,
        "num_heads": tuple(_swin_heads(shapes, stage) for stage in range(stages)),
        "mlp_ratio": shapes[f"{first}.mlp.fc1.weight"][0] / dim,
        "num_classes": head[0] if head else 0,
        "qkv_bias": f"{first}.attn.{'qkv.bias' if model == 'Swin' else 'q_bias'}" in shapes,
        "ape": "absolute_pos_embed" in shapes,
        "allow_odd_depths": any(depth % 2 for depth in depths),
    }
    if "absolute_pos_embed" in shapes:
        count = shapes["absolute_pos_embed"][1]
        known = {"partial_patches": "pad", **settings, **found}
        shown = image_of_masks(buffers, found)
        sizes = config if shown is None else {**config, "input_size": shown}
        found["img_size"] = _image("absolute_pos_embed", count, known, sizes, requested.get("img_size"))
    names = (f"layers.{stage}.blocks.0.attn.relative_position_bias_table" for stage in range(stages))
    tables = [shapes[name][0] if name in shapes else None for name in names]
    found |= window_sizes(tables, found, config, buffers, settings, requested)
    if model == "SwinV2":
        found["cpb_hidden"] = shapes[f"{first}.attn.cpb_mlp.0.weight"][0]
        said = config.get("pretrained_window_sizes", trained_windows(buffers, stages))
        found["pretrained_window_sizes"] = (said,) * stages if isinstance(said, int) else said[:stages]
    return found


def _swin_heads(shapes: Shapes, stage: int) -> int:
    attention = f"layers.{stage}.blocks.0.attn"
    table = shapes.get(f"{attention}.relative_position_bias_table")
    return table[1] if table else shapes[f"{attention}.logit_scale"][0]


def _count(shapes: Shapes, pattern: str) -> int:
    """One more than the largest number at one position of the names."""
    count = 1 + max((int(match[1]) for match in (re.match(pattern, name) for name in shapes) if match), default=-1)
    if count > len(shapes):
        raise ValueError(f"{len(shapes)} arrays cannot make {count} blocks: check where it came from")
    return count
