"""Which model a set of arrays belongs to: its arguments, read off the names and shapes.

What shapes cannot tell (heads of a ViT, the image size of a Swin) comes from config.json where there is one, from the
published size of the same widths, or from the convention of that family.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import gcd, isqrt, prod
from typing import Any

import numpy as np

from minivit import functional as F
from minivit.models import configs
from minivit.models.options import patch_grid, stage_windows
from minivit.models.resnet import reduction
from minivit.protocol import Array
from minivit.sizes import Size, pair

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
    """The arguments of the class `model` that fit.

    Args:
        model: "ViT", "Swin" or "SwinV2".
        arrays: under our names.
        config: the arguments that config.json beside the file gives; see `config_json.py`.
        buffers: the tables that came with the file and are not learned, under our names.
        settings: arguments by which its source differs; see `profiles.py`.
        requested: arguments that were asked for; their img_size and window_size decide where nothing else tells the
            sides of a grid or window.

    Raises:
        ValueError: if the arrays make no such model.
    """
    shapes: Shapes = {name: tuple(array.shape) for name, array in arrays.items()}
    empty = [name for name, shape in shapes.items() if 0 in shape]
    if empty:
        raise ValueError(f"{empty[:1]} holds no numbers: fetch the file again")
    try:
        if model == "ViT":
            found = _vit(shapes, config, requested.get("img_size"))
        else:
            found = _swin(model, shapes, config, buffers, settings, requested)
    except (KeyError, IndexError, ZeroDivisionError) as error:
        what = f"there is no {error}" if isinstance(error, KeyError) else f"an array of other axes ({error})"
        raise ValueError(f"{what}: check where it came from") from None
    found |= {"patch_norm": "patch_embed.norm.weight" in shapes}
    return found | {
        name: config[name] for name in _FROM_CONFIG if name in config and (model == "ViT" or name not in _OF_VIT)
    }


_OF_VIT = ("global_pool", "fc_norm", "dynamic_img_size")
# options that leave no trace in the arrays, or less than config.json tells
_RATES = ("drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate")
_FROM_CONFIG = ("norm_eps", "gelu", *_OF_VIT, *_RATES)


def _vit(shapes: Shapes, config: Arguments, image: Any) -> Arguments:
    dim, channels, height, width = shapes["patch_embed.proj.weight"]
    prefix = ("cls_token" in shapes) + ("dist_token" in shapes)
    head = shapes.get("head.weight")
    hidden = shapes["blocks.0.mlp.fc1.weight"][0]
    behind = "fc_norm.weight" in shapes
    found: Arguments = {
        "patch_size": _short((height, width)),
        "in_chans": channels,
        **_stem(shapes),
        "embed_dim": dim,
        "depth": _count(shapes, r"blocks\.(\d+)\."),
        "mlp_ratio": hidden / dim,
        "num_classes": head[0] if head else 0,
        "class_token": "cls_token" in shapes,
        "distilled": "dist_token" in shapes,
        "global_pool": "avg" if behind or not prefix else "token",
        "fc_norm": behind,
        "qkv_bias": "blocks.0.attn.qkv.bias" in shapes,
        "pos_embed": "learned_1d" if "pos_embed" in shapes else "none",
        "representation_size": shapes["pre_logits.fc.weight"][0] if "pre_logits.fc.weight" in shapes else None,
    }
    if "pos_embed" in shapes:
        found["img_size"] = _image("pos_embed", shapes["pos_embed"][1] - prefix, found, config, image)
    else:
        found |= _named_image(config)
    if found["distilled"] and "head_dist.weight" not in shapes and bool(head):
        raise ValueError(
            "it has a distillation token and one head (transformers' DeiTForImageClassification), which minivit has "
            "not: choose num_classes=0 for the features, or another file"
        )
    heads = config.get("num_heads")
    if isinstance(heads, tuple):
        raise ValueError(f"config.json says num_heads={heads!r:.60}, expected one number for a ViT")
    found["num_heads"] = heads or _vit_heads(found)
    return found


def _stem(shapes: Shapes) -> Arguments:
    """The convolutional stem of a hybrid, where there is one."""
    backbone = "patch_embed.backbone"
    names = [name for name in shapes if name.startswith(backbone)]
    if not names:
        return {}
    layers: tuple[int, ...] = ()
    root = shapes.get(f"{backbone}.conv.weight")
    if root is None:
        if f"{backbone}.stem.conv.weight" not in shapes:
            raise ValueError(
                f"its stem has {names[0]!r:.80}, and minivit has no other stem than a ResNetV2's, which begins with "
                f"{backbone}.stem.conv.weight"
            )
        root = shapes[f"{backbone}.stem.conv.weight"]
        stage = rf"{re.escape(backbone)}\.stages\."
        count = _count(shapes, rf"{stage}(\d+)\.")
        layers = tuple(_count(shapes, rf"{stage}{number}\.blocks\.(\d+)\.") for number in range(count))
    # groups leave no trace in shapes: 32 in all that were published, and here as many of them as divide the width
    groups = gcd(32, root[0])
    return {"resnet_layers": layers, "resnet_width": root[0], "resnet_groups": groups, "in_chans": root[1]}


def _image(name: str, count: int, found: Arguments, config: Arguments, requested: Any) -> Any:
    """The image that a table of so many positions belongs to: config.json's, a square, or what was asked for."""

    def fits(size: Any) -> bool:
        return size is not None and prod(patch_grid(found, size)) == count

    said = config.get("img_size")
    if said is not None and not fits(said):
        rows, columns = patch_grid(found, said)
        raise ValueError(
            f"config.json says img_size={said!r:.60}, a grid of {rows}x{columns}, and {name} has {count} positions: it "
            "belongs to another file. Remove it, or fetch both again"
        )
    side = isqrt(count)
    step = 1 if "resnet_layers" not in found else reduction(found["resnet_layers"])
    square = _short(tuple(side * length * step for length in pair(found["patch_size"])))
    for size in (said, config.get("input_size"), square, requested):
        if fits(size):
            return size
    raise ValueError(f"{name} has {count} positions, which make no square: say img_size=(H, W)")


