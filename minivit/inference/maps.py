"""The stages of a Swin prepared for inference: windows as row numbers, bias and mask of a window summed.

The maps of a batch are the rows of their pixels in reading order, behind one row that stands for padding. A block takes
the rows of some windows, computes all of it, and puts them back: padding, rolling, cutting and their inverses are one
table of row numbers.

Notation: B images, H x W the map, P = H W pixels, nW windows of one map, N = Mh Mw pixels of a window, D channels, Hd
heads.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from minivit import functional as F, nn
from minivit.inference import folding
from minivit.inference.block import Block, Context, Tables, normalized, overlapping, product
from minivit.inference.folding import copied
from minivit.inference.memory import Memory
from minivit.models.swin import Stage
from minivit.protocol import Array, Back, Rng, once
from minivit.sizes import Size

_ROWS = 400  # pixels at a time: their hidden units fit a core's L2 cache


class Cut(NamedTuple):
    """How a layer cuts maps of one size into windows; those with the same mask stand together.

    Attributes:
        rows: (nW, N) the pixels of each window, from 1; 0 is padding.
        masks: windows, and their mask (N, N) or None.
        window: Mh x Mw.
    """

    rows: Array
    masks: list[tuple[slice, Array | None]]
    window: Size


def _cut(layer: nn.ShiftedWindows, size: Size) -> Cut:
    settings = (layer.window_size, layer.shift_size, layer.mask_padding, layer.covered, layer.pad_first)
    return _cut_by(settings, size)


@lru_cache(maxsize=16)  # the blocks of a stage need two
def _cut_by(settings: tuple[Any, ...], size: Size) -> Cut:
    """What the layer itself makes of a map of numbers."""
    window, shift, mask_padding, covered, pad_first = settings
    recorder = _Recorder()
    named = {"mask_padding": mask_padding, "covered": covered, "pad_first": pad_first}
    nn.ShiftedWindows(recorder, window, shift, **named)(_numbers(size))
    windows, mask = recorder.seen  # (nW, Mh, Mw, 1), (nW, N, N) or None
    rows = windows.reshape(len(windows), -1).astype(np.int64)
    kinds: dict[bytes, list[int]] = {}
    for number in range(len(rows)):
        kinds.setdefault(b"" if mask is None else mask[number].tobytes(), []).append(number)
    ends = np.cumsum([len(numbers) for numbers in kinds.values()]).tolist()
    masks = [
        (slice(start, end), None if mask is None else mask[numbers[0]])
        for start, end, numbers in zip([0, *ends], ends, kinds.values())
    ]
    return Cut(rows[sum(kinds.values(), [])], masks, (windows.shape[1], windows.shape[2]))


class _Recorder(nn.Layer):
    """In place of an attention in windows: keeps the windows and the mask that it is given."""

    def forward(self, x: Array, rng: Rng = None, mask: Array | None = None) -> tuple[Array, Back]:
        self.seen = (x, mask)
        return x, once(lambda dy: dy)


def _numbers(size: Size) -> Array:
    """A map (1, H, W, 1) of the numbers of its pixels, from 1."""
    return np.arange(1.0, size[0] * size[1] + 1).reshape(1, *size, 1)


def _of_all(rows: Array, batch: int, pixels: int) -> Array:
    """Numbers (K, N) of one map's pixels -> (K B, N) of all maps', those of an entry together; 0 stays 0."""
    first = pixels * np.arange(batch)[None, :, None]
    return np.where(rows[:, None] > 0, rows[:, None] + first, 0).reshape(len(rows) * batch, -1)


def _take(x: Array, rows: Array, out: Array) -> Array:
    """x[rows] in the memory of `out`, zeros where the row is padding."""
    np.take(x, rows, axis=0, out=out, mode="clip")  # "clip" writes to `out` directly; no row is outside
    out[rows == 0] = 0
    return out


class WindowBlock:
    """A block with attention in windows, on the rows of the maps."""

    def __init__(self, block: nn.Block) -> None:
        assert isinstance(block.attn, nn.ShiftedWindows)
        attention = block.attn.attention
        assert isinstance(attention, nn.WindowAttention)
        positions: Any = attention.position_bias
        if isinstance(attention, nn.CosineWindowAttention):
            positions = attention.continuous_bias
        self.positions = copied(positions)
        self.block, self.layer, self.mask_value = Block(block), copy.copy(block.attn), attention.mask_value
        self.layer.attention = nn.Identity()  # the settings alone are needed
        self.kept: tuple[Size, Tables] | None = None

    def keep(self, size: Size, most: int) -> int:
        """Keep the tables of maps of this size, if they have at most so many bytes; returns the bytes kept."""
        tables = self.tables(size)
        needed = sum(table.nbytes for _, table in tables)
        self.kept = (size, tables) if needed <= most else None
        return needed if needed <= most else 0

    def tables(self, size: Size) -> Tables:
        """For each mask its windows, and the position bias with the mask's value where it is False, (Hd, N, N)."""
        if self.kept is not None and self.kept[0] == size:
            return self.kept[1]
        cut = _cut(self.layer, size)
        bias = self.positions.bias(grid=cut.window)[0]  # (Hd, N, N)
        value = bias.dtype.type(self.mask_value)
        return [
            (part, bias if mask is None else bias + np.where(mask, bias.dtype.type(0), value))
            for part, mask in cut.masks
        ]

    def run(self, memory: Memory, x: Array, batch: int, size: Size) -> None:
        """Change the rows x (1 + B P, D) of the maps, some windows at a time."""
        cut = _cut(self.layer, size)
        rows = _of_all(cut.rows, batch, size[0] * size[1])  # (nW B, N)
        tables = [(slice(part.start * batch, part.stop * batch), table) for part, table in self.tables(size)]
        few = max(1, _ROWS // rows.shape[1])
        has_padding = bool((cut.rows == 0).any())
        for start in range(0, len(rows), few):
            part = slice(start, min(start + few, len(rows)))
            numbers = rows[part]
            taken = _take(x, numbers, memory.buffer("windows", *numbers.shape, x.shape[1]))  # (w, N, D)
            context = Context(overlapping(tables, part), numbers == 0 if has_padding else None)
            x[numbers] = self.block(memory, taken, context)


class Merging:
    """Patch merging on the rows of the maps: each 2x2 neighborhood normalized and mapped to 2D channels."""

    def __init__(self, merging: nn.PatchMerging) -> None:
        norm = merging.norm
        self.weight, self.bias = folding.linear(
            merging.reduction.weight.data, None, None if merging.post_norm else norm
        )
        self.eps = norm.eps
        self.after = (norm.weight.data.copy(), norm.bias.data.copy()) if merging.post_norm else None

    def run(self, memory: Memory, x: Array, batch: int, size: Size) -> tuple[Array, Size]:
        """Rows (1 + B P, D) -> (1 + B P', 2D)."""
        merged = F.patch_merging(_numbers(size))[0].astype(np.int64)  # (1, H', W', 4)
        rows = _of_all(merged.reshape(-1, 1), batch, size[0] * size[1])  # (P' 4 B, 1)
        rows = rows.reshape(-1, 4, batch).transpose(2, 0, 1).reshape(-1, 4)  # (B P', 4)
        taken = _take(x, rows, memory.buffer("windows", len(rows), 4, x.shape[1])).reshape(1, -1, 4 * x.shape[1])
        if self.after is None:
            taken = normalized(taken, self.eps, memory.buffer("normalized", *taken.shape))
        y = np.empty((1 + len(rows), self.weight.shape[1]), x.dtype)
        new = y[None, 1:]  # (1, B P', 2D)
        product(taken, self.weight, new)
        new += self.bias
        if self.after is not None:
            new[...] = normalized(new, self.eps, memory.buffer("normalized", *new.shape))
            new *= self.after[0]
            new += self.after[1]
        return y, (merged.shape[1], merged.shape[2])


class Stages:
    """Maps (B, H, W, D) -> maps of the last stage."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.merging = [None if stage.downsample is None else Merging(stage.downsample) for stage in stages]
        self.blocks = [[WindowBlock(block) for block in stage.blocks] for stage in stages]

    def keep(self, size: Size, most: int) -> None:
        """Keep the tables of maps of this size, up to so many bytes; others are made at each call."""
        for merging, blocks in zip(self.merging, self.blocks):
            size = size if merging is None else ((size[0] + 1) // 2, (size[1] + 1) // 2)
            for block in blocks:
                most -= block.keep(size, most)

    def run(self, memory: Memory, x: Array) -> Array:
        """The last map of all images; with eight, the last stage has enough pixels for its products."""
        batch, size = len(x), (x.shape[1], x.shape[2])
        rows = np.empty((1 + batch * size[0] * size[1], x.shape[3]), x.dtype)
        rows[1:] = x.reshape(-1, x.shape[3])
        for merging, blocks in zip(self.merging, self.blocks):
            if merging is not None:
                rows, size = merging.run(memory, rows, batch, size)
            for block in blocks:
                block.run(memory, rows, batch, size)
        return rows[1:].reshape(batch, *size, -1)
