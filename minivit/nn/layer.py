"""The layer: an object that owns parameters and follows `y, back = layer(x, rng)`.

A layer stores no state of a forward pass, so it can be used twice in one network, and by two threads. Concerns of all
layers (multiply-adds, kept memory, names of formulas) have one file each, which dispatches on the layer's type. Most
layers use `apply`, which calls a function of `minivit.functional` on parameters.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from minivit.argument_checks import check_array, check_generator, check_gradients
from minivit.device import array_module
from minivit.fast.half import is_floating, is_half
from minivit.nn.init import MODEL_DTYPES
from minivit.nn.parameter import Buffer, Parameter
from minivit.protocol import Array, Back, Rng, compose, once
from minivit.renamed import OF_A_LAYER, remedy


class Layer:
    """Base of everything with parameters. A subclass writes `forward(x, rng)`, which returns `y, back`.

    Its parameters and parts are its attributes (a Parameter, a Layer, or a list of Layers; no other containers), in the
    order in which they were set, and are named by them: `blocks.0.attn.qkv.weight`. `repr` shows
    them as a tree (printing.py).
    """

    names_in_parent = False  # True: this attribute's parameters are listed with its parent's, without its name

    if not TYPE_CHECKING:  # a checker would take every name for an attribute

        def __getattr__(self, name: str) -> Any:
            known = remedy(name, OF_A_LAYER)
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{known}")

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Back]:
        raise TypeError(f"{type(self).__name__} must define forward(self, x, rng=None), returning y and back")

    def __call__(self, x: Array, rng: Rng = None, **context: Any) -> tuple[Array, Back]:
        """y and back; `context` is for layers that need more than x, such as the mask of a window attention."""
        self.check_input(x)
        if rng is not None:
            check_generator(rng)
        output = self.forward(x, rng, **context)
        if not (isinstance(output, tuple) and len(output) == 2):
            raise TypeError(
                f"{type(self).__name__}.forward returned a {type(output).__name__}: it must return the pair y, back"
            )
        y, back = output
        if isinstance(back, once):
            back.belong_to(type(self).__name__, y, check_gradients)
        return y, back

    def check_input(self, x: Array) -> None:
        """Refuse an unsuitable input; a subclass may check more than the dtype."""
        if not (isinstance(x, np.ndarray) and x.dtype == self.dtype):  # most calls need no closer look
            self.check_dtype(x)

    def check_dtype(self, x: Array) -> None:
        """Refuse an input that is not of the parameters' dtype.

        Half precision passes where the parameters are float32 (minivit/fast/half.py), and complex numbers, for
        gradient checks.
        """
        name = type(self).__name__
        check_array(name, "input", x)
        kind, dtype = x.dtype.kind, self.dtype
        if x.dtype == dtype or kind == "c" or (is_half(x.dtype) and dtype in (None, np.float32)):
            return
        known = dtype is not None and dtype.kind == "f"
        wanted = str(dtype) if known else "float32"
        if kind in "iu":
            raise ValueError(
                f"{name}: input is {x.dtype}: convert it with x.astype({wanted!r}), and images with pixels of 0 to 255 "
                f"with x.astype({wanted!r}) / 255"
            )
        if kind != "f":
            raise ValueError(f"{name}: input is {x.dtype}: convert it to numbers, x.astype({wanted!r})")
        if known:
            remedy = f"convert it with x.astype({wanted!r})"
            if x.dtype in MODEL_DTYPES:
                remedy += f", or build the model with dtype={str(x.dtype)!r}"
            raise ValueError(f"{name}: input is {x.dtype}, but the parameters are {dtype}: {remedy}")

    @cached_property
    def dtype(self) -> Any:
        """The dtype of the parameters; None for a layer that has none."""
        return next((param.data.dtype for param in self.parameters().values()), None)

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

    def parameters(self) -> dict[str, Parameter]:
        """The live parameters by dotted name; one that two parts share is listed once, under its first name."""
        return {name: param for name, param in self.state().items() if isinstance(param, Parameter)}

    def zero_grad(self) -> None:
        """Clear the gradient of every parameter, including those that no optimizer updates."""
        for param in self.parameters().values():
            param.grad = None

    def state(self) -> dict[str, Buffer]:
        """`parameters()` and the buffers: the arrays that a file stores."""
        found: dict[int, tuple[str, Buffer]] = {}
        for name, each in self.named_state(""):
            found.setdefault(id(each), (name, each))
        return dict(found.values())

    def named_state(self, prefix: str) -> Iterator[tuple[str, Buffer]]:
        """(name, parameter or buffer) of this layer and its parts, each name with the prefix."""
        for name, value in vars(self).items():
            if isinstance(value, Buffer):
                yield prefix + name, value
            elif isinstance(value, Layer):
                yield from value.named_state(prefix if value.names_in_parent else f"{prefix}{name}.")
            elif isinstance(value, list):
                for index, item in enumerate(value):
                    if isinstance(item, Layer):
                        yield from item.named_state(f"{prefix}{name}.{index}.")
            elif isinstance(value, tuple | dict):
                items = value.values() if isinstance(value, dict) else value
                if any(isinstance(item, Layer | Buffer) for item in items):
                    raise ValueError(
                        f"{type(self).__name__}.{name} is a {type(value).__name__} of layers, whose parameters would "
                        "not be found: keep layers in a list, and each Parameter in its own attribute"
                    )

    def replica(self) -> Layer:
        """The same layer with the same parameter data, but separate gradients: one for each thread."""
        memo: dict[int, Any] = {
            id(each): each.replica() if isinstance(each, Parameter) else each for each in self.state().values()
        }
        memo |= {id(value): value for value in self.constants()}
        return copy.deepcopy(self, memo)

    def constants(self) -> Iterator[Array]:
        """Arrays of the layers that are not learned (position tables, indices)."""
        for value in vars(self).values():
            if _is_array(value):
                yield value
        for _, part in self.parts():
            yield from part.constants()

    def move_to(self, move: Callable[[Array], Array]) -> None:
        """Replace every parameter, gradient and constant array by move(array); see `minivit.to_device`."""
        for each in self.state().values():
            each.move_to(move)
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
        """Copy arrays into the parameters, cast to their dtype; if any does not fit, none is changed.

        Raises:
            ValueError: naming the first missing, unexpected or misshapen entry (with strict=False only misshapen).
        """
        if not isinstance(state, Mapping):
            raise ValueError(
                f"load_state_dict takes a dict of arrays by name, got a {type(state).__name__}: "
                "minivit.load(model, path) reads a file"
            )
        params = self.state()
        missing = [name for name in params if name not in state]
        unexpected = [name for name in state if name not in params]
        if strict:
            if missing:
                raise ValueError(f"state has no entry {missing[:1]} ({len(missing)} of {len(params)} are missing)")
            if unexpected:
                raise ValueError(f"state has {len(unexpected)} entries that the model lacks, first {unexpected[:1]}")
        common = [name for name in params if name in state]
        for name in common:
            if tuple(state[name].shape) != params[name].shape:
                raise ValueError(
                    f"{name}: the model has shape {params[name].shape}, the state has {tuple(state[name].shape)}"
                )
        for name in common:
            params[name].data = state[name]


class Chain(Layer):
    """A layer whose parts run one after the other, in the order in which they were set as attributes."""

    def steps(self) -> list[Layer]:
        """The parts in the order in which they run."""
        return [part for _, part in self.parts()]

    def leaves(self, prefix: str = "") -> Iterator[tuple[str, Layer]]:
        """(name, layer) in running order; a chain among the parts is expanded into its own parts."""
        names = {id(part): name for name, part in self.parts()}
        for step in self.steps():
            name = prefix + names[id(step)]
            if isinstance(step, Chain):
                yield from step.leaves(f"{name}.")
            else:
                yield name, step

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Back]:
        return compose(x, *self.steps(), rng=rng)


def apply(function: Callable[..., tuple[Any, Back]], *arguments: Any, **options: Any) -> tuple[Any, Back]:
    """y, back of a function of `minivit.functional` on the data of parameters.

    `back` adds the gradients of the parameters among the arguments to their `.grad` and returns those of the arrays:
    one gradient itself, several as a tuple, None where there is none.

    Args:
        function: such as `F.linear`; its vjp returns the gradients in the order of the arguments.
        arguments: parameters, arrays and None. Integers and arrays of integers have no gradient.
        options: keyword arguments of the function that need no gradient.
    """
    data: list[Any] = []
    takers: list[Parameter | None] = []  # of the gradients, in order
    for value in arguments:
        taker = value if isinstance(value, Parameter) else None
        data.append(value if taker is None else taker.data)
        if taker is not None or value is None or is_floating(getattr(value, "dtype", None)):
            takers.append(taker)
    y, vjp = function(*data, **options)

    @once
    def back(*dy: Array) -> Any:
        gradients, given = vjp(*dy), set(map(id, dy))
        returned = []
        for taker, gradient in zip(takers, gradients if isinstance(gradients, tuple) else (gradients,)):
            if gradient is None:
                continue
            if taker is None:
                returned.append(gradient)
            else:
                # dy is the caller's, and a function may return it or a view of it
                taker.accumulate(gradient, fresh=gradient.base is None and id(gradient) not in given)
        return returned[0] if len(returned) == 1 else tuple(returned) or None

    return y, back


def check_layer(name: str, model: Any) -> None:
    """Refuse an argument that is not a model or layer; the message names the function or class `name`."""
    if not isinstance(model, Layer):
        what = "the class, not a model" if isinstance(model, type) else f"a {type(model).__name__}"
        raise ValueError(
            f"{name} takes the model itself, got {what}: give the object that minivit.create_model returns"
        )


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) or array_module(value) is not np
