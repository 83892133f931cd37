"""Parameters: learned arrays with their gradients. Gradients accumulate only here.

Buffers are the arrays of a layer that are saved with it and not learned.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minivit.device import array_module
from minivit.protocol import Array


class Buffer:
    """An array that is saved and moved with its layer but not learned, such as running statistics.

    Attributes:
        data: the array. Assigning copies into the same memory and keeps its dtype, so that all who share the
            memory (the replicas of `minivit.parallel`) read the new values.
    """

    def __init__(self, data: Array) -> None:
        self._data = data

    @property
    def data(self) -> Array:
        return self._data

    @data.setter
    def data(self, values: Array) -> None:
        shape = values.shape if hasattr(values, "shape") else np.shape(values)
        if shape != self._data.shape:
            raise ValueError(f"a {type(self).__name__} of shape {self.shape} cannot take values of shape {shape}")
        self._data[...] = array_module(self._data).asarray(values)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._data.shape

    @property
    def size(self) -> int:
        return self._data.size

    def move_to(self, move: Callable[[Array], Array]) -> None:
        """Replace the array by move(array)."""
        self._data = move(self._data)

    def swap(self, data: Array) -> Array:
        """Replace the array by another and return the old one (for loading and gradient checks)."""
        data, self._data = self._data, data
        return data

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self._words())})"

    def _words(self) -> list[str]:
        """The words of `repr`."""
        data: Any = self._data
        if not hasattr(data, "dtype"):
            return [f"no array but a {type(data).__name__}"]
        on_gpu = [] if array_module(data) is np else [f"device='cuda:{data.device.id}'"]
        return [f"shape={data.shape}", f"dtype={data.dtype}", *on_gpu]


class Parameter(Buffer):
    """A learned array and its gradient.

    Attributes:
        data: as in `Buffer`.
        grad: dLoss/d(data), None or an array of data's shape and dtype. `p.grad = None` clears it.
    """

    def __init__(self, data: Array) -> None:
        super().__init__(data)
        self.grad: Array | None = None

    def _words(self) -> list[str]:
        return [*super()._words(), "no gradient" if self.grad is None else "with gradient"]

    def accumulate(self, grad: Array, fresh: bool = False) -> None:
        """Add grad to `.grad`. Gradients accumulate only here, always by addition.

        Args:
            fresh: no other code holds this array, so the first one may become `.grad` without a copy.
        """
        if self.grad is not None:
            self.grad += grad
        elif fresh and grad.dtype == self._data.dtype:
            self.grad = grad
        else:
            self.grad = array_module(grad).array(grad, dtype=self._data.dtype)

    def move_to(self, move: Callable[[Array], Array]) -> None:
        super().move_to(move)
        self.grad = None if self.grad is None else move(self.grad)

    def rows(self, start: int, stop: int) -> Parameter:
        """Some rows of this parameter as a parameter, whose gradient is added to those rows of `.grad`."""
        return _Rows(self, start, stop)

    def replica(self) -> Parameter:
        """A parameter that shares this one's data and has its own gradient."""
        return Parameter(self._data)


class _Rows(Parameter):
    def __init__(self, parent: Parameter, start: int, stop: int) -> None:
        super().__init__(parent.data[start:stop])
        self._parent, self._part = parent, slice(start, stop)

    def _words(self) -> list[str]:
        return [*super()._words(), "no gradient" if self.grad is None else "with gradient"]

    def accumulate(self, grad: Array, fresh: bool = False) -> None:
        parent = self._parent
        if parent.grad is None:
            parent.grad = array_module(parent.data).zeros_like(parent.data)
        rows = parent.grad[self._part]  # a view; `parent.grad[...] += grad` would copy it onto itself
        rows += grad
