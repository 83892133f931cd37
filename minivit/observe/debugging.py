"""Where the first NaN or infinity comes from: a model that stops at the layer that makes it, and says what it saw."""

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
    "overflow. In a layer of your own, look at each division, exp, log and root."
)
_BACKWARD = (
    "The forward pass was finite here. Where the slope of a formula has no bound (a root at 0, a logarithm near 0, a "
    "division by a small number), its backward pass needs a small constant that the forward pass can do without; and "
    "large gradients overflow. In a layer of your own, minivit.check_vjp compares the backward pass with differences."
)
_GIVEN = (
    "No layer made it: it is in what was given. Look at how it was read and scaled: a division by a standard deviation "
    "of 0 and a mean over nothing give NaN."
)
_LOSS = (
    "No layer made it: it is in the gradient that was handed to back. The model's output was finite, so the loss made "
    "it: the logarithm of a softmax that rounds to 0 does, F.softmax_cross_entropy, which takes logits, does not. A "
    "factor on the loss can be too large as well."
)


class NotFiniteError(FloatingPointError):
    """The first NaN or infinity of a pass.

    Attributes:
        name: of the layer that made it, dotted; "" is the model itself, or what was given to it.
        kind: of layer; the model's where no layer made it.
        phase: "forward" or "backward".
        where: "output", "input" (no layer made it), "between parts" (the layer's own arithmetic before one of its
            parts), "dx", "dy" (no layer made it), "gradient of NAME", or "NAME", a parameter that is not finite while
            all that passed is.
    """

    def __init__(self, name: str, kind: str, phase: str, where: str, text: str) -> None:
        super().__init__(text)
        self.name, self.kind, self.phase, self.where = name, kind, phase, where


def debug_nans(model: Layer) -> Any:
    """A model with the same Params that raises NotFiniteError where the first NaN or infinity appears.

    It gives the same numbers, gradients go into the same `.grad`, and optimizers built on either model work. It costs
    a look at each array that passes; the model that was given stays as it is, and as fast.

        model = explain.debug_nans(model)   # then train as before

    NumPy's warnings of overflow and the like are silent meanwhile, for the error says more.
    """
    return watched(model, _guard)


def _guard(layer: Layer, location: Location, run: Run, x: Array) -> tuple[Array, Back]:
    """Check what goes in and what comes out, on both ways; inner parts are checked before what they are part of."""
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
        before = _bad_gradients(layer)  # left there by others
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
    """x came in damaged: by the whole's own arithmetic, or from outside, for what other parts give is checked."""
    maker = location.parent
    if maker is None or location.chained:
        found = f"the input of {_named(location)}: {_describe(x)}."
        raise NotFiniteError("", location.kind, "forward", "input", _message(found, _GIVEN))
    found = f"{_named(maker)} made it in its forward pass, between its parts, by its own arithmetic."
    given = f"What it gave to {_named(location)}: {_describe(x)}. What itself was given, and its parts gave, is finite."
    facts = (given, f"Parameters: {_parameters(maker.layer)}.", _remedy(maker.layer, x))
    raise NotFiniteError(maker.name, maker.kind, "forward", "between parts", _message(found, *facts))


def _blame_output(layer: Layer, location: Location, y: Array, forward: str) -> NoReturn:
    _blame(layer, location, "forward", "output", f"y: {_describe(y)}.", forward, _remedy(layer, y))


def _blame_hidden(model: Layer, location: Location) -> None:
    """A parameter that was not read, or whose damage a comparison swallowed: NaN < 1 is false and not NaN."""
    for name, param in model.parameters().items():
        if _count_bad(param.data):
            owner, _, last = name.rpartition(".")
            found = f"the parameter {name}: {_describe(param.data)}."
            hidden = "The output is finite all the same: it was not read, or a comparison with it hid the NaN."
            raise NotFiniteError(owner, location.kind, "forward", last, _message(found, hidden, _PARAMETERS))


def _blame_dy(location: Location, dy: Array) -> NoReturn:
    """As `_blame_input`, in the backward pass."""
    maker = location.parent
    if maker is None or location.chained:
        found = f"the gradient dy that was given to {_named(location)}: {_describe(dy)}."
        raise NotFiniteError("", location.kind, "backward", "dy", _message(found, _LOSS))
    found = f"{_named(maker)} made it in its backward pass, between its parts, by its own arithmetic."
    given = f"What it gave to {_named(location)}: {_describe(dy)}. What came to itself, and from its parts, is finite."
    raise NotFiniteError(maker.name, maker.kind, "backward", "between parts", _message(found, given, _BACKWARD))


def _blame(layer: Layer, location: Location, phase: str, where: str, bad: str, forward: str, remedy: str) -> NoReturn:
    line = formula(layer)
    found = f"{_named(location)} made it in its {phase} pass{f', {line}' if line else ''}."
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
    """What there is to say of a layer's parameters: the damaged ones, or the largest number in them."""
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
