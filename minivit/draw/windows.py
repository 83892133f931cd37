"""Figures of Swin's windows on a map, drawn by matplotlib from the arrays of `minivit/observe/windows.py`.

Each `draw_...` fills a figure or a part of one; `write_pictures` combines them for `examples/explain_swin.py`. They are
shown in docs/derivations/windows.md and position_bias.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from minivit import functional as F
from minivit.draw.style import BLUE, EMPTY, INK, QUIET, RED, YELLOW, Strip, caption, mix, panels, rgb, write_strips
from minivit.observe.windows import (
    PAD,
    Layout,
    by,
    in_windows,
    kinds,
    mask_title,
    positions,
    positions_after_roll,
    receptive_field,
    regions,
    window_masks,
)
from minivit.protocol import Array

Size = tuple[int, int]

# Okabe and Ito's colors mixed with white, so that black text is readable on them. Labels that can share a window
# (1 2, 3 6, 4 5 7 8) have very different colors.
_REGIONS = ("#D3D3D3", "#8CCBEF", "#F0C15A", "#F6EE8E", "#59C2A0", "#E2A9C8", "#4A97CC", "#E8945A", "#9A9A9A")
_BUSY = 1500  # cells, above which they are drawn as one image: thousands of paths make a slow file


def draw_moves(figure: Any, at: Layout) -> None:
    """Three maps: the windows of a shifted block on the map, the map after the roll, and the labels."""
    on_map, labels = regions(at)
    left, middle, right = panels(figure, 3)
    (sh, sw), (mh, mw) = at.shift, at.window
    _cells(left, _words(positions(at)), _colors(on_map, positions(at)))
    _lines(left, at.size, range(sh or mh, at.size[0], mh), range(sw or mw, at.size[1], mw))
    moved = f"the plain grid, moved {sh} down and {sw} right" if any(at.shift) else "the plain grid"
    caption(left, "On the map", f"The windows of this block: {moved}.")
    rolled = positions_after_roll(at)
    for axes, words in ((middle, _words(rolled)), (right, _words(labels))):
        _cells(axes, words, _colors(labels, rolled))
        _grid(axes, at.size, at.window)
        _seam(axes, at, at.size)
    seam = "Plain windows again. Beyond the dashed seam are pixels from the other end of the map."
    caption(middle, "Rolled", seam if any(at.shift) else "No shift: nothing moves.")
    caption(right, "Labels", "Pixels of a window with equal labels were neighbors before, and attend to each other.")


def draw_padding(figure: Any, at: Layout) -> None:
    """Padding before the roll, and after it, where the borders of the labels are not on the seam."""
    labels, numbers = regions(at)[1], positions(at)[: at.real[0], : at.real[1]]
    late = F.pad(F.roll(numbers + 1, (-at.shift[0], -at.shift[1]), (0, 1))[0], at.size, (0, 1))[0] - 1
    before, after = panels(figure, 2)
    for axes, rolled, size in ((before, positions_after_roll(at), at.size), (after, late, at.real)):
        _cells(axes, _words(rolled), _colors(labels, rolled))
        _grid(axes, at.size, at.window)
        _seam(axes, at, size)
    seam = "The labels change at the seam: colors separate pixels that were not neighbors."
    caption(before, "Padded, then rolled", seam)
    caption(
        after,
        "Rolled, then padded",
        "The same labels, but another seam: colors do not separate pixels that were not neighbors.",
    )


def draw_masks(figure: Any, at: Layout, mask_padding: bool = False) -> None:
    """One square for each kind of window: queries (rows) and keys (columns), in the colors of the labels."""
    masks, labels = window_masks(at, mask_padding), in_windows(regions(at)[1], at)
    shown = kinds(masks)
    for axes, numbers in zip(panels(figure, len(shown), 4), shown):
        own = rgb(_REGIONS)[labels[numbers[0]]]  # (N, 3): a pixel's color
        edge = max(1, len(own) // 16)  # strips at the left and the top show the pixels of rows and columns
        low, high = 2 * edge, len(own) + 2 * edge
        square_map = np.ones((high, high, 3), dtype=np.float64)
        square_map[low:, low:] = np.where(masks[numbers[0]][:, :, None], own[:, None], 1.0)
        square_map[low:, :edge], square_map[:edge, low:] = own[:, None], own[None]
        _cells(axes, None, square_map, line=0.3)
        axes.plot([low, high, high, low, low], [low, low, high, high, low], color=INK, linewidth=1.2)
        title, _, apart = mask_title(masks, numbers).partition(": ")
        caption(axes, title[0].upper() + title[1:], f"{apart.split()[0]} of {masks[0].size} pairs masked")


def draw_index(figure: Any, window: Size) -> None:
    """The relative position index as a matrix, and how many pairs share each row of the table."""
    index = F.relative_position_index(window)
    left, right = panels(figure, 2)
    _cells(left, _words(index), mix(YELLOW, BLUE, index / max(1, index.max())))
    steps = range(window[1], len(index), window[1])
    _lines(left, index.shape, steps, steps)
    caption(
        left,
        "Row of the table for each pair",
        "Down: the query. Across: the key. Pairs with one number share one bias.",
    )
    count = np.bincount(index.reshape(-1)).reshape(2 * window[0] - 1, 2 * window[1] - 1)
    _cells(right, _words(count), mix(YELLOW, BLUE, count / count.max()))
    for side, across in ((window[0], False), (window[1], True)):
        for offset in range(1 - side, side, max(1, (2 * side - 1) // 9)):
            x, y = (offset + side - 0.5, -0.35) if across else (-0.35, offset + side - 0.5)
            right.text(x, y, f"{offset:+d}".replace("+0", "0"), ha="center", va="center", fontsize=9, color=QUIET)
    right.set(xlim=(-0.7, count.shape[1] + 0.1), ylim=(count.shape[0] + 0.1, -0.7))
    text = (
        "Down: dy, across: dx, query less key. It is also the gradient of the table when dLoss/dscore is 1 everywhere."
    )
    caption(right, "Pairs that share an offset", text)


def draw_reach(figure: Any, at: Layout, blocks: int, place: Size | None = None) -> None:
    """The number of blocks after which each input pixel has a gradient, with shifted windows and without."""
    row, column = place or (at.real[0] // 2, at.real[1] // 2)
    shades = mix(BLUE, "#E3F0F8", np.linspace(0, 1, max(blocks, 2)))
    colors = np.concatenate([rgb([EMPTY]), shades])
    shifted, steady = panels(figure, 2)
    for axes, which in ((shifted, at), (steady, at._replace(shift=(0, 0)))):
        field = receptive_field(which, blocks, place)
        _cells(axes, _words(field, zero="·"), colors[field])
        _grid(axes, at.real, at.window, QUIET, 1.0)
        box = ([column, column + 1, column + 1, column, column], [row, row, row + 1, row + 1, row])
        axes.plot(*box, color=RED, linewidth=2.5, solid_joinstyle="miter")
    text = "Blocks until the output at the framed pixel depends on each input pixel."
    caption(shifted, f"Every second block shifted by {by(at.shift)}", text)
    caption(steady, "No block shifted", f"Up to {blocks} blocks: the window never depends on pixels outside (dots).")


PARTS = ("swin_roll", "swin_padding", "swin_mask", "swin_reach", "swin_index")


def write_pictures(
    out: str | Path,
    at: Layout,
    blocks: int,
    mask_padding: bool = False,
    place: Size | None = None,
    *,
    part: str | None = None,
) -> list[Path]:
    """Draw everything as out/explain_swin.png and .svg, or one of `PARTS` as an SVG file of its name.

    Args:
        out: the folder, made if missing.
        at, blocks, mask_padding, place: as in `minivit.explain.describe`.
        part: which part; `swin_padding` needs a layout with padding and a shift.

    Returns:
        the files; none without matplotlib.

    Raises:
        ValueError: if there is no such part.
    """
    strips = _strips(at, blocks, mask_padding, place)
    if part is not None and part not in strips:
        raise ValueError(
            f"part {part} is not among {', '.join(strips)}" + ", as nothing is both padded and rolled" * (part in PARTS)
        )
    chosen = [strips[part]] if part else list(strips.values())
    files = [Path(out) / name for name in ([f"{part}.svg"] if part else ["explain_swin.png", "explain_swin.svg"])]
    return write_strips(files, chosen)


def _strips(at: Layout, blocks: int, mask_padding: bool, place: Size | None) -> dict[str, Strip]:
    """The parts of this layout: heading, height in inches, and the function that draws it."""
    tall = min(1.5, at.size[0] / at.size[1])
    rows = -(-len(kinds(window_masks(at, mask_padding))) // 4)
    strips: dict[str, Strip] = {
        "swin_roll": ("Cyclic shift and labels", 2.8 * tall + 1.5, lambda f: draw_moves(f, at)),
        "swin_padding": ("Why padding comes before the roll", 4.2 * tall + 1.3, lambda f: draw_padding(f, at)),
        "swin_mask": (
            "Attention masks: queries down, keys across",
            2.9 * rows + 0.4,
            lambda f: draw_masks(f, at, mask_padding),
        ),
        "swin_reach": ("Receptive field", 4.2 * tall + 1.3, lambda f: draw_reach(f, at, blocks, place)),
        "swin_index": ("Relative position index", 5.5, lambda f: draw_index(f, at.window)),
    }
    if at.size == at.real or not any(at.shift):
        del strips["swin_padding"]
    return strips


# --- cells, lines, words --------------------------------------------------------------------------------------------


def _cells(axes: Any, words: list[list[str]] | None, colors: Array, line: float = 0.8) -> None:
    """Colored cells with a word in each, as large as fits, omitted where it would be unreadable."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Outline

    high, wide = colors.shape[:2]
    if high * wide > _BUSY:
        axes.pcolormesh(colors, rasterized=True)
    else:
        square = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]])
        codes = [Outline.MOVETO, *[Outline.LINETO] * 3, Outline.CLOSEPOLY]
        for color in np.unique(colors.reshape(-1, 3), axis=0):  # one path for each color keeps the file small
            if color.min() == 1:
                continue  # white on white
            cells = np.argwhere((colors == color).all(axis=-1))[:, ::-1]  # (n, 2): across, down
            shape = Outline((cells[:, None] + square).reshape(-1, 2), codes * len(cells))
            axes.add_patch(PathPatch(shape, facecolor=color, edgecolor="white", linewidth=line))
    axes.set(xlim=(-0.1, wide + 0.1), ylim=(high + 0.1, -0.1), aspect="equal")
    axes.set_axis_off()
    box = axes.get_position()
    figure = axes.figure.bbox
    inches = axes.figure.dpi_scale_trans.transform((0, 1))[1]
    space = 72 * min(box.width * figure.width / wide, box.height * figure.height / high) / inches  # points of a cell
    size = min(10.0, 0.8 * space, 1.35 * space / max(len(word) for row in words for word in row)) if words else 0.0
    if words is None or size < 6.5:
        return
    for y, row in enumerate(words):
        for x, word in enumerate(row):
            dark = colors[y, x] @ (0.299, 0.587, 0.114) < 0.5
            color = "white" if dark else QUIET if word in ("pad", "·") else INK
            axes.text(x + 0.5, y + 0.5, word, ha="center", va="center_baseline", fontsize=size, color=color)


