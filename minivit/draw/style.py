"""Common parts of the figures: colors, panels with a title and a caption, and figures of strips.

Figures are matplotlib's `Figure` objects, made without pyplot, so no global state changes and no window opens.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minivit.protocol import Array

Strip = tuple[str, float, Callable[[Any], None]]  # heading, inches, drawing function

# Okabe and Ito 2008, colors that color-blind readers can distinguish
BLUE, YELLOW, RED = "#0072B2", "#F0E442", "#D55E00"
INK, QUIET, EMPTY = "#222222", "#666666", "#F1F1F1"
WIDE = 9.0  # inches of every figure


def check_matplotlib() -> None:
    """Raise an ImportError that says how to install matplotlib, if it cannot be imported."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(f"drawing needs matplotlib ({error}): pip install matplotlib") from None


def write_strips(files: Sequence[Path], strips: Sequence[Strip]) -> list[Path]:
    """Draw the strips below one another and write the figure to each file, PNG or SVG by its name.

    Returns:
        the files; none without matplotlib.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        return []
    heights = [height for _, height, _ in strips]
    with rc_context(
        {
            "svg.fonttype": "none",  # text stays text
            "svg.hashsalt": "minivit",  # equal calls write equal files
            "font.family": "sans-serif",
            "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
        }
    ):
        figure = Figure(figsize=(WIDE, sum(heights)), facecolor="white")
        for strip, (heading, height, draw) in zip(
            figure.subfigures(len(strips), 1, height_ratios=heights, squeeze=False).flat, strips
        ):
            strip.text(0.1 / WIDE, 1 - 0.12 / height, heading, va="top", fontsize=14, color=INK)
            draw(strip)
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            facts = {"Date": None, "Creator": None} if file.suffix == ".svg" else {"Software": None}
            figure.savefig(file, dpi=120, metadata=facts)
    return list(files)


def panels(figure: Any, count: int, columns: int | None = None) -> list[Any]:
    """`count` axes in rows of `columns`, with space for a heading above, and a title and a caption around each."""
    columns = columns or count
    rows = -(-count // columns)
    high = height_of(figure)
    wide = (WIDE - 0.2 - 0.35 * (columns - 1)) / columns
    deep = (high - 0.45) / rows
    axes = []
    for number in range(count):
        row, column = divmod(number, columns)
        below = high - 0.45 - (row + 1) * deep + 0.65
        one = figure.add_axes(((0.1 + column * (wide + 0.35)) / WIDE, below / high, wide / WIDE, (deep - 0.95) / high))
        one.set_anchor("NW")
        axes.append(one)
    return axes


def height_of(figure: Any) -> float:
    """Inches of a figure or a part of one."""
    return float(figure.bbox.height / figure.dpi_scale_trans.transform((0, 1))[1])


def caption(axes: Any, title: str, text: str) -> None:
    """A title above and, wrapped to the panel's width, a sentence below."""
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK, pad=5)
    letters = int(axes.get_position().width * WIDE / 0.082)
    text = "\n".join(textwrap.wrap(text, letters))
    axes.text(0, -0.02, text, transform=axes.transAxes, va="top", fontsize=9.5, linespacing=1.3, color=INK)


def rgb(colors: Any) -> Array:
    """(n, 3) shares of red, green and blue of "#RRGGBB" words."""
    return np.array([[int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)] for color in colors])


def mix(one: str, other: str, share: Array) -> Array:
    """(..., 3): the first color where share (...) is 0, the other where it is 1."""
    start, end = rgb((one, other))
    return start + (end - start) * share[..., None]
