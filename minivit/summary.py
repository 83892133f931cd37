"""What a model consists of and costs: shapes, parameters, multiply-adds, and the bytes kept for the backward pass.

Everything is measured on the real thing: one image runs through the model, stage by stage, and the bytes are those that
the stage's `back` really holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from minivit.backend import array_module, owner
from minivit.nn.layer import Layer, Param
from minivit.protocol import once


@dataclass(frozen=True)
class Row:
    """One stage: `macs` are multiply-adds of the forward pass, `backward_macs` of the backward pass, for one image."""

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    macs: int
    backward_macs: int
    kept_bytes: int


@dataclass(frozen=True)
class Summary:
    """The rows and their sums; `published_macs` counts every token in every block, as papers do."""

    rows: list[Row]
    published_macs: int

    @property
    def parameters(self) -> int:
        return sum(row.parameters for row in self.rows)

    @property
    def macs(self) -> int:
        return sum(row.macs for row in self.rows)

    @property
    def backward_macs(self) -> int:
        return sum(row.backward_macs for row in self.rows)

    @property
    def kept_bytes(self) -> int:
        return sum(row.kept_bytes for row in self.rows)

    def __str__(self) -> str:
        head = ("stage", "layer", "output", "parameters", "MACs forward", "MACs backward", "kept")
        total = Row("total", "", (), self.parameters, self.macs, self.backward_macs, self.kept_bytes)
        cells = [head] + [_cells(row) for row in [*self.rows, total]]
        widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
        lines = [
            "  ".join(_align(cell, width, i) for i, (cell, width) in enumerate(zip(line, widths))) for line in cells
        ]
        rule = "-" * len(lines[0])
        text = "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])
        if self.published_macs != self.macs:
            text += (
                f"\nWith every token in the last block, as papers count: {self.published_macs:,} MACs forward "
                f"({self.published_macs / 1e9:.2f} G). The head reads no other token, so minivit skips them."
            )
        return text


def summary(model: Any, img_size: int | tuple[int, int] | None = None, *, quiet: bool = False) -> Summary:
    """Run one image through the model and print a table of its stages; returns it.

    Args:
        model: a ViT, Swin or any other model.
        img_size: int or (H, W); the size that the model was built for by default.
        quiet: return the table without printing it.
    """
    size = model.config["img_size"] if img_size is None else img_size
    height, width = (size, size) if isinstance(size, int) else size
    first = next(iter(model.parameters().values())).data
    x = array_module(first).zeros((1, model.config["in_chans"], height, width), first.dtype)
    shape = x.shape
    ours = {id(owner(param.data)) for param in model.parameters().values()}
    ours |= {id(owner(array)) for array in model.constants()}
    rows: list[Row] = []
    backs: list[Any] = []
    for name, stage in model.leaves():
        macs = stage.macs(x.shape)
        x, back = stage(x)
        kept = kept_bytes([*backs, back], ours) - kept_bytes(backs, ours)  # a shared buffer counts once
        backs.append(back)
        count = sum(param.size for param in stage.parameters().values())
        # a product y = x W^T costs as much again for dx and for dW
        rows.append(Row(name, type(stage).__name__, x.shape, count, macs, 2 * macs, kept))
    table = Summary(rows, model.macs(shape))
    if not quiet:
        print(table)
    return table


def kept_bytes(back: Any, ignored: set[int]) -> int:
    """Bytes of the arrays that a backward pass holds, each buffer once; `ignored` are ids of arrays to leave out."""
    seen: dict[int, int] = {}
    _collect(back, ignored, seen, set())
    return sum(seen.values())


def _collect(thing: Any, ignored: set[int], seen: dict[int, int], visited: set[int]) -> None:
    if id(thing) in visited or isinstance(thing, (Layer, Param)):
        return
    visited.add(id(thing))
    if isinstance(thing, np.ndarray) or array_module(thing) is not np:
        whole = owner(thing)
        if id(whole) not in ignored:
            seen[id(whole)] = whole.nbytes
    elif isinstance(thing, once):
        for part in thing.kept:
            _collect(part, ignored, seen, visited)
    elif isinstance(thing, (list, tuple)):
        for part in thing:
            _collect(part, ignored, seen, visited)
    elif getattr(thing, "__closure__", None):
        for cell in thing.__closure__:
            _collect(cell.cell_contents, ignored, seen, visited)


def _cells(row: Row) -> tuple[str, ...]:
    shape = "x".join(map(str, row.shape[1:])) or ("" if not row.shape else str(prod(row.shape)))
    kept = f"{row.kept_bytes / 1024:,.1f} KiB"
    return row.name, row.kind, shape, f"{row.parameters:,}", f"{row.macs:,}", f"{row.backward_macs:,}", kept


def _align(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column < 3 else cell.rjust(width)