def _lines(
    axes: Any, size: Any, rows: Any, columns: Any, color: str = INK, dash: Any = "solid", width: float = 2.0
) -> None:
    for y in rows:
        axes.plot([0, size[1]], [y, y], color=color, linestyle=dash, linewidth=width)
    for x in columns:
        axes.plot([x, x], [0, size[0]], color=color, linestyle=dash, linewidth=width)


def _grid(axes: Any, size: Size, window: Size, color: str = INK, width: float = 2.0) -> None:
    """The borders between the plain windows of a map of `size`."""
    _lines(axes, size, range(window[0], size[0], window[0]), range(window[1], size[1], window[1]), color, width=width)


def _seam(axes: Any, at: Layout, size: Size) -> None:
    """The line at which the two ends of a map of `size` meet after the roll."""
    rows, columns = ([size[axis] - at.shift[axis]] if at.shift[axis] else [] for axis in (0, 1))
    _lines(axes, at.size, rows, columns, RED, (0, (2.5, 1.2)), 2.5)


def _words(grid: Array, zero: str = "0") -> list[list[str]]:
    def word(number: int) -> str:
        return "pad" if number == PAD else str(number) if number else zero

    return [[word(number) for number in row] for row in grid.tolist()]


def _colors(labels: Array, rolled: Array) -> Array:
    """(H', W', 3): each label's color, next to white where the map is padded."""
    return np.where((rolled == PAD)[:, :, None], rgb([EMPTY]), rgb(_REGIONS)[labels])
