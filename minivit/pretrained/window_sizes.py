"""The windows and the image size of a Swin's training: from its tables, or from arguments.

Notation: Mh x Mw a window, N = Mh Mw its pixels, nW windows of a map, P the window that v2's weights were trained with.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt, prod
from typing import Any

import numpy as np

from minivit import functional as F
from minivit.models import configs
from minivit.models.options import plain_window, stage_windows, window_of_each
from minivit.protocol import Array
from minivit.sizes import Size, pair, short

Arguments = dict[str, Any]
_USUAL = 8  # the window of most published Swin v2, minivit's default too


def window_sizes(
    tables: Sequence[int | None],
    found: Arguments,
    config: Arguments,
    buffers: dict[str, Array],
    settings: Arguments,
    requested: Arguments,
) -> Arguments:
    """window_size and img_size that give the windows of all stages.

    Args:
        tables: the rows of each stage's table of biases; None for v2, whose MLP has none.
        found: arguments that the arrays show.
        config, buffers, settings, requested: see `architecture.arguments`.

    Raises:
        ValueError: if there are none.
    """
    named = [_named_windows(tables, {**settings, **found}, sizes) for sizes in (config, requested)]
    windows = [_window(buffers, stage, rows, *sizes) for stage, (rows, *sizes) in enumerate(zip(tables, *named))]
    known = [window for window in windows if window]
    if len(known) < len(windows):
        return _assumed(len(tables), found, config, requested)
    said = [found.get("img_size"), config.get("img_size"), _masked_image(buffers, known, found)]
    images = [each for each in said if each is not None][:1]
    sizes = _sizes(known, config, settings, requested)
    tried = {size: images or [config.get("input_size"), _image_of(known, size, found)] for size in sizes}
    for size in sizes:
        for image in tried[size]:
            made = {"window_size": size, "img_size": image}
            if image is not None and stage_windows({"covered": "shrink", **settings, **found, **made}) == known:
                return made
    raise ValueError(
        f"its stages have windows of {', '.join(f'{rows}x{columns}' for rows, columns in known)}, which a model with "
        f"window_size={sizes[0]!r:.60} and img_size={tried[sizes[0]][-1]!r:.60} has not: if config.json says so, it "
        "belongs to another file"
    )


def _sizes(known: list[Size], config: Arguments, settings: Arguments, requested: Arguments) -> list[Any]:
    """The `window_size` that config.json gives, or those to try in turn for these windows of the stages.

    Only timm has models whose stages have windows of their own: there the tables show them, elsewhere they must be
    requested.
    """
    stages = len(known)
    if "window_size" in config:
        return [plain_window(config["window_size"], stages)]
    one = short((max(rows for rows, _ in known), max(columns for _, columns in known)))
    shown = tuple(known) if settings.get("covered", "shrink") == "shrink" else None
    usual, asked, shown = (
        None if each is None or len(set(window_of_each(each, stages))) == 1 else plain_window(each, stages)
        for each in (config.get("usual_window"), requested.get("window_size"), shown)
    )
    return [each for each in (usual, one, asked, shown) if each is not None]


def _assumed(stages: int, found: Arguments, config: Arguments, requested: Arguments) -> Arguments:
    """For a v2 whose arrays show no window: that of config.json, a published size, or the request."""
    windows = (config.get("window_size"), config.get("usual_window"), requested.get("window_size"), _USUAL)
    window = plain_window(next(each for each in windows if each is not None), stages)
    published = [sizes["img_size"] for sizes in _published({**found, "window_size": window})]
    images = [found.get("img_size"), config.get("img_size"), config.get("input_size"), *published]
    images = [each for each in (*images, requested.get("img_size")) if each is not None]
    return {"window_size": window, **({"img_size": images[0]} if images else {})}


def check_windows_told(
    model: str, read: Arguments, config: Arguments, buffers: dict[str, Array], asked: Arguments
) -> None:
    """Refuse a v2 whose windows, which affect the computation, are given by neither arrays, config.json nor request.

    Args:
        model: the name of the class.
        read: the arguments that are used instead.
        config, buffers: see `architecture.arguments`.
        asked: the requested arguments.

    Raises:
        ValueError: naming the arguments to give.
    """
    if model != "SwinV2" or "window_size" in config or "usual_window" in config:
        return
    shown = any(name.endswith("relative_position_index") for name in buffers)
    names = [] if shown or "window_size" in asked else ["window_size"]
    scaled = any(name.endswith("relative_coords_table") for name in buffers)
    if not scaled and "pretrained_window_sizes" not in asked and len(_published(read)) > 1:
        names.append("pretrained_window_sizes")
    if names:
        raise ValueError(
            f"no array shows the windows of a Swin v2: give {' and '.join(f'{name}=' for name in names)}, as the "
            "file's name or its authors do"
        )


def image_is_assumed(model: str, config: Arguments, buffers: dict[str, Array], asked: Arguments) -> bool:
    """Whether nothing gives the image of a v2, whose windows and offsets are those of its maps; as above."""
    if model != "SwinV2" or any(name.endswith("relative_position_index") for name in buffers):
        return False
    return all(sizes.get(name) is None for sizes in (config, asked) for name in ("img_size", "input_size"))


def _published(read: Arguments) -> list[Arguments]:
    """The published v2 with these widths, depths and windows; some differ only in the windows of their pretraining."""
    same = {name: read.get(name, _USUAL) for name in ("embed_dim", "depths", "window_size")}
    published = (sizes for _, sizes in configs.published() if "pretrained_window_sizes" in sizes)
    return [sizes for sizes in published if same.items() <= sizes.items()]


def trained_windows(buffers: dict[str, Array], stages: int) -> tuple[Any, ...]:
    """The window of each stage in a v2's training, 0 for the stage's own: Microsoft's files keep the offsets.

    The largest is t = log2(8 (M-1)/(P-1) + 1) / 3 for a window of M, so P = 1 + 8 (M-1) / (8^t - 1).
    """
    return tuple(
        _trained_window(buffers.get(f"layers.{stage}.blocks.0.attn.relative_coords_table")) for stage in range(stages)
    )


def _trained_window(table: Array | None) -> Any:
    if table is None or table.ndim != 4 or table.shape[3] != 2 or not table.size:  # (1, 2Mh-1, 2Mw-1, 2)
        return 0
    windows, trained = [(side + 1) // 2 for side in table.shape[1:3]], []
    for axis, window in enumerate(windows):
        largest = float(table[..., axis].max())
        if not 0 < largest < 10:
            return 0
        trained.append(round(1 + 8 * (window - 1) / (8.0**largest - 1)))
    return 0 if trained == windows else short(trained)


def _named_windows(tables: Sequence[int | None], made: Arguments, sizes: Arguments) -> Sequence[Size | None]:
    """The window of each stage for a given window and image."""
    window = sizes.get("window_size") or (tables[0] and _square_window(tables[0]))
    image = sizes.get("img_size", sizes.get("input_size", made.get("img_size")))
    if window is None:
        return [None] * len(tables)
    if image is None:
        return window_of_each(window, len(tables))
    return stage_windows({"covered": "shrink", **made, "window_size": window, "img_size": image})


def _square_window(rows: int) -> Size | None:
    side = isqrt(rows)
    return ((side + 1) // 2, (side + 1) // 2) if side * side == rows else None


def _window(
    buffers: dict[str, Array], stage: int, rows: int | None, said: Size | None, requested: Size | None
) -> Size | None:
    """The window of a stage: an index (N, N) shows it, a table has (2Mh-1)(2Mw-1) rows.

    Args:
        said: by config.json.
        requested: used where neither of these determines it.
    """
    attention = f"layers.{stage}.blocks.0.attn"
    index = buffers.get(f"{attention}.relative_position_index")
    if index is not None:
        return _indexed_window(attention, index)
    if rows is None:
        return None
    for window in (said, _square_window(rows), requested):
        if window is not None and prod(2 * side - 1 for side in window) == rows:
            return window
    raise ValueError(
        f"{attention} has a table of {rows} offsets, which is of no square window: give window_size=(Mh, Mw), and "
        "img_size=(H, W) if the window covers the map"
    )


def _indexed_window(attention: str, index: Array) -> Size:
    """The window of this index: in its first row, numbers decrease by 1 from pixel to pixel of a line."""
    count = isqrt(index.size)
    first = index.reshape(-1)[:count].tolist()
    columns = next((k for k in range(1, count) if first[k - 1] - first[k] != 1), max(count, 1))
    window = (count // columns, columns)
    if prod(window) != count or not np.array_equal(index.reshape(-1), F.relative_position_index(window).reshape(-1)):
        raise ValueError(f"{attention}.relative_position_index reads the table in another order than Swin's")
    return window


def _image_of(windows: list[Size], size: Any, found: Arguments) -> Any:
    """An image for which the stages have these windows: a window smaller than `size` covers its map.

    If none is smaller, the smallest square whose maps are no smaller than their windows: the last map is one window,
    as in each published model.
    """
    sides, given = [], window_of_each(size, len(windows))
    largest = max(max(window) * 2**stage for stage, window in enumerate(windows))
    for axis in (0, 1):
        pairs = enumerate(zip(windows, given))
        side = min((one[axis] * 2**stage for stage, (one, full) in pairs if one[axis] < full[axis]), default=largest)
        sides.append(side * pair(found["patch_size"])[axis])
    return short(sides)


def image_of_masks(buffers: dict[str, Array], found: Arguments) -> Any:
    """The image that Microsoft's masks show beyond doubt, or None."""
    names = [f"layers.{stage}.blocks.0.attn" for stage in range(len(found["depths"]))]
    if not all(f"{name}.relative_position_index" in buffers for name in names):
        return None
    windows = [_indexed_window(name, buffers[f"{name}.relative_position_index"]) for name in names]
    return _masked_image(buffers, windows, found, guess=False)


def _masked_image(buffers: dict[str, Array], windows: list[Size], found: Arguments, *, guess: bool = True) -> Any:
    """The image, found by the first mask (nW, N, N) that Microsoft's files keep: the map has nW windows.

    If the mask is of no such map, a square map is assumed with `guess`.
    """
    for stage, (height, width) in enumerate(windows):
        mask = buffers.get(f"layers.{stage}.blocks.1.attn_mask")
        if mask is None or mask.ndim != 3:
            continue
        grids = [(rows * height, len(mask) // rows * width) for rows in range(1, len(mask) + 1) if not len(mask) % rows]
        shift = (height // 2, width // 2)
        masks = [(grid, F.shift_mask(grid, (height, width), shift)) for grid in grids]
        same = [grid for grid, made in masks if made is not None and np.array_equal(made, mask == 0)]
        if not same and not guess:
            return None
        side = isqrt(len(mask))
        grid = same[0] if same else (side * height, side * width)
        return short(length * patch * 2**stage for length, patch in zip(grid, pair(found["patch_size"])))
    return None
