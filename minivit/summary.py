"""The summary of a model: shapes, parameters, multiply-adds, and the bytes kept for the backward pass.

All are measured: one image runs through the model, stage by stage, and the bytes are those that each stage's `back`
holds.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from math import prod
from typing import Any

from minivit.device import array_module
from minivit.nn import multiply_adds
from minivit.nn.kept_memory import Kept
from minivit.tables import aligned, html

_HEAD = ("stage", "layer", "output", "parameters", "MACs forward", "MACs backward", "kept")
_LEFT = (0, 1, 2)  # words; numbers are flush right


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


@dataclass(frozen=True, repr=False)
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
        head, *lines, total = aligned([_HEAD, *self._cells()], _LEFT)
        rule = "-" * len(head)
        return "\n".join([head, rule, *lines, rule, total, *self._notes()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html(_HEAD, self._cells(), _LEFT, note=" ".join(self._notes()))

    def _cells(self) -> list[tuple[str, ...]]:
        total = Row("total", "", (), self.parameters, self.macs, self.backward_macs, self.kept_bytes)
        return [_cells(row) for row in [*self.rows, total]]

    def _notes(self) -> list[str]:
        if self.published_macs == self.macs:
            return []
        return [
            f"With every token in the last block, as papers count: {self.published_macs:,} MACs forward "
            f"({self.published_macs / 1e9:.2f} G). The head reads no other token, so minivit skips the others."
        ]


def summary(model: Any, img_size: int | tuple[int, int] | None = None, *, quiet: bool | None = None) -> Summary:
    """Run one image through the model and print a table of its stages; returns it.

    Args:
        model: a ViT, Swin or any other model.
        img_size: int or (H, W); the model's img_size by default.
        quiet: return the table without printing it. None does so in interactive sessions, which display a returned
            value.
    """
    size = model.config["img_size"] if img_size is None else img_size
    height, width = (size, size) if isinstance(size, int) else size
    first = next(iter(model.parameters().values())).data
    x = array_module(first).zeros((1, model.config["in_chans"], height, width), first.dtype)
    shape = x.shape
    kept = Kept([*(each.data for each in model.state().values()), *model.constants()])
    rows: list[Row] = []
    backs: list[Any] = []  # all kept alive, so that a shared buffer counts once
    for name, stage in model.leaves():
        macs = _multiply_adds(stage, x.shape, every_token=False)
        x, back = stage(x)
        backs.append(back)
        count = sum(param.size for param in stage.parameters().values())
        # a product y = x W^T costs as much again for dx and for dW
        rows.append(Row(name, type(stage).__name__, x.shape, count, macs, 2 * macs, kept.add(back)))
    table = Summary(rows, _multiply_adds(model, shape))
    if not (hasattr(sys, "ps1") if quiet is None else quiet):
        print(table)
    return table


def _multiply_adds(layer: Any, shape: tuple[int, ...], every_token: bool = True) -> int:
    """0 where a layer of unknown type has no registered cost."""
    try:
        return multiply_adds(layer, shape, every_token)
    except LookupError:
        return 0


def _cells(row: Row) -> tuple[str, ...]:
    shape = "x".join(map(str, row.shape[1:])) or ("" if not row.shape else str(prod(row.shape)))
    kept = f"{row.kept_bytes / 1024:,.1f} KiB"
    return row.name, row.kind, shape, f"{row.parameters:,}", f"{row.macs:,}", f"{row.backward_macs:,}", kept
