"""The norms of activations and gradients from part to part, as a chart. Needs matplotlib.

`minivit/observe/debugging.py` finds the first NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minivit.draw import figures
from minivit.draw.style import BLUE, QUIET, RED
from minivit.observe.trace import Row, Trace, euclidean_norm

_MOST_NAMES = 48  # along an axis: more would overlap
_FEW = 3  # fewer stages make no curve


def draw_gradient_flow(trace: Trace, *, width: float = 8.0, height: float = 6.4) -> tuple[Any, Any]:
    """Two charts with logarithmic axes, as (figure, axes): pass the figure to `figures.show`.

    The upper chart has, for each stage in the order of the forward pass, the norms of its output and of the gradient of
    its output. Stages are the parts of a chain, such as a model's blocks; with fewer than three, all parts without
    parts. The lower chart has the norm of each parameter's gradient. An exact 0 has no position on a logarithmic axis:
    it is omitted above, and marked at the lower edge below.
    """
    figure, axes = figures.new(2, 1, width=width, height=height)
    _draw_stages(axes[0], trace)
    _draw_parameters(axes[1], {name: euclidean_norm(grad) for name, grad in trace.gradients.items()})
    for each in axes:
        each.set(yscale="log", ylabel="Euclidean norm")
        each.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, fontsize=9, frameon=False)
    return figure, axes


def _draw_stages(axes: Any, trace: Trace) -> None:
    rows = _stages(trace.rows[0])
    if len(rows) < _FEW:
        rows = [row for row in trace.rows[:-1] if not row.parts]
    at = range(len(rows))
    axes.plot(at, [row.norm_y or np.nan for row in rows], color=BLUE, label="|y|, output")
    axes.plot(at, [row.norm_dy or np.nan for row in rows], color=RED, label="|dy|, its gradient")
    _name(axes, [row.name or row.kind for row in rows])
    axes.set_title("Stages", loc="left", fontsize=11)


def _stages(row: Row) -> list[Row]:
    """The stages in running order: a chain's parts, with nested chains expanded."""
    return [each for part in row.parts for each in _stages(part)] if row.chain else [row]


def _draw_parameters(axes: Any, norms: dict[str, float]) -> None:
    values = np.array(list(norms.values()), dtype=float)
    floor = values[values > 0].min(initial=1.0) / 3
    weights = np.array([name.endswith("weight") for name in norms], dtype=bool)
    for chosen, color, mark, label in (
        (weights & (values != 0), BLUE, "o", "of a weight"),
        (~weights & (values != 0), RED, "s", "of a bias, token or table"),
    ):
        at = np.flatnonzero(chosen)
        axes.plot(at, values[at], mark, color=color, linestyle="none", label=label)
    if (values == 0).any():
        zero = np.flatnonzero(values == 0)
        axes.plot(zero, [floor] * len(zero), "x", color=QUIET, linestyle="none", label="exactly 0")
    groups = [_group(name) for name in norms]
    names = [name if index == 0 or name != groups[index - 1] else "" for index, name in enumerate(groups)]
    for index in [index for index, name in enumerate(names) if name and index]:
        axes.axvline(index - 0.5, color=QUIET, linewidth=0.4, linestyle="-", marker="", zorder=0)
    _name(axes, names)
    axes.set_title("Gradient of each parameter", loc="left", fontsize=11)


def _group(name: str) -> str:
    """ "blocks.3" of "blocks.3.attn.qkv.weight", "head" of "head.weight"."""
    first, *rest = name.split(".")
    return f"{first}.{rest[0]}" if rest and rest[0].isdigit() else first


def _name(axes: Any, names: Sequence[str]) -> None:
    """Label the axis with the nonempty names at their indices; where space is short, those of the longest groups."""
    starts = [index for index, name in enumerate(names) if name]
    lengths = dict(zip(starts, np.diff([*starts, len(names)]).tolist()))
    named: list[int] = []
    for index in sorted(starts, key=lambda start: (-lengths[start], start)):
        if all(abs(index - other) >= len(names) / _MOST_NAMES for other in named):
            named.append(index)
    axes.set_xticks(named, [names[index] for index in named], rotation=90, fontsize=8)
    axes.set_xlim(-0.7, len(names) - 0.3)
