"""Parameters, and the layer: an object that owns parameters and follows `y, back = layer(x, rng)`.

A layer keeps nothing of a forward pass on itself, so it can be used twice in one network, and by two threads.
Next: `basic.py`, the first layers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from math import prod
from typing import Any

import numpy as np

from minivit.backend import array_module
from minivit.protocol import Array, Back, compose, refuse


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
        refuse(shape != self._data.shape, f"a parameter of shape {self.shape} cannot take values of shape {shape}")
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
            fresh: the caller has made this array and lets go of it, so the first one may stay as it is.
        """
        if self.grad is not None:
            self.grad += grad
        elif fresh and grad.dtype == self._data.dtype:
            self.grad = grad
        else:
            self.grad = array_module(grad).array(grad, dtype=self._data.dtype)  # a copy: grad may be somebody's dy

    def replica(self) -> Param:
        """A parameter that shares this one's data and has a gradient of its own."""
        return Param(self._data)

    def swap(self, data: Array) -> Array:
        """Puts another array in the place of the buffer and returns the old one (for moves and gradient checks)."""
        data, self._data = self._data, data
        return data

    def __repr__(self) -> str:
        return f"Param(shape={self.shape}, dtype={self._data.dtype})"


class Buffer(Param):
    """Numbers of the state that are not learned, such as running statistics: saved and moved, but no parameter."""


class Layer:
    """Base of everything with parameters. A subclass writes `forward(x, rng)`, which returns `y, back`.

    Its parameters and parts are found in its attributes (a Param, a Layer, or a list of Layers; no other containers),
    in the order in which they were set, and are named by them: `blocks.0.attn.qkv.weight`.
    """

    names_in_parent = False  # True: the parameters of this attribute stand among its parent's, without its name

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "forward" in vars(cls) and "infer" not in vars(cls):
            cls.infer = Layer.infer  # type: ignore[method-assign]  # an inherited one is that of another forward

    def forward(self, x: Array, rng: Any = None) -> tuple[Array, Back]:
        raise TypeError(f"{type(self).__name__} must define forward(self, x, rng=None), returning y and back")

    def __call__(self, x: Array, rng: Any = None, **context: Any) -> tuple[Array, Back]:
        """y and back; `context` is for layers that need more than x, such as the mask of a window attention."""
        self.check_dtype(x)
        return self.forward(x, rng, **context)

    def infer(self, x: Array, **context: Any) -> Array:
        """y alone, as `predict` wants it: no randomness, and nothing kept.

        The same numbers as the forward pass; a layer has its own `infer` where it can then do with less memory, or let
        several threads share its work.
        """
        return self(x, **context)[0]

    def check_dtype(self, x: Array) -> None:
        """Refuse an input that is not of the parameters' dtype; complex inputs pass, for gradient checks."""
        name = type(self).__name__
        refuse(not hasattr(x, "dtype"), f"{name}: input is a {type(x).__name__}: convert it with numpy.asarray")
        kind, dtype = x.dtype.kind, self.dtype
        if x.dtype == dtype or kind == "c":
            return
        wanted = "float32" if dtype is None or dtype.kind != "f" else str(dtype)
        refuse(
            kind != "f",
            f"{name}: input is {x.dtype}: convert it with x.astype({wanted!r}) (images: divide by 255 first)",
        )
        refuse(
            dtype is not None and dtype.kind == "f",
            f"{name}: input is {x.dtype}, but the parameters are {dtype}: convert it with x.astype({wanted!r}), or "
            f"build the model with dtype={str(x.dtype)!r}",
        )

    @cached_property
    def dtype(self) -> Any:
        """The dtype of the parameters; None for a layer that has none."""
        return next((param.data.dtype for param in self.parameters().values()), None)

    def macs(self, shape: tuple[int, ...]) -> int:
        """Multiply-adds of the products in a forward pass over an input of this shape; 0 for a layer without any."""
        return 0

    # --- the tree of parts ---

    def parts(self) -> Iterator[tuple[str, Layer]]:
        """(name, layer) of the direct parts."""
        for name, value in vars(self).items():
            if isinstance(value, Layer):
                yield name, value
            elif isinstance(value, list):
                for index, item in enumerate(value):
                    if isinstance(item, Layer):
                        yield f"{name}.{index}", item

    def parameters(self) -> dict[str, Param]:
        """The live parameters by dotted name; one that is shared by two parts stands under its first name only."""
        return {name: param for name, param in self.state().items() if not isinstance(param, Buffer)}

    def state(self) -> dict[str, Param]:
        """`parameters()` and the buffers: all that belongs into a file."""
        found: dict[int, tuple[str, Param]] = {}
        for name, param in self._walk(""):
            found.setdefault(id(param), (name, param))
        return dict(found.values())

    def _walk(self, prefix: str) -> Iterator[tuple[str, Param]]:
        for name, value in vars(self).items():
            if isinstance(value, Param):
                yield prefix + name, value
            elif isinstance(value, Layer):
                yield from value._walk(prefix if value.names_in_parent else f"{prefix}{name}.")
            elif isinstance(value, list):
                for index, item in enumerate(value):
                    if isinstance(item, Layer):
                        yield from item._walk(f"{prefix}{name}.{index}.")
            elif isinstance(value, tuple | dict):
                items = value.values() if isinstance(value, dict) else value
                refuse(
                    any(isinstance(item, Layer | Param) for item in items),
                    f"{type(self).__name__}.{name} is a {type(value).__name__} of layers, whose parameters would not "
                    "be found: keep layers in a list, and each Param in an attribute of its own",
                )

    def replica(self) -> Layer:
        """The same layer with the same parameter data, but gradients of its own: one for each thread."""
        memo: dict[int, Any] = {id(param): param.replica() for param in self.parameters().values()}
        memo |= {id(param): param for param in self.state().values() if isinstance(param, Buffer)}
        memo |= {id(value): value for value in self.constants()}
        return copy.deepcopy(self, memo)

    def constants(self) -> Iterator[Array]:
        """Arrays that belong to the layers but are not learned (position tables, indices)."""
        for value in vars(self).values():
            if _is_array(value):
                yield value
        for _, part in self.parts():
            yield from part.constants()

    def move_to(self, move: Callable[[Array], Array]) -> None:
        """Replace every parameter, gradient and constant array by move(array); see `minivit.to_device`."""
        for param in self.state().values():
            param.swap(move(param.data))
            param.grad = None if param.grad is None else move(param.grad)
        self._move_constants(move)

    def _move_constants(self, move: Callable[[Array], Array]) -> None:
        for name, value in list(vars(self).items()):
            if _is_array(value):
                setattr(self, name, move(value))
        for _, part in self.parts():
            part._move_constants(move)

    # --- state ---

    def state_dict(self) -> dict[str, Array]:
        """Copies of all parameters and buffers by dotted name."""
        return {name: param.data.copy() for name, param in self.state().items()}

    def load_state_dict(self, state: dict[str, Array], strict: bool = True) -> None:
        """Copy arrays into the parameters, cast to their dtype; nothing is changed if anything does not fit.

        Raises:
            ValueError: naming the first missing, unexpected or misshapen entry (with strict=False only misshapen).
        """
        params = self.state()
        missing = [name for name in params if name not in state]
        unexpected = [name for name in state if name not in params]
        if strict:
            refuse(bool(missing), f"state has no entry {missing[:1]} ({len(missing)} of {len(params)} are missing)")
            refuse(
                bool(unexpected), f"state has {len(unexpected)} entries that the model lacks, first {unexpected[:1]}"
            )
        common = [name for name in params if name in state]
        for name in common:
            refuse(
                tuple(state[name].shape) != params[name].shape,
                f"{name}: the model has shape {params[name].shape}, the state has {tuple(state[name].shape)}",
            )
        for name in common:
            params[name].data = state[name]


