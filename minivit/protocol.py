"""The one rule: everything differentiable returns `(y, back)`, its output and its backward function.

Read this file first; `minivit/functional/` holds the functions in this form, `minivit/nn/` adds parameters.

    y, back = layer(x, rng)     # forward
    dx = back(dy)               # backward: dy = dLoss/dy goes in, dx = dLoss/dx comes out

`back` is a closure. Its variables are kept for the backward pass, and dropping it frees them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np

# to a type checker an array is NumPy's; CuPy's has the same methods, and device.py handles the differences
Array: TypeAlias = np.ndarray[Any, Any]
Rng: TypeAlias = "np.random.Generator | None"  # a generator (training) or None (inference)
Back: TypeAlias = Callable[..., Any]  # dy -> dx, or a tuple of gradients in the order of the arguments


_thread = threading.local()


@contextmanager
def inference() -> Iterator[None]:
    """A context in which this thread's forward passes keep nothing: each `back` drops its function immediately.

    Outputs are the same. `predict` uses it, so that its memory does not grow with the depth of the model.
    """
    before = in_inference()
    _thread.inference = True
    try:
        yield
    finally:
        _thread.inference = before


def in_inference() -> bool:
    """Whether this thread's forward passes keep nothing, so that work for the backward pass can be skipped."""
    return getattr(_thread, "inference", False)


def _nothing_kept(*_: Any, **__: Any) -> Any:
    raise RuntimeError("this forward pass ran for inference and kept nothing: call model(x), not model.predict(x)")


class once:  # lower case, as it is used as the decorator `@once`
    """Decorator of a backward pass: it runs a single time and releases what it captured as it runs.

    A second call would add the same gradients twice, or use arrays that the first one overwrote, so it raises a
    RuntimeError. The call drops the function: memory that a part captured is freed when the part's back returns, so a
    composite that calls the backs of its parts in turn frees their memory in turn. `repr(back)` has its layer, the
    memory that it holds, and whether it has run (minivit/nn/printing.py).

    Attributes:
        name: the class of the layer, or the function, that returned it; "" if unknown.
    """

    __slots__ = ("_check", "_function", "_others", "_output", "name", "__weakref__")

    def __init__(self, function: Back) -> None:
        self._function: Back | None = _nothing_kept if getattr(_thread, "inference", False) else function
        self._check: Callable[..., None] | None = None
        self._output: Any = None  # its type, shape and dtype
        self._others: list[Any] = []  # of a function with several outputs, those of the others
        self.name = ""

    def belong_to(self, name: str, y: Any, check: Callable[..., None]) -> None:
        """Set the name, and check the gradients before the backward pass runs.

        Args:
            name: of the layer or function.
            y: its output, or a tuple of them: a gradient must have the type, shape and dtype of its output.
            check: refuses a gradient that differs; see argument_checks.py.
        """
        self.name = name
        if self._function is _nothing_kept:
            return
        if isinstance(y, tuple):
            y, *others = y
            self._others = [(type(each), each.shape, each.dtype) for each in others]
        self._output, self._check = (type(y), y.shape, y.dtype), check

    def __call__(self, *gradients: Any, **named: Any) -> Any:
        function = self._function
        if function is None:
            raise RuntimeError(
                "this back has already run: a backward pass is single-use, because it frees what it kept. "
                "Run the forward pass again to get a fresh one"
            )
        if self._check is not None:
            dy: Any = gradients[0] if len(gradients) == 1 else None
            kind, shape, dtype = self._output  # compared here, because nearly all pass and a call takes time
            if type(dy) is not kind or dy.shape != shape or dy.dtype != dtype or self._others:
                self._check(self.name, [self._output, *self._others], (*gradients, *named.values()))
        self._function = None
        return function(*gradients, **named)

    @property
    def spent(self) -> bool:
        """Whether the backward pass has run."""
        return self._function is None

    @property
    def kept(self) -> list[Any]:
        """The objects that the closure holds for the backward pass; empty once it has run."""
        cells = getattr(self._function, "__closure__", None) or ()
        return [cell.cell_contents for cell in cells]


def compose(x: Array, *steps: Callable[..., tuple[Array, Back]] | None, rng: Rng = None) -> tuple[Array, Back]:
    """y = f_n(... f_1(x)), and the chain rule: their backs in reverse order.

    Args:
        steps: functions or layers; None is skipped.
        rng: given to every step, which must then take one; None gives none.
    """
    backs: list[Back] = []
    for step in steps:
        if step is None:
            continue
        x, back_step = step(x) if rng is None else step(x, rng)
        backs.append(back_step)

    @once
    def back(dy: Array) -> Array:
        while backs:  # a step's back frees its activations before the next one runs
            dy = backs.pop()(dy)
        return dy

    return x, back


def permutation(x: Array, move: Callable[[Array], Array], undo: Callable[[Array], Array]) -> tuple[Array, Back]:
    """y = move(x), which puts each element into exactly one position, and back = undo.

    The Jacobian is a permutation matrix, whose transpose is its inverse, so the backward pass is the inverse move.
    """
    return move(x), once(undo)
