"""Parameters: learned arrays with their gradients, and the only place where gradients accumulate.

Next: `layer.py`.
"""

from __future__ import annotations

import numpy as np

from minivit.device import array_module
from minivit.protocol import Array


class Param:
    """A learned array and its gradient.

    Attributes:
        data: the array. Assigning copies into the same buffer and keeps its dtype, so that everything that shares
            the buffer (the replicas of `minivit.parallel`) sees the new values.
        grad: dLoss/d(data), None or an array of data's shape and dtype. `p.grad = None` clears it.
    """

    def __init__(self, data: Array) -> None:
        self._data = data
        self.grad: Array | None = None

    @property
    def data(self) -> Array:
        return self._data

    @data.setter
    def data(self, values: Array) -> None:
        shape = values.shape if hasattr(values, "shape") else np.shape(values)
        if shape != self._data.shape:
            raise ValueError(f"a parameter of shape {self.shape} cannot take values of shape {shape}")
        self._data[...] = array_module(self._data).asarray(values)

    @property
    def shape(self) -> tuple[int, ...]:
        shape: tuple[int, ...] = self._data.shape
        return shape

    @property
    def size(self) -> int:
        return int(self._data.size)

    def accumulate(self, grad: Array, fresh: bool = False) -> None:
        """grad is added to `.grad`: the only place where gradients accumulate, and always by addition.

        Args:
            fresh: nobody else holds this array, so the first one may become `.grad` as it is.
        """
        if self.grad is not None:
            self.grad += grad
        elif fresh and grad.dtype == self._data.dtype:
            self.grad = grad
        else:
            self.grad = array_module(grad).array(grad, dtype=self._data.dtype)

    def rows(self, start: int, stop: int) -> Param:
        """Some rows of this parameter as a parameter, whose gradient is added to the same rows of this one's."""
        return _Rows(self, start, stop)

    def replica(self) -> Param:
        """A parameter that shares this one's data and has a gradient of its own."""
        return Param(self._data)

    def swap(self, data: Array) -> Array:
        """Puts another array in the place of the buffer and returns the old one (for moves and gradient checks)."""
        data, self._data = self._data, data
        return data

    def __repr__(self) -> str:
        return f"Param(shape={self.shape}, dtype={self._data.dtype})"


class _Rows(Param):
    def __init__(self, whole: Param, start: int, stop: int) -> None:
        super().__init__(whole.data[start:stop])
        self._whole, self._part = whole, slice(start, stop)

    def accumulate(self, grad: Array, fresh: bool = False) -> None:
        whole = self._whole
        if whole.grad is None:
            whole.grad = array_module(whole.data).zeros_like(whole.data)
        whole.grad[self._part] += grad


class Buffer(Param):
    """Numbers of the state that are not learned, such as running statistics: saved and moved, but no parameter."""
