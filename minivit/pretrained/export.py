"""Export of a model to a file with another project's names."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any, cast

import numpy as np

from minivit import functional as F
from minivit.device import to_numpy
from minivit.io.atomic import write_atomically
from minivit.io.safetensors import save_arrays
from minivit.models.lora import check_without
from minivit.models.options import patch_grid, prefix_tokens, window_of_each
from minivit.pretrained.expressible import WITHIN, check_expressible
from minivit.pretrained.layouts import LAYOUTS, Layout
from minivit.pretrained.layouts.microsoft import as_gammas
from minivit.pretrained.renaming import translate
from minivit.protocol import Array


def export(model: Any, path: str | os.PathLike[str], layout: str = "timm") -> None:
    """Write a model's parameters under another project's names, without settings.

    The project's model, built with the same sizes, computes the same from them for images of the model's `img_size`.

    Args:
        model: a ViT, Swin or SwinV2.
        path: a .safetensors file, or .npz for layout "google".
        layout: "timm" (our names), "huggingface", "openclip", "torchvision", "microsoft", "google" or "wzmiaomiao".

    Raises:
        ValueError: if that project has no such model, cannot hold a part of it, or has another value of a setting.
    """
    kind = type(model).__name__
    written = [each for each in LAYOUTS if each.model == kind and each.written]
    tables = [each for each in written if each.source == layout]
    if not tables:
        known = ", ".join(sorted({each.source for each in written})) or "none: it is no model"
        raise ValueError(f"layout={layout!r} has no {kind}: choose one of {known}")
    check_without("export(model, path)", model)
    _check_one_window(model.config, layout)
    # positions within attention are in the settings of the layouts that have them
    within = model.config.get("pos_embed", "") if model.config.get("pos_embed") in WITHIN else ""
    tables = [each for each in tables if layout == "timm" or each.settings.get("pos_embed", "") == within]
    arrays = _with_plain_positions(model, layout, bool(tables))
    if layout != "timm":
        arrays = _with_place_of_class(model, arrays)
    if tables[0].rules:
        arrays = _translated(model, arrays | _tables(model, layout), tables)
    else:
        check_expressible(model.config, tables[0], arrays)
    if layout == "google":
        if Path(path).suffix != ".npz":
            raise ValueError(f"{path}: layout 'google' is an archive of NumPy's, name it .npz")
        buffer = io.BytesIO()
        np.savez(buffer, **cast(Any, arrays))
        write_atomically(Path(path), buffer.getbuffer())
    else:
        save_arrays(Path(path), arrays, None)


def _check_one_window(config: dict[str, Any], layout: str) -> None:
    windows = window_of_each(config["window_size"], len(config["depths"])) if "depths" in config else []
    if len(set(windows)) > 1 and layout != "timm":
        raise ValueError(
            f"window_size={config['window_size']}: {layout} has one window for all stages: export it as 'timm', or "
            "keep it with minivit.save"
        )


def _with_plain_positions(model: Any, layout: str, named: bool) -> dict[str, Array]:
    """The model's arrays; positions of any kind as the table of `learned_1d`, the only kind that every project has.

    Positions within attention stay as they are if the layout has such models (`named`). timm's BEiT and DINOv3 have
    relative and rotary positions, and no bias of k.
    """
    arrays = {name: to_numpy(param.data) for name, param in model.parameters().items()}
    config = model.config
    if type(model).__name__ != "ViT":
        return arrays
    if config["pos_embed"] in WITHIN:
        if layout == "timm" and config["qkv_bias"] in (False, "qv"):
            return as_gammas(arrays)
        if layout != "timm" and named:
            return arrays
        raise ValueError(
            f"pos_embed={config['pos_embed']!r} is within each block's attention, and {layout} has no such ViT: keep "
            "it with minivit.save"
        )
    if config["pos_embed"] not in ("none", "learned_1d"):
        table = to_numpy(model.embed.positions.table(patch_grid(config))[0])
        arrays = {name: array for name, array in arrays.items() if not name.startswith("pos_embed")}
        arrays["pos_embed"] = table[None]
    return arrays


def _with_place_of_class(model: Any, arrays: dict[str, Array]) -> dict[str, Array]:
    """Positions with rows for class and distillation token, of zeros if they have none, and none for registers."""
    config = model.config
    if "pos_embed" not in arrays or not (config["no_embed_class"] or config["reg_tokens"]):
        return arrays
    table, registers = arrays["pos_embed"], config["reg_tokens"]
    placed = prefix_tokens(config) - registers
    if config["no_embed_class"]:
        rows = np.zeros((1, placed, table.shape[2]), table.dtype)
        return {**arrays, "pos_embed": np.concatenate((rows, table), axis=1)}
    front, middle, patches = np.split(table, (placed, placed + registers), axis=1)
    moved = {"reg_token": arrays["reg_token"] + middle}  # their positions are added to them in any case
    return {**arrays, **moved, "pos_embed": np.concatenate((front, patches), axis=1)}


def _tables(model: Any, layout: str) -> dict[str, Array]:
    """The buffers of window attention that three projects store, and expect when they load."""
    found: dict[str, Array] = {}
    if layout not in ("microsoft", "torchvision", "wzmiaomiao") or type(model).__name__ == "ViT":
        return found
    grid = patch_grid(model.config)
    for number, stage in enumerate(model.layers):
        height, width = (-(-side // 2**number) for side in grid)
        for number_in_stage, block in enumerate(stage.blocks):
            name, windows = f"layers.{number}.blocks.{number_in_stage}", block.attn
            index = F.relative_position_index(windows.window_size)
            found[f"{name}.attn.relative_position_index"] = index.reshape(-1) if layout == "torchvision" else index
            window, shift, size = windows.plan(height, width)
            mask = F.shift_mask(size, window, shift)
            if layout == "microsoft" and mask is not None:
                found[f"{name}.attn_mask"] = np.where(mask, np.float32(0), np.float32(-100))
            if type(model).__name__ == "SwinV2":
                table = to_numpy(windows.attention.continuous_bias.offsets)  # (R, 2)
                rows, columns = (2 * side - 1 for side in windows.window_size)
                found[f"{name}.attn.relative_coords_table"] = table.reshape(1, rows, columns, 2).astype(np.float32)
    return found


def _translated(model: Any, arrays: dict[str, Array], tables: list[Layout]) -> dict[str, Array]:
    """The arrays under the names of the first table that has all of them, and whose project has such a model."""
    heads = model.config["num_heads"]
    lacking: list[list[str]] = []
    refused: dict[bool, ValueError] = {}  # by whether the names are recognized as the table's
    for table in tables:
        found, unknown = translate(table.rules, arrays, lambda name: heads, out=True)
        if unknown:
            lacking.append(unknown)
            continue
        recognized = table.bare(found) is not None
        try:
            check_expressible(model.config, table, found)
        except ValueError as error:
            refused.setdefault(recognized, error)
            continue
        if recognized or not (table.family or model.config.get("depth", 1)):  # it is recognized by a block
            return {table.spelled(name): array for name, array in table.finish(found).items()}
    if refused:
        raise refused[max(refused)]
    source, least = tables[0].source, min(lacking, key=len, default=["cls_token"])
    raise ValueError(f"{source} has no name for {least[0]!r} ({len(least)} such): export it as 'timm'")
