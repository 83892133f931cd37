"""A copy of a model in which every part reports its calls, on the one protocol that all parts share.

The observer is given each call of each part and returns its `y, back`, so it can read x, y, dy and dx. The layers know
nothing of it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

from minivit.nn import Chain, Layer
from minivit.protocol import Array, Back, Rng

Run = Callable[[], tuple[Array, Back]]  # the call itself, as if nobody watched


@dataclass(frozen=True)
class Location:
    """Where in a model a part stands.

    Attributes:
        name: dotted, in the words of its parameters: "blocks.0.attn.qkv"; "" for the model itself.
        label: its attribute alone, "qkv"; for the model itself its kind.
        kind: of layer, the name of its class.
        layer: what stands there in the model that was given.
        depth: 0 for the model, 1 for its parts, 2 for theirs, ...
        parent: what it is a part of.
        chained: whether that only calls its parts in turn and has no arithmetic of its own.
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
    """A model with the same Params in which each call of each part becomes `watcher(part, location, run, x)`.

    The watcher calls `run()` for the part's own `y, back`, and returns these or what it makes of them. The model that
    was given stays as it is. A part that is used at two places is one part here too, under its first name.
    """
    kind = kind_of(model)
    return _copy(Location("", kind, kind, model), "", watcher, {})


def kind_of(layer: Layer) -> str:
    """The name of its class, without the underscore of those that users do not build."""
    return type(layer).__name__.lstrip("_")


class _Watched(Layer):
    """Put in front of a layer's own class: calls go to the watcher, all else is the layer's."""

    _watcher: Watcher
    _location: Location

    def __call__(self, x: Array, rng: Rng = None, **context: Any) -> tuple[Array, Back]:
        call = super().__call__  # the layer's own
        return self._watcher(self, self._location, lambda: call(x, rng, **context), x)


def _copy(location: Location, prefix: str, watcher: Watcher, done: dict[int, Layer]) -> Layer:
    """A layer with the same Params and constants and with copies of its parts; `prefix` is that of its parameters."""
    layer = location.layer
    if id(layer) in done:
        return done[id(layer)]
    twin = done[id(layer)] = copy.copy(layer)
    chained = isinstance(layer, Chain)
    for attribute, inner, part in _parts(layer):
        inside = Location(prefix + attribute, attribute, kind_of(part), part, location.depth + 1, location, chained)
        _put(twin, layer, attribute, _copy(inside, prefix + inner, watcher, done))
    # a class of its own, so that the twin is still an instance of the layer's class and has all that this has
    twin.__class__ = cast(Any, type(type(layer).__name__, (_Watched, type(layer)), {}))
    watching = cast(_Watched, twin)
    watching._watcher, watching._location = watcher, location
    return twin


def _parts(layer: Layer) -> Iterator[tuple[str, str, Layer]]:
    """(attribute, prefix, part): what the names of the part's parameters begin with in this layer.

    That is the attribute, or nothing where a layer lends its parts its own name (`names_in_parent`, Recompute).
    """
    ours = {(name, id(param)) for name, param in layer.named_state("")}
    for attribute, part in layer.parts():
        name, param = next(part.named_state(""), ("", None))
        lent = (f"{attribute}.{name}", id(param)) not in ours and (name, id(param)) in ours
        yield attribute, "" if lent else f"{attribute}.", part


def _put(twin: Layer, layer: Layer, attribute: str, part: Layer) -> None:
    """Set a part by its name, "norm1" or, in a list, "blocks.0"; the twin gets a list of its own."""
    name, _, index = attribute.partition(".")
    if not index:
        setattr(twin, name, part)
        return
    if getattr(twin, name) is getattr(layer, name):
        setattr(twin, name, list(getattr(layer, name)))
    getattr(twin, name)[int(index)] = part