class Chain(Layer):
    """A layer whose steps follow one another; a subclass says which."""

    def steps(self) -> list[Layer]:
        raise TypeError(f"{type(self).__name__} must define steps(self), the list of its layers in order")

    def leaves(self, prefix: str = "") -> Iterator[tuple[str, Layer]]:
        """(name, layer) of what runs one after the other; a chain among the steps is unfolded into its own."""
        names = {id(part): name for name, part in self.parts()}
        for step in self.steps():
            name = prefix + names[id(step)]
            if isinstance(step, Chain):
                yield from step.leaves(f"{name}.")
            else:
                yield name, step

    def forward(self, x: Array, rng: Any = None) -> tuple[Array, Back]:
        return compose(x, *(partial(step, rng=rng) for step in self.steps()))

    def infer(self, x: Array, **context: Any) -> Array:
        for step in self.steps():
            x = step.infer(x)
        return x


_MOST_TOKENS = 2048  # in one part of `by_tokens`: large enough that its products lose no speed


def by_tokens(function: Callable[[Array], Array], x: Array) -> Array:
    """function(x) of one that treats each token by itself, (..., D) -> (..., E), for some tokens after the others.

    What it needs in between, such as an MLP's wide activations, then never exists for all tokens at once.
    """
    *lead, channels = x.shape
    rows = x.reshape(prod(lead), channels)  # (R, D)
    if len(rows) <= _MOST_TOKENS:
        y = function(rows)
    else:
        starts = range(0, len(rows), _MOST_TOKENS)
        y = array_module(x).concatenate([function(rows[start : start + _MOST_TOKENS]) for start in starts])  # (R, E)
    return y.reshape(*lead, y.shape[-1])


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) or array_module(value) is not np
