"""Find the first NaN or infinity: a model that stops at the layer that produces it, and reports its inputs."""

from __future__ import annotations

import textwrap
from typing import Any, NoReturn

import numpy as np

from minivit.device import array_module, to_numpy
from minivit.nn import Layer
from minivit.observe.formulas import formula
from minivit.observe.hooks import Location, Run, watched
from minivit.protocol import Array, Back, once

_WIDTH = 100  # characters of a line of a message

_PARAMETERS = (
    "The parameters were damaged before this call: by an optimizer step, or in the file that they came from. Go back "
    "to the last good ones. Run the steps before this one under debug_nans too, which finds a bad gradient before it "
    "is added; a smaller learning rate, a warm-up and optim.clip_grad_norm keep steps small."
)
_OVERFLOW = (
    "An infinity from finite numbers is an overflow, or a division by 0. If numbers above are already large, they grew "
    "in earlier steps: a smaller learning rate, a warm-up and optim.clip_grad_norm keep them small. Built with "
    "dtype='float64', the same model shows whether it was the range of float32."
)
_NAN = (
    "A NaN from finite numbers is infinity - infinity or 0 * infinity after an overflow inside the layer, 0 / 0, or "
    "the root or logarithm of a number below 0. Built with dtype='float64', the same model shows whether it was an "
    "overflow. In your own layer, check each division, exp, log and root."
)
_BACKWARD = (
    "The forward pass was finite here. Where the slope of a formula has no bound (a root at 0, a logarithm near 0, a "
    "division by a small number), its backward pass needs a small constant that the forward pass does not need; and "
    "large gradients overflow. In your own layer, minivit.check_vjp compares the backward pass with differences."
)
_GIVEN = (
    "No layer produced it: it is in the input. Check how it was read and scaled: a division by a standard deviation "
    "of 0 and an empty mean give NaN."
)
_LOSS = (
    "No layer produced it: it is in the gradient given to back. The model's output was finite, so the loss produced "
    "it: the logarithm of a softmax that rounds to 0 does, F.softmax_cross_entropy, which takes logits, does not. A "
    "factor on the loss can be too large as well."
)


class NotFiniteError(FloatingPointError):
    """The first NaN or infinity of a pass.

    Attributes:
        name: of the layer that produced it, dotted; "" is the model itself, or its input.
        kind: of layer; the model's where no layer produced it.
        phase: "forward" or "backward".
        where: "output", "input" (no layer produced it), "between parts" (the layer's own arithmetic before one of
            its parts), "dx", "dy" (no layer produced it), "gradient of NAME", or "NAME", a parameter that is not finite
            although all arrays that passed are.
    """

    def __init__(self, name: str, kind: str, phase: str, where: str, text: str) -> None:
        super().__init__(text)
        self.name, self.kind, self.phase, self.where = name, kind, phase, where


def debug_nans(model: Layer) -> Any:
    """A model with the same parameters that raises NotFiniteError where the first NaN or infinity appears.

    It gives the same numbers, gradients are added to the same `.grad`, and optimizers built on either model work. It
    reads each array that passes once more; the given model does not change.

        model = explain.debug_nans(model)   # then train as before

    NumPy's warnings, such as of overflow, are silenced meanwhile, because the error says more.
    """
    return watched(model, _guard)


def _guard(layer: Layer, location: Location, run: Run, x: Array) -> tuple[Array, Back]:
    """Check inputs and outputs in both passes; parts are checked before the layer that contains them."""
    if _count_bad(x):
        _blame_input(location, x)
    with np.errstate(all="ignore"):
        y, back_layer = run()
    forward = f"Forward, x: {_describe(x)}."
    if _count_bad(y):
        _blame_output(layer, location, y, forward)
    if location.parent is None:
        _blame_hidden(layer, location)

    @once
    def back(dy: Array) -> Array:
        if _count_bad(dy):
            _blame_dy(location, dy)
        facts = f"dy: {_describe(dy)}. {forward}"
        before = _bad_gradients(layer)  # from before this call
        with np.errstate(all="ignore"):
            dx = back_layer(dy)
        if dx is not None and _count_bad(dx):
            _blame(layer, location, "backward", "dx", f"dx: {_describe(dx)}.", facts, _BACKWARD)
        for name, bad in _bad_gradients(layer).items():
            if name not in before:
                _blame(layer, location, "backward", f"gradient of {name}", f"d{name}: {bad}.", facts, _BACKWARD)
        return dx

    return y, back