def _named_image(config: Arguments) -> Arguments:
    """The image size that config.json names, where no table contradicts it."""
    sizes = [config[name] for name in ("img_size", "input_size") if name in config]
    return {"img_size": sizes[0]} if sizes else {}


def _vit_heads(found: Arguments) -> int:
    """Heads leave no trace in the shapes of a ViT."""
    same = ("embed_dim", "depth")
    for _, published in configs.published():
        if all(published.get(name) == found[name] for name in same):
            return int(published["num_heads"])
    return max(1, found["embed_dim"] // 64)  # the width of a head in every published ViT


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
        "patch_size": _short(shapes["patch_embed.proj.weight"][2:]),
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
        found["img_size"] = _image("absolute_pos_embed", count, found, config, requested.get("img_size"))
    named = zip(*(_named_windows(shapes, {**settings, **found}, sizes) for sizes in (config, requested)))
    windows = [_window(shapes, buffers, stage, *sizes) for stage, sizes in enumerate(named)]
    found |= _sizes(windows, found, config, buffers, settings)
    if model == "SwinV2":
        found["cpb_hidden"] = shapes[f"{first}.attn.cpb_mlp.0.weight"][0]
        trained = tuple(_trained_window(buffers, stage) for stage in range(stages))
        found["pretrained_window_sizes"] = config.get("pretrained_window_sizes", trained)[:stages]
    return found


def _swin_heads(shapes: Shapes, stage: int) -> int:
    attention = f"layers.{stage}.blocks.0.attn"
    table = shapes.get(f"{attention}.relative_position_bias_table")
    return table[1] if table else shapes[f"{attention}.logit_scale"][0]


def _named_windows(shapes: Shapes, made: Arguments, sizes: Arguments) -> Sequence[Size | None]:
    """The window of each stage by the window and the image that somebody named."""
    first = shapes.get("layers.0.blocks.0.attn.relative_position_bias_table")
    window = sizes.get("window_size") or (first and _square_window(first[0]))
    image = sizes.get("img_size", sizes.get("input_size", made.get("img_size")))
    if window is None or image is None:
        return [pair(window) if window else None] * len(made["depths"])
    return stage_windows({"covered": "shrink", **made, "window_size": window, "img_size": image})


def _square_window(rows: int) -> Size | None:
    side = isqrt(rows)
    return ((side + 1) // 2, (side + 1) // 2) if side * side == rows else None


def _window(
    shapes: Shapes, buffers: dict[str, Array], stage: int, said: Size | None, requested: Size | None
) -> Size | None:
    """The window of a stage: an index (N, N) shows it, a table has (2Mh-1)(2Mw-1) rows; v2's MLP knows no window.

    Args:
        said: by config.json.
        requested: as was asked for, where neither of these tells.
    """
    attention = f"layers.{stage}.blocks.0.attn"
    index = buffers.get(f"{attention}.relative_position_index")
    if index is not None:
        return _indexed_window(attention, index)
    table = shapes.get(f"{attention}.relative_position_bias_table")
    if table is None:
        return None

    for window in (said, _square_window(table[0]), requested):
        if window is not None and prod(2 * side - 1 for side in window) == table[0]:
            return window
    raise ValueError(
        f"{attention} has a table of {table[0]} offsets, which is of no square window: say window_size=(Mh, Mw), "
        "and img_size=(H, W) if the window covers the map"
    )


def _indexed_window(attention: str, index: Array) -> Size:
    """The window whose index this is: in its first row, numbers fall by 1 from pixel to pixel of a line."""
    count = isqrt(index.size)
    first = index.reshape(-1)[:count].tolist()
    columns = next((k for k in range(1, count) if first[k - 1] - first[k] != 1), max(count, 1))
    window = (count // columns, columns)
    if prod(window) != count or not np.array_equal(index.reshape(-1), F.relative_position_index(window).reshape(-1)):
        raise ValueError(f"{attention}.relative_position_index reads the table in another order than Swin's")
    return window


def _sizes(
    windows: list[Size | None], found: Arguments, config: Arguments, buffers: dict[str, Array], settings: Arguments
) -> Arguments:
    """window_size and img_size that make the windows of all stages.

    Raises:
        ValueError: if none do.
    """
    known = [window for window in windows if window]
    if len(known) < len(windows):
        size = config.get("window_size", config.get("usual_window"))
        image = {} if "img_size" in found else _named_image(config)
        return image | ({} if size is None else {"window_size": size})
    size = config.get("window_size", _short((max(rows for rows, _ in known), max(columns for _, columns in known))))
    said = [found.get("img_size"), config.get("img_size"), _masked_image(buffers, known, found)]
    images = [each for each in said if each is not None][:1]
    images = images or [config.get("input_size"), _image_of(known, size, found)]
    for image in images:
        made = {"window_size": size, "img_size": image}
        if image is not None and stage_windows({"covered": "shrink", **settings, **found, **made}) == known:
            return made
    raise ValueError(
        f"its stages have windows of {', '.join(f'{rows}x{columns}' for rows, columns in known)}, which a model with "
        f"window_size={size!r:.60} and img_size={images[-1]!r:.60} has not: if config.json says so, it belongs to "
        "another file"
    )


def _image_of(windows: list[Size], size: Any, found: Arguments) -> Any:
    """An image on which the stages have these windows: one that is smaller than `size` covers its map.

    Where none is, the last map is one window, as in each published model.
    """
    sides = []
    for axis, whole in enumerate(pair(size)):
        covering = [window[axis] * 2**stage for stage, window in enumerate(windows) if window[axis] < whole]
        side = min(covering, default=windows[-1][axis] * 2 ** (len(windows) - 1))
        sides.append(side * pair(found["patch_size"])[axis])
    return _short(tuple(sides))


def _masked_image(buffers: dict[str, Array], windows: list[Size], found: Arguments) -> Any:
    """The image, found by the first mask (nW, N, N) that Microsoft's files keep: the map is cut into nW windows."""
    for stage, (height, width) in enumerate(windows):
        mask = buffers.get(f"layers.{stage}.blocks.1.attn_mask")
        if mask is None or mask.ndim != 3:
            continue
        grids = [(rows * height, len(mask) // rows * width) for rows in range(1, len(mask) + 1) if not len(mask) % rows]
        shift = (height // 2, width // 2)
        masks = [(grid, F.shift_mask(grid, (height, width), shift)) for grid in grids]
        same = [grid for grid, made in masks if made is not None and np.array_equal(made, mask == 0)]
        side = isqrt(len(mask))
        grid = same[0] if same else (side * height, side * width)
        return _short(tuple(length * patch * 2**stage for length, patch in zip(grid, pair(found["patch_size"]))))
    return None


def _trained_window(buffers: dict[str, Array], stage: int) -> int:
    """The window P that a stage of v2 was trained with, 0 where that is its own: Microsoft's files keep the offsets.

    The largest is t = log2(8 (M-1)/(P-1) + 1) / 3 for a window of M, so P = 1 + 8 (M-1) / (8^t - 1).
    """
    table = buffers.get(f"layers.{stage}.blocks.0.attn.relative_coords_table")
    if table is None or not table.size or not 0 < table.max() < 10:
        return 0
    window = (isqrt(table.size // 2) + 1) // 2
    trained = round(1 + 8 * (window - 1) / (8.0 ** float(table.max()) - 1))
    return 0 if trained == window else trained


def _count(shapes: Shapes, pattern: str) -> int:
    """One more than the largest number at a place of the names."""
    count = 1 + max((int(match[1]) for match in (re.match(pattern, name) for name in shapes) if match), default=-1)
    if count > len(shapes):
        raise ValueError(f"{len(shapes)} arrays cannot make {count} blocks: check where it came from")
    return count


def _short(size: tuple[int, ...]) -> Any:
    return size[0] if size[0] == size[1] else tuple(size)
