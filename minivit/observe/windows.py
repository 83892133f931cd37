"""Swin's windows: the position of each pixel after the roll, the attention masks, and the receptive field.

All values are computed by the functions and layers of the models, and then printed or drawn.

Notation: H x W the map, H' x W' the padded map, Mh x Mw the window, nW windows, N = Mh Mw pixels of a window. A pixel
is named by its number in reading order. Used by `examples/explain_swin.py`; figures: docs/derivations/windows.md.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from minivit import functional as F, nn
from minivit.protocol import Array

Size = tuple[int, int]
PAD = -1  # the number of a padded pixel
_LARGEST = 32  # pixels on a side: larger maps are not readable as text or figure


class Layout(NamedTuple):
    """The sizes from `nn.ShiftedWindows.plan`, by name."""

    real: Size  # H x W
    size: Size  # H' x W'
    window: Size
    shift: Size


# --- computation -----------------------------------------------------------------------------------------------


def layout(real: Size, window: Size, shift: Size) -> Layout:
    """The layout of a map of H x W: zero-padded to complete windows; no shift on an axis that one window covers.

    Raises:
        ValueError: if a number is out of range.
    """
    if min(real) < 1:
        raise ValueError(f"map {by(real)}: both sides must be at least 1")
    if max(real) > _LARGEST:
        raise ValueError(f"map {by(real)}: more than {_LARGEST} pixels a side are not readable, make it smaller")
    if min(window) < 1:
        raise ValueError(f"window {by(window)}: both sides must be at least 1")
    for axis in (0, 1):
        if not 0 <= shift[axis] < window[axis]:
            raise ValueError(
                f"shift {by(shift)}: each number must lie between 0 and the window's side less 1, here "
                f"{window[axis] - 1}; Swin takes half a window, {window[axis] // 2}"
            )
    window, shift, size = nn.ShiftedWindows(nn.Layer(), window, shift).plan(*real)
    return Layout(real, size, window, shift)


def positions(at: Layout) -> Array:
    """(H', W') int64: each pixel's number on the map, `PAD` where the map was padded."""
    numbers = np.arange(at.real[0] * at.real[1], dtype=np.int64).reshape(at.real)
    return F.pad(numbers + 1, at.size, (0, 1))[0] - 1  # padding is zeros: counted from 1, no pixel is 0


def positions_after_roll(at: Layout) -> Array:
    """(H', W') int64: the number of the pixel at each position after the roll, `PAD` for padding."""
    return F.roll(positions(at), (-at.shift[0], -at.shift[1]), (0, 1))[0]


def regions(at: Layout) -> tuple[Array, Array]:
    """The labels of `F.shift_regions`, each (H', W'): on the map, and after the roll."""
    labels = F.shift_regions(at.size, at.window, at.shift)
    return F.roll(labels, at.shift, (0, 1))[0], labels


def in_windows(grid: Array, at: Layout) -> Array:
    """(H', W') -> (nW, N): one row for each window."""
    return F.window_partition(grid[None, :, :, None], at.window)[0].reshape(-1, at.window[0] * at.window[1])


def window_masks(at: Layout, mask_padding: bool = False) -> Array:
    """(nW, N, N) booleans: `F.shift_mask`, with all True where that is None."""
    pixels = at.window[0] * at.window[1]
    mask = F.shift_mask(at.size, at.window, at.shift, at.real if mask_padding else None)
    count = at.size[0] * at.size[1] // pixels
    return np.ones((count, pixels, pixels), dtype=np.bool_) if mask is None else mask


def kinds(masks: Array) -> list[list[int]]:
    """The numbers of the windows, grouped by equal masks."""
    found: dict[bytes, list[int]] = {}
    for number, mask in enumerate(masks):
        found.setdefault(mask.tobytes(), []).append(number)
    return list(found.values())


