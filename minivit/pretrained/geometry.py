"""The grid of a table's rows: tables of 6x6 and of 4x9 positions have equal shapes but different meanings.

Notation: h x w a grid of patches or a window, R rows of a table.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from minivit.models.options import patch_grid, prefix_tokens, stage_windows
from minivit.sizes import Size

_POSITIONS = ("pos_embed", "absolute_pos_embed")
_BIASES = re.compile(r"(layers|blocks)\.(\d+)\..*relative_position_bias_table")


@dataclass(frozen=True)
class Table:
    """The meaning of a table's rows.

    Attributes:
        kind: "grid", a row for each of the h w positions, or "window", one for each of the (2h-1)(2w-1) offsets.
        size: (h, w).
        prefix: rows of prefix tokens: before those of a grid, after those of a window.
    """

    kind: str
    size: Size
    prefix: int

    @property
    def plane(self) -> Size:
        """Height and width of the rows without the prefix, as a two-dimensional grid."""
        height, width = self.size
        return (2 * height - 1, 2 * width - 1) if self.kind == "window" else self.size

    @property
    def rows(self) -> int:
        """R."""
        return self.prefix + self.plane[0] * self.plane[1]

    def __str__(self) -> str:
        return f"{self.size[0]}x{self.size[1]} {self.kind}"


def table_of(name: str, config: dict[str, Any]) -> Table | None:
    """The table under this name in a model with these arguments; None for any other array."""
    prefix = prefix_tokens(config)
    if name in _POSITIONS:
        return Table("grid", patch_grid(config), 0 if config.get("no_embed_class") else prefix)
    found = _BIASES.fullmatch(name)
    if found is None:
        return None
    if found[1] == "layers":
        return Table("window", stage_windows(config)[int(found[2])], 0)
    return Table("window", patch_grid(config), 3 if prefix else 0)  # BEiT's three rows of pairs with prefix tokens
