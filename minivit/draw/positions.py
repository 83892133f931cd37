"""The similarity of positions as a grid of small maps, one for each position: figure 7 of the ViT paper.

Needs matplotlib.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minivit.device import to_numpy
from minivit.draw import figures
from minivit.protocol import Array

_MOST = 8  # maps on a side: more would be too small to read


def draw_position_similarity(similarity: Array, *, width: float = 6.0) -> tuple[Any, Any]:
    """One map for each position, at that position, as (figure, axes): pass the figure to `figures.show`.

    Args:
        similarity: (gh, gw, gh, gw), from `position_similarity`. With more than 8 rows or columns, evenly spaced ones
            are drawn.
        width: inches.

    Raises:
        ValueError: for another shape.
    """
    maps = to_numpy(similarity)
    if maps.ndim != 4 or maps.shape[:2] != maps.shape[2:]:
        raise ValueError(
            f"similarity has shape {maps.shape}, but must be (gh, gw, gh, gw), as from position_similarity(model)"
        )
    gh, gw = maps.shape[:2]
    rows, columns = _spread(gh), _spread(gw)
    wall = np.full((len(rows) * (gh + 1) - 1, len(columns) * (gw + 1) - 1), np.nan, float)  # white lines between maps
    for (down, y), (across, x) in ((a, b) for a in enumerate(rows) for b in enumerate(columns)):
        wall[down * (gh + 1) :, across * (gw + 1) :][:gh, :gw] = maps[y, x]
    figure, axes = figures.new(width=width, height=width * 0.85 * wall.shape[0] / wall.shape[1] + 0.6)
    heat = axes.imshow(wall, cmap=figures.HEAT, vmin=min(0.0, float(maps.min())), vmax=1.0, interpolation="nearest")
    axes.set_xticks([number * (gw + 1) + (gw - 1) / 2 for number in range(len(columns))], columns)
    axes.set_yticks([number * (gh + 1) + (gh - 1) / 2 for number in range(len(rows))], rows)
    axes.set(xlabel="column of the patch that is compared", ylabel="its row")
    axes.set_title("Similarity of each position to all positions", loc="left", fontsize=11)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    figure.colorbar(heat, ax=axes, label="cosine of the position vectors", shrink=0.8)
    return figure, axes


def _spread(count: int) -> list[int]:
    """At most 8 of `count` indices, evenly spaced, including the first and the last."""
    return [int(index) for index in np.unique(np.linspace(0, count - 1, min(count, _MOST)).round())]