def receptive_field(at: Layout, blocks: int, place: Size | None = None, seed: int = 0) -> Array:
    """(H, W) int64: the number of blocks after which the output at `place` depends on each input pixel; 0: never.

    It is measured: for each depth up to `blocks`, real blocks (`nn.Block` with `nn.ShiftedWindows`, every second one
    shifted) run forward, and backward from a random dy at that one pixel. The output depends on the input pixels with a
    nonzero gradient. The masks add -inf here: -100 does not exclude large scores.

    Args:
        at: the layout; with shift (0, 0) no block is shifted.
        blocks: the greatest depth, at least 1.
        place: row and column of the output pixel; None is the middle.
        seed: of the weights, the map and dy.

    Raises:
        ValueError: if `blocks` is below 1, or `place` not on the map.
    """
    if blocks < 1:
        raise ValueError(f"blocks {blocks}: at least 1 is needed")
    row, column = (at.real[0] // 2, at.real[1] // 2) if place is None else place
    if not (0 <= row < at.real[0] and 0 <= column < at.real[1]):
        raise ValueError(f"place {row} {column} is not on the map of {by(at.real)}: its rows and columns count from 0")
    rng = np.random.default_rng(seed)
    network = [_block(at.window, at.shift if number % 2 else (0, 0), rng) for number in range(blocks)]
    first = np.zeros(at.real, dtype=np.int64)
    x = rng.standard_normal((1, *at.real, 4))
    for depth in range(blocks, 0, -1):  # the smallest depth writes last
        dx = np.zeros_like(x)
        dx[0, row, column] = rng.standard_normal(4)
        for back in reversed(_forward(network[:depth], x)):
            dx = back(dx)
        first[(dx[0] != 0).any(axis=-1)] = depth
    return first


def _block(window: Size, shift: Size, rng: np.random.Generator) -> nn.Block:
    dim: int = 4
    attention = nn.WindowAttention(dim, 2, window, mask_value=-np.inf, dtype="float64", seed=rng)
    for param in attention.parameters().values():
        param.data[...] = rng.standard_normal(param.shape)  # far from the small initial weights
    mlp = nn.Mlp(dim, 2 * dim, dtype="float64", seed=rng)
    norms = [nn.LayerNorm(dim, dtype="float64") for _ in range(2)]
    return nn.Block(norms[0], nn.ShiftedWindows(attention, window, shift), norms[1], mlp)


def _forward(network: list[nn.Block], x: Array) -> list[Any]:
    backs = []
    for block in network:
        x, back = block(x)
        backs.append(back)
    return backs


# --- as text --------------------------------------------------------------------------------------------------------


def grid_text(grid: Array, window: Size | None = None, blank: str = "--") -> str:
    """(h, w) integers as lines, negative ones as `blank`, with lines drawn between windows if a window is given."""
    words = [[blank if number < 0 else str(number) for number in row] for row in grid.tolist()]
    width = max(len(word) for row in words for word in row)
    high, wide = window or grid.shape
    lines = []
    for y, row in enumerate(words):
        cut = [" ".join(word.rjust(width) for word in row[x : x + wide]) for x in range(0, len(row), wide)]
        if y and y % high == 0:
            lines.append("-+-".join("-" * len(part) for part in cut))
        lines.append(" | ".join(cut))
    return "\n".join(lines)


def mask_text(mask: Array) -> str:
    """(N, N) booleans as N lines of N signs: # attends, . is masked; a line is a query, a column a key."""
    return "\n".join("".join(".#"[int(may)] for may in row) for row in mask)


def side_by_side(blocks: list[tuple[str, str]], columns: int = 100) -> str:
    """(title, text) pairs next to each other as far as `columns` allow, the rest below; wider text is omitted."""
    rows: list[list[list[str]]] = []
    for title, text in blocks:
        lines = text.split("\n")
        if max(map(len, lines)) > columns:
            lines = [f"(more than {columns} columns: see the figure, or choose smaller numbers)"]
        lines = [title, *lines]
        width = max(map(len, lines))
        lines = [line.ljust(width) for line in lines]
        if rows and sum(len(other[0]) + 4 for other in rows[-1]) + width <= columns:
            rows[-1].append(lines)
        else:
            rows.append([lines])
    shown = []
    for row in rows:
        height = max(map(len, row))
        full = [lines + [" " * len(lines[0])] * (height - len(lines)) for lines in row]
        shown.append("\n".join("    ".join(parts).rstrip() for parts in zip(*full)))
    return "\n\n".join(shown)


def describe(at: Layout, blocks: int, mask_padding: bool = False, place: Size | None = None) -> str:
    """A description of a layout in at most 100 columns.

    Args:
        at: the layout.
        blocks, place: as in `receptive_field`.
        mask_padding: as in `nn.ShiftedWindows`.
    """
    masks, (on_map, labels) = window_masks(at, mask_padding), regions(at)
    count = at.window[0] * at.window[1]
    padding = "no padding" if at.size == at.real else f"padded to {by(at.size)} at the right and bottom (--)"
    moves = [("on the map", positions(at)), ("rolled", positions_after_roll(at))]
    return "\n\n".join(
        [
            f"A map of {by(at.real)}, windows of {by(at.window)}, shift {by(at.shift)}: {padding}; "
            f"{len(masks)} windows of {count} pixels.",
            "1. CYCLIC SHIFT: the map is rolled up and left by the shift, then split into windows.",
            side_by_side([(title, grid_text(grid, at.window)) for title, grid in moves]),
            "2. LABELS: pixels of one window with equal labels were neighbors before the roll.",
            side_by_side([("on the map", grid_text(on_map)), ("rolled", grid_text(labels, at.window))]),
            "3. MASKS: a line is a query, a column a key; # attends, . is masked.",
            side_by_side([(mask_title(masks, numbers), mask_text(masks[numbers[0]])) for numbers in kinds(masks)]),
            f"4. RELATIVE POSITION: {count**2} pairs, {(2 * at.window[0] - 1) * (2 * at.window[1] - 1)} offsets, "
            "one row of the table for each offset.",
            _index_text(at.window),
            _reach_text(at, blocks, place),
            _merging_text(at.real),
        ]
    )


def _index_text(window: Size) -> str:
    """The complete index if it fits; else the rows of three queries, in the shape of the window."""
    index = F.relative_position_index(window)
    text = grid_text(index)
    if len(text.split("\n")[0]) <= 100:
        return side_by_side([("row of the table for query (down) and key (across)", text)])
    queries = (0, len(index) // 2, len(index) - 1)
    return side_by_side(
        [(f"rows that query {query} reads", grid_text(index[query].reshape(window))) for query in queries]
    )


def _reach_text(at: Layout, blocks: int, place: Size | None) -> str:
    row, column = place or (at.real[0] // 2, at.real[1] // 2)
    shown = []
    for title, which in (("every second block shifted", at), ("no block shifted", at._replace(shift=(0, 0)))):
        field = receptive_field(which, blocks, place)
        shown.append((title, grid_text(np.where(field == 0, -1, field), blank=".")))
    return (
        f"5. RECEPTIVE FIELD: blocks until the output at row {row}, column {column} depends on the input here;\n"
        f"   {blocks} blocks tried, a dot means none of them. Measured with real gradients.\n\n" + side_by_side(shown)
    )


def _merging_text(real: Size) -> str:
    numbers = np.arange(1, 1 + real[0] * real[1], dtype=np.int64).reshape(1, *real, 1)  # padding is 0
    first = F.patch_merging(numbers)[0][0, 0, 0] - 1
    words = ", ".join("--" if number < 0 else str(number) for number in first)
    return f"6. MERGING: the first pixel of the next stage joins the pixels {words}: down before right."


def mask_title(masks: Array, numbers: list[int]) -> str:
    """The windows with this mask, and the number of masked pairs."""
    shown = ", ".join(map(str, numbers[:3])) + (", ..." if len(numbers) > 3 else "")
    masked = int((~masks[numbers[0]]).sum())
    return f"window{'s' * (len(numbers) > 1)} {shown}: {masked} masked"


def by(size: Any) -> str:
    """H x W, as words."""
    return f"{size[0]} x {size[1]}"
