"""The figure of a classification: the model's input, rollout and Grad-CAM over it, and each head's attention.

Drawn for `examples/classify_image.py`; docs/classify_an_image.md explains its parts.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minivit.draw.style import INK, QUIET, RED, WIDE, Strip, caption, height_of, panels, write_strips
from minivit.protocol import Array

_COLORS = "cividis"  # dark blue to yellow: even steps of lightness, also for color-blind readers and in gray print
_OVER = 0.6  # opacity of a map over the image: both stay visible
_DARKEST = 110  # of the gray copy under a map, of 255: over black, dark blue and yellow would look the same
_LABEL = 0.85  # inches for the names of the blocks
_GAP = 0.06  # between the maps of heads, in maps
_WIDEST = 0.95  # inches of a head's map where there are few of them


def write_explanation(
    file: str | Path,
    title: str,
    pixels: Array,
    *,
    rollout: Array | None = None,
    cam: Array | None = None,
    class_name: str = "",
    heads: Sequence[Array] = (),
) -> list[Path]:
    """Write a figure of one image's maps, as PNG or SVG by the file's name.

    Args:
        file: the path.
        title: the heading.
        pixels: (H, W, C) uint8, as `Preprocess.pixels` gives them.
        rollout: (gh, gw), a map of `attention_rollout`.
        cam: (gh, gw), a map of `grad_cam`.
        class_name: the class of `cam`.
        heads: for each block (H, gh, gw), one image's maps of `head_maps`.

    Returns:
        the file; none without matplotlib.

    Raises:
        ValueError: if the file's name ends in neither .png nor .svg.
    """
    file = Path(file)
    if file.suffix not in (".png", ".svg"):
        raise ValueError(f"{file}: the figure must be a .png or .svg file")
    tall = min(1.5, pixels.shape[0] / pixels.shape[1])
    title = textwrap.shorten(title, 80)
    strips: list[Strip] = [(title, 2.8 * tall + 1.95, lambda f: draw_overlays(f, pixels, rollout, cam, class_name))]
    if heads:
        high = len(heads) * _cell(heads) * (1 + _GAP) + 1.0
        strips.append(("Attention of each head", high, lambda f: draw_heads(f, heads)))
    return write_strips([file], strips)


def draw_overlays(figure: Any, pixels: Array, rollout: Array | None, cam: Array | None, class_name: str = "") -> None:
    """The image, and each given map over a gray copy of it."""
    high, wide = pixels.shape[:2]
    image, *maps = panels(figure, 3)
    image.imshow(pixels, cmap="gray", vmin=0, vmax=255, extent=(0, wide, high, 0))
    image.set_axis_off()
    caption(image, "Input of the model", f"{high} x {wide} pixels, resized and cropped.")
    if rollout is not None:
        text = (
            f"Attention of all blocks multiplied. Framed: {100 * rollout.max():.2g}% of what the head reads; "
            f"equal shares would be {100 / rollout.size:.2g}%."
        )
        _overlay(maps[0], pixels, rollout, "Attention rollout", text)
    if cam is not None:
        name = textwrap.shorten(class_name or "the class", 40)
        text = (
            f"Yellow: the patches that raise the logit of {name} most. Dark: patches that lower it or have no effect. "
            "The map shows where, not what the model sees there."
        )
        if not cam.max() > 0:
            text = f"No patch raises the logit of {name}."
        _overlay(maps[rollout is not None], pixels, cam, "Grad-CAM", text)
    for axes in maps[(rollout is not None) + (cam is not None) :]:
        axes.remove()


def draw_heads(figure: Any, heads: Sequence[Array]) -> None:
    """A row for each block, a small map for each head, from 0 to the map's largest value."""
    high, cell = height_of(figure), _cell(heads)
    rows, columns = len(heads), max(len(block) for block in heads)
    width, height = columns * cell * (1 + _GAP), rows * cell * (1 + _GAP)
    axes = figure.add_axes(((0.1 + _LABEL) / WIDE, 0.3 / high, width / WIDE, height / high))
    for row, block in enumerate(heads):
        y = row * (1 + _GAP)
        axes.text(-0.08 / cell, y + 0.5, f"block {row + 1}", ha="right", va="center", fontsize=9, color=INK)
        for head, grid in enumerate(block):
            x = head * (1 + _GAP)
            top = max(float(grid.max()), np.finfo(np.float32).tiny)  # a map of zeros is dark, not an error
            axes.imshow(grid, cmap=_COLORS, vmin=0, vmax=top, extent=(x, x + 1, y + 1, y), interpolation="nearest")
    for head in range(columns):
        word = f"head {head + 1}" if cell > 0.55 else str(head + 1)
        axes.text(head * (1 + _GAP) + 0.5, -0.06 / cell, word, ha="center", va="bottom", fontsize=8, color=QUIET)
    axes.set(xlim=(0, columns * (1 + _GAP)), ylim=(rows * (1 + _GAP), 0), aspect="auto")
    axes.set_axis_off()
    text = "Each square is one patch of the block's map. Dark blue is 0, yellow the largest value of that small map."
    figure.text((0.1 + _LABEL) / WIDE, 0.06 / high, text, fontsize=9.5, color=INK)


def _overlay(axes: Any, pixels: Array, grid: Array, title: str, text: str) -> None:
    """A map over a gray copy of the image, each of its squares one patch; the brightest is framed."""
    high, wide = pixels.shape[:2]
    gray = pixels.astype(np.float64) @ np.full(pixels.shape[2], 1 / pixels.shape[2], np.float64)
    options = {"extent": (0, wide, high, 0), "interpolation": "nearest"}
    axes.imshow(_DARKEST + gray * (1 - _DARKEST / 255), cmap="gray", vmin=0, vmax=255, **options)
    top = float(grid.max())
    axes.imshow(grid, cmap=_COLORS, vmin=0, vmax=top if top > 0 else 1, alpha=_OVER, **options)
    if top > 0:
        row, column = np.unravel_index(int(grid.argmax()), grid.shape)
        y, x = high / grid.shape[0], wide / grid.shape[1]
        box = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]) + (column, row)
        axes.plot(box[:, 0] * x, box[:, 1] * y, color=RED, linewidth=2.0, solid_joinstyle="miter", clip_on=False)
    axes.set(xlim=(0, wide), ylim=(high, 0))
    axes.set_axis_off()
    caption(axes, title, text)


def _cell(heads: Sequence[Array]) -> float:
    """Inches of a head's map: as large as the widest row and the number of blocks allow."""
    columns = max(len(block) for block in heads)
    return min(_WIDEST, (WIDE - 0.2 - _LABEL) / columns / (1 + _GAP), WIDE / len(heads))
