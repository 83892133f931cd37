"""A copy of a model in which every part reports its calls, by the protocol that all parts share.

The observer receives each call of each part and returns its `y, back`, so it can read x, y, dy and dx. The layers need
no code for it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

from minivit.nn import Chain, Layer
from minivit.protocol import Array, Back, Rng

Run = Callable[[], tuple[Array, Back]]  # the call without the watcher


@dataclass(frozen=True)
class Location:
    """The position of a part in a model.

    Attributes:
        name: dotted, as in the names of its parameters: "blocks.0.attn.qkv"; "" for the model itself.
        label: its attribute, "qkv"; for the model itself its kind.
        kind: of layer, the name of its class.
        layer: the part in the given model.
        depth: 0 for the model, 1 for its parts, 2 for theirs, ...
        parent: the part that contains it.
        chained: whether the parent only calls its parts in turn, without its own arithmetic.
    """

    name: str
    label: str
    kind: str
    layer: Layer
    depth: int = 0
    parent: Location | None = None
    chained: bool = False


Watcher = Callable[[Layer, Location, Run, Array], tuple[Array, Back]]


def watched(model: Layer, watcher: Watcher) -> Layer:
    """A model with the same parameters in which each call of each part becomes `watcher(part, location, run, x)`.

    The watcher calls `run()` for the part's own `y, back`, and returns these or replacements. The given model does not
    change. A part that is used twice is one part here too, under its first name.
    """
    kind = kind_of(model)
    return _copy(Location("", kind, kind, model), "", watcher, {})


def kind_of(layer: Layer) -> str:
    """The name of its class, without the underscore of private classes."""
    return type(layer).__name__.lstrip("_")


class _Watched(Layer):
    """Mixed into a layer's class: calls go to the watcher, all else is the layer's."""

    _watcher: Watcher
    _location: Location

    def __call__(self, x: Array, rng: Rng = None, **context: Any) -> tuple[Array, Back]:
        call = super().__call__  # the layer's own
        return self._watcher(self, self._location, lambda: call(x, rng, **context), x)


def _copy(location: Location, prefix: str, watcher: Watcher, done: dict[int, Layer]) -> Layer:
    """A layer with the same parameters and constants, and copies of its parts; `prefix` is that of its parameters."""
    layer = location.layer
    if id(layer) in done:
        return done[id(layer)]
    copied = done[id(layer)] = copy.copy(layer)
    chained = isinstance(layer, Chain)
    for attribute, inner, part in _parts(layer):
        inside = Location(prefix + attribute, attribute, kind_of(part), part, location.depth + 1, location, chained)
        _put(copied, layer, attribute, _copy(inside, prefix + inner, watcher, done))
    # a subclass, so that the copy is still an instance of the layer's class, with its attributes
    copied.__class__ = cast(Any, type(type(layer).__name__, (_Watched, type(layer)), {}))
    watching = cast(_Watched, copied)
    watching._watcher, watching._location = watcher, location
    return copied


def _parts(layer: Layer) -> Iterator[tuple[str, str, Layer]]:
    """(attribute, prefix, part): the prefix of the names of the part's parameters in this layer.

    It is the attribute, or empty where parts have their parent's name (`names_in_parent`, Recompute).
    """
    ours = {(name, id(param)) for name, param in layer.named_state("")}
    for attribute, part in layer.parts():
        name, param = next(part.named_state(""), ("", None))
        lent = (f"{attribute}.{name}", id(param)) not in ours and (name, id(param)) in ours
        yield attribute, "" if lent else f"{attribute}.", part


def _put(copied: Layer, layer: Layer, attribute: str, part: Layer) -> None:
    """Set a part by its name, "norm1" or, in a list, "blocks.0"; the copy gets its own list."""
    name, _, index = attribute.partition(".")
    if not index:
        setattr(copied, name, part)
        return
    if getattr(copied, name) is getattr(layer, name):
        setattr(copied, name, list(getattr(layer, name)))
    getattr(copied, name)[int(index)] = part
