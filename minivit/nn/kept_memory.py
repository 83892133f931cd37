"""How much memory the backs of a forward pass hold, each block of it counted once, for the first that holds it.

Summaries and traces print it, and `minivit/parallel.py` plans with it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from minivit.device import array_module, owner
from minivit.nn.layer import Layer
from minivit.nn.parameter import Parameter
from minivit.protocol import Array, once


class Kept:
    """Counts what one back after the other holds. All must be alive meanwhile, for blocks are told apart by their id.

    Args:
        ignored: arrays that are there anyway, the parameters'.
    """

    def __init__(self, ignored: Iterable[Array]) -> None:
        self._met = {id(owner(array)) for array in ignored}

    def add(self, back: Any) -> int:
        """Bytes of the blocks that this back holds, itself or in the backs of its parts, and none before it."""
        if id(back) in self._met or isinstance(back, (Layer, Parameter)):
            return 0
        if isinstance(back, np.ndarray) or array_module(back) is not np:
            whole = owner(back)
            known = id(whole) in self._met
            self._met.add(id(whole))
            return 0 if known else int(whole.nbytes)
        self._met.add(id(back))
        if isinstance(back, once):
            inside = back.kept
        elif isinstance(back, (list, tuple)):
            inside = list(back)
        else:
            inside = [cell.cell_contents for cell in getattr(back, "__closure__", None) or ()]
        return sum(self.add(each) for each in inside)