def _blame_input(location: Location, x: Array) -> NoReturn:
    """x is damaged: by the parent's own arithmetic, or from outside, because other parts' outputs are checked."""
    maker = location.parent
    if maker is None or location.chained:
        found = f"the input of {_named(location)}: {_describe(x)}."
        raise NotFiniteError("", location.kind, "forward", "input", _message(found, _GIVEN))
    found = f"{_named(maker)} produced it in its forward pass, between its parts, by its own arithmetic."
    given = f"Its input to {_named(location)}: {_describe(x)}. Its own input and its parts' outputs are finite."
    facts = (given, f"Parameters: {_parameters(maker.layer)}.", _remedy(maker.layer, x))
    raise NotFiniteError(maker.name, maker.kind, "forward", "between parts", _message(found, *facts))


def _blame_output(layer: Layer, location: Location, y: Array, forward: str) -> NoReturn:
    _blame(layer, location, "forward", "output", f"y: {_describe(y)}.", forward, _remedy(layer, y))


def _blame_hidden(model: Layer, location: Location) -> None:
    """A damaged parameter that was not read, or only in a comparison: NaN < 1 is False, not NaN."""
    for name, param in model.parameters().items():
        if _count_bad(param.data):
            owner, _, last = name.rpartition(".")
            found = f"the parameter {name}: {_describe(param.data)}."
            hidden = "The output is finite: the parameter was not read, or a comparison hid the NaN."
            raise NotFiniteError(owner, location.kind, "forward", last, _message(found, hidden, _PARAMETERS))


def _blame_dy(location: Location, dy: Array) -> NoReturn:
    """As `_blame_input`, in the backward pass."""
    maker = location.parent
    if maker is None or location.chained:
        found = f"the gradient dy that was given to {_named(location)}: {_describe(dy)}."
        raise NotFiniteError("", location.kind, "backward", "dy", _message(found, _LOSS))
    found = f"{_named(maker)} produced it in its backward pass, between its parts, by its own arithmetic."
    given = f"Its gradient to {_named(location)}: {_describe(dy)}. Its own dy and its parts' gradients are finite."
    raise NotFiniteError(maker.name, maker.kind, "backward", "between parts", _message(found, given, _BACKWARD))


def _blame(layer: Layer, location: Location, phase: str, where: str, bad: str, forward: str, remedy: str) -> NoReturn:
    line = formula(layer)
    found = f"{_named(location)} produced it in its {phase} pass{f', {line}' if line else ''}."
    raise NotFiniteError(
        location.name,
        location.kind,
        phase,
        where,
        _message(found, bad, forward, f"Parameters: {_parameters(layer)}.", remedy),
    )


def _message(found: str, *facts: str) -> str:
    lines = [f"The first NaN or infinity: {found}", *facts]
    return "\n  ".join(textwrap.fill(line, _WIDTH, subsequent_indent="  ") for line in lines)


def _remedy(layer: Layer, bad: Array) -> str:
    if any(_count_bad(param.data) for param in layer.parameters().values()):
        return _PARAMETERS
    infinite = bool(array_module(bad).isinf(bad).any())
    return _OVERFLOW if infinite else _NAN


def _named(location: Location) -> str:
    return f"{location.name} ({location.kind})" if location.name else f"the model ({location.kind})"


def _bad_gradients(layer: Layer) -> dict[str, str]:
    params = layer.parameters().items()
    return {name: _describe(p.grad) for name, p in params if p.grad is not None and _count_bad(p.grad)}


def _parameters(layer: Layer) -> str:
    """A layer's parameters in words: the damaged ones, or their largest number."""
    params = layer.parameters()
    damaged = [f"{name} {_describe(param.data)}" for name, param in params.items() if _count_bad(param.data)]
    if damaged or not params:
        return "; ".join(damaged) or "none"
    largest, name = max((_largest(param.data), name) for name, param in params.items())
    return f"all finite, the largest number is {largest:.3g}, in {name}"


def _describe(a: Array) -> str:
    """ "(2, 5, 8) has 3 NaN and 1 infinite of 80 numbers, the first at (0, 1, 4)", or that it is finite."""
    bad = _count_bad(a)
    if not bad:
        return f"{tuple(a.shape)} is finite, the largest number is {_largest(a):.3g}"
    xp = array_module(a)
    nans = int(xp.isnan(a).sum())
    words = [f"{nans} NaN"] * bool(nans) + [f"{bad - nans} infinite"] * bool(bad - nans)
    first = int(xp.isfinite(a).ravel().argmin())
    location = tuple(int(index) for index in np.unravel_index(first, a.shape))
    return f"{tuple(a.shape)} has {' and '.join(words)} of {a.size} numbers, the first at {location}"


def _count_bad(a: Array) -> int:
    return int(a.size) - int(to_numpy(array_module(a).isfinite(a).sum()))


def _largest(a: Array) -> float:
    return float(to_numpy(abs(a).max())) if a.size else 0.0
