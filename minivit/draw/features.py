"""Figures of a model's features: patches in the colors of their components, heads of tokens, and near images.

Drawn for `examples/look.py`; docs/features.md explains them. Needs matplotlib.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minivit.draw.style import INK, QUIET, WIDE, height_of, write_strips
from minivit.protocol import Array

_COLORS = "cividis"  # even steps of lightness, also for color-blind readers and in gray print
_EDGE, _GAP = 0.1, 0.12  # inches at the sides of a figure, and between panels
_HEADING = 0.5  # inches
_COLUMNS = 7  # panels in a row, at most: the image and the six heads of ViT-S
_DARK = 0.25  # lightness of the background beside colored patches


def write_colors(
    file: Path, pixels: Sequence[Array], colors: Array, shares: Array, title: str, *, note: str = ""
) -> list[Path]:
    """Write each image beside its patches in colors.

    Args:
        file: a .png or .svg.
        pixels: of each of B images (H, W, C) uint8.
        colors: (B, gh, gw, 3) of `patch_colors`.
        shares: (3,) of the variance.
        title: the heading.
        note: a further sentence below.

    Returns:
        the file; none without matplotlib.
    """
    wide = (WIDE - 2 * _EDGE - _GAP) / 2
    high = wide * pixels[0].shape[0] / pixels[0].shape[1]
    parts = " + ".join(f"{share:.0%}" for share in shares)
    text = (
        "Each square is a patch. Red, green and blue are the first three principal components of its features: "
        f"{parts} of their variance. Patches of one color have similar features."
    )

    def draw(figure: Any) -> None:
        total = height_of(figure)
        for row, (image, each) in enumerate(zip(pixels, colors)):
            top = _HEADING + row * (high + _GAP)
            _show(_axes(figure, total, _EDGE, top, wide, high), image)
            axes = _axes(figure, total, _EDGE + wide + _GAP, top, wide, high)
            _show(axes, _DARK * _gray(image))  # the background stays visible, dark and without color
            opaque = ~np.isnan(each[..., :1])
            _show(axes, np.concatenate([np.where(opaque, each, 0), opaque], axis=-1))
        _below(figure, total, _HEADING + len(pixels) * (high + _GAP), f"{text} {note}")

    return write_strips([file], [(title, _HEADING + len(pixels) * (high + _GAP) + 0.6, draw)])


def write_token_attention(file: Path, pixels: Array, maps: Mapping[str, Array], title: str) -> list[Path]:
    """Write the attention of each token and head over one image.

    Args:
        file: a .png or .svg.
        pixels: (H, W, C) uint8.
        maps: by the token's name (heads, gh, gw), as `token_attention` returns for one image.
        title: the heading.
    """
    columns = min(_COLUMNS, 1 + max(map(len, maps.values())))
    cell = _cell(columns)
    high = cell * pixels.shape[0] / pixels.shape[1]
    block = {name: 0.3 + -(-(1 + len(heads)) // columns) * (high + 0.3) for name, heads in maps.items()}

    def draw(figure: Any) -> None:
        total, top = height_of(figure), _HEADING
        for name, heads in maps.items():
            place = {"va": "top", "fontsize": 11, "fontweight": "bold", "color": INK}
            figure.text(_EDGE / WIDE, 1 - top / total, name, **place)
            for number in range(1 + len(heads)):
                row, column = divmod(number, columns)
                left, down = _EDGE + column * (cell + _GAP), top + 0.25 + row * (high + 0.3)
                axes = _axes(figure, total, left, down, cell, high)
                words = "the image"
                if number == 0:
                    _show(axes, pixels)
                else:
                    grid = heads[number - 1]
                    largest = max(float(grid.max()), np.finfo(np.float32).tiny)  # a map of zeros is dark, not an error
                    axes.imshow(grid, cmap=_COLORS, vmin=0, vmax=largest, aspect="auto", interpolation="nearest")
                    words = f"head {number}: {largest / max(float(grid.mean()), largest / grid.size):.3g}"
                axes.text(0, -0.02, words, transform=axes.transAxes, va="top", fontsize=8, color=QUIET)
            top += block[name]
        text = (
            "Yellow: the patches that the token attends to most; dark blue: none. Each panel has its own scale, from "
            "0 to its largest value. The number is that value relative to the mean over the patches."
        )
        _below(figure, total, top + 0.05, text)

    return write_strips([file], [(title, _HEADING + sum(block.values()) + 0.55, draw)])


def write_neighbors(file: Path, pixels: Array, neighbors: Sequence[tuple[str, float, Array]], title: str) -> list[Path]:
    """Write one image and those nearest to it.

    Args:
        file: a .png or .svg.
        pixels: (H, W, C) uint8.
        neighbors: of each the name, the cosine, and pixels like those of the image.
        title: the heading.
    """
    columns = min(_COLUMNS, max(3, 1 + len(neighbors)))
    cell = _cell(columns)
    high = cell * pixels.shape[0] / pixels.shape[1]
    every = [("the image", "", pixels), *((name, f"cosine {cosine:.3f}", each) for name, cosine, each in neighbors)]
    rows = -(-len(every) // columns)

    def draw(figure: Any) -> None:
        total = height_of(figure)
        for number, (name, line, each) in enumerate(every):
            row, column = divmod(number, columns)
            top = _HEADING + row * (high + 0.5)
            axes = _axes(figure, total, _EDGE + column * (cell + _GAP), top, cell, high)
            _show(axes, each)
            words = textwrap.shorten(name, 60) if len(name) <= 24 else f"…{name[-23:]}"
            axes.text(0, -0.03, f"{words}\n{line}", transform=axes.transAxes, va="top", fontsize=8, color=INK)
        text = "The cosine of the pooled features: 1 for images that the model does not tell apart."
        _below(figure, total, _HEADING + rows * (high + 0.5) + 0.02, text)

    return write_strips([file], [(title, _HEADING + rows * (high + 0.5) + 0.4, draw)])


def _cell(columns: int) -> float:
    """Inches of a panel's width, of so many in a row."""
    return (WIDE - 2 * _EDGE - (columns - 1) * _GAP) / columns


def _axes(figure: Any, total: float, left: float, top: float, wide: float, high: float) -> Any:
    """Axes without ticks at a place in inches from the upper left corner of a figure of `total` inches."""
    axes = figure.add_axes((left / WIDE, 1 - (top + high) / total, wide / WIDE, high / total))
    axes.set_axis_off()
    return axes


def _show(axes: Any, image: Array) -> None:
    """An image (H, W, C), uint8 or shares of 1, over the whole axes."""
    image = image[..., 0] if image.shape[-1] == 1 else image
    top = 255 if image.dtype == np.uint8 else 1
    extent = (0, 1, 1, 0)  # the same for images of different sizes, one over the other
    axes.imshow(image, cmap="gray", vmin=0, vmax=top, aspect="auto", interpolation="nearest", extent=extent)


def _gray(pixels: Array) -> Array:
    """(H, W, 3) in [0, 1]: the lightness of the pixels."""
    return np.repeat(pixels.mean(axis=-1, keepdims=True) / 255, 3, axis=-1)


def _below(figure: Any, total: float, top: float, text: str) -> None:
    lines = "\n".join(textwrap.wrap(text, 118))
    figure.text(_EDGE / WIDE, 1 - top / total, lines, va="top", fontsize=9.5, linespacing=1.3, color=INK)
