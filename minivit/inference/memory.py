"""Memory that is used again at every call, so that a runner asks the system for none."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from minivit.protocol import Array


class Memory:
    """Memory by name, of one thread: it grows to the largest shape requested."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = np.dtype(dtype)
        self._held: dict[str, Array] = {}

    def buffer(self, name: str, *shape: int) -> Array:
        """An array of the shape, in the memory of this name; its content is arbitrary."""
        size = prod(shape)
        if name not in self._held or self._held[name].size < size:
            self._held[name] = np.empty(size, self.dtype)
        return self._held[name][:size].reshape(shape)

    @property
    def nbytes(self) -> int:
        """The bytes of all memory."""
        return sum(held.nbytes for held in self._held.values())
