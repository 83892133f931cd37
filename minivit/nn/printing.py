"""The repr of layers and backward functions: a tree of parts, and the memory held.

A layer needs no code of its own for it. Its line has the shapes of its parameters, the settings that differ from its
constructor's defaults, and the number of its parameters. A type with a shorter description of its shapes registers it:
`@shape.register(MyLayer)`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, singledispatch
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from minivit.device import array_module
from minivit.nn.attention import Attention
from minivit.nn.basic import Embedding, LayerNorm, Linear
from minivit.nn.convolution import Conv2d
from minivit.nn.kept_memory import kept_bytes
from minivit.nn.layer import Layer
from minivit.nn.lora import LoRALinear
from minivit.nn.map_norm import BatchNorm2d, GroupNorm
from minivit.nn.parameter import Buffer, Parameter
from minivit.nn.patch_embed import PatchProjection
from minivit.protocol import once

_WIDEST = 120  # characters of a line
_MOST_LINES = 100  # beyond, the inner parts are left out


class Shape(NamedTuple):
    """A layer's shapes in words.

    Attributes:
        words: such as "64 -> 192" and "bias". Layers with other words are not folded into one line.
        attributes: the attributes that these words describe.
    """

    words: tuple[str, ...]
    attributes: tuple[str, ...]


@singledispatch
def shape(layer: Layer) -> Shape:
    """The shapes of a layer: for a type that is not registered, those of its own parameters and buffers, by name."""
    return Shape((), ())


def _weights(words: str, layer: Any, *more: str) -> Shape:
    return Shape((words, *more, "bias" if layer.bias is not None else "no bias"), ("weight", "bias"))


@shape.register(Linear)
def _(layer: Linear) -> Shape:
    outputs, inputs = layer.weight.shape
    return _weights(f"{inputs} -> {outputs}", layer)


@shape.register(LoRALinear)
def _(layer: LoRALinear) -> Shape:
    outputs, inputs = layer.weight.shape
    words = _weights(f"{inputs} -> {outputs}", layer, f"rank {layer.rank}")
    exact = ("approximate",) if getattr(layer, "approximate", None) == "none" else ()
    return words._replace(attributes=(*words.attributes, "lora_a", "lora_b", *exact))


@shape.register(Conv2d)
def _(layer: Conv2d) -> Shape:
    outputs, inputs, *kernel = layer.weight.shape
    return _weights(f"{inputs * layer.groups} -> {outputs}", layer, f"kernel {_times(kernel)}")


@shape.register(PatchProjection)
def _(layer: PatchProjection) -> Shape:
    outputs, inputs, *patch = layer.weight.shape
    return _weights(f"{inputs} -> {outputs}", layer, f"patch {_times(patch)}")


@shape.register(LayerNorm)
@shape.register(GroupNorm)
@shape.register(BatchNorm2d)
def _(layer: LayerNorm | GroupNorm | BatchNorm2d) -> Shape:
    return Shape((str(layer.weight.size),), ("weight", "bias", "running_mean", "running_var"))


@shape.register(Embedding)
def _(layer: Embedding) -> Shape:
    return Shape(("{} rows of {}".format(*layer.weight.shape),), ("weight",))


@shape.register(Attention)
def _(layer: Attention) -> Shape:
    return Shape((str(layer.proj.weight.shape[0]), f"{layer.num_heads} heads"), ("num_heads",))


def _times(sizes: Any) -> str:
    return "x".join(map(str, sizes))


# --- the tree ---


def tree(layer: Layer) -> str:
    """A layer in one line, and its parts below it; consecutive equal parts share a line."""
    return without_errors(lambda: _tree(layer), f"{type(layer).__name__}(...)")


def _tree(layer: Layer) -> str:
    top = _Node.of(layer, "", {})
    first = next(iter(top.learned.values()), None)
    top.words += () if first is None else _dtype_and_device(first.data)
    depth = top.height
    while len(lines := list(_lines([top], depth=depth))) > _MOST_LINES and depth > 2:
        depth -= 1
    if len(lines) > _MOST_LINES:
        half = _MOST_LINES // 2
        lines[half:-half] = [f"  ... {len(lines) - 2 * half} more"]
    return "\n".join(lines)


@dataclass
class _Node:
    """A layer as it is printed.

    Attributes:
        kind: its class.
        words: its shapes.
        settings: its other attributes that are plain numbers, strings and the like.
        learned: its parameters and those of its parts, by id.
        parts: by name.
    """

    kind: type[Layer]
    words: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    learned: dict[int, Parameter] = field(default_factory=dict)
    parts: list[tuple[str, _Node]] = field(default_factory=list)

    @classmethod
    def of(cls, layer: Layer, name: str, met: dict[int, str]) -> _Node:
        """The tree below a layer; `met` has the names of layers that are in the tree already."""
        return without_errors(lambda: cls._of(layer, name, met), cls(type(layer), ("...",)))

    @classmethod
    def _of(cls, layer: Layer, name: str, met: dict[int, str]) -> _Node:
        if id(layer) in met:
            return cls(type(layer), (f"the same as {met[id(layer)]}",))
        met[id(layer)] = f"({name})" if name else "the root"
        own = {key: value for key, value in vars(layer).items() if isinstance(value, Buffer)}
        words, described = without_errors(lambda: shape(layer), Shape((), ()))
        words += tuple(f"{key} {value.shape}" for key, value in own.items() if key not in described)
        settings = {
            key: value for key, value in settings_of(layer).items() if key not in described and key not in _LAYERS
        }
        parts = [(key, cls.of(part, f"{name}.{key}".lstrip("."), met)) for key, part in layer.parts()]
        learned = {id(value): value for value in own.values() if isinstance(value, Parameter)}
        for _, part in parts:
            learned |= part.learned
        return cls(type(layer), words, settings, learned, parts)

    @cached_property
    def structure(self) -> Any:
        """A key, equal for layers that differ only in the values of their settings."""
        parts = tuple((name, part.structure) for name, part in self.parts)
        return self.kind, self.words, tuple(self.settings), self.size, parts

    @property
    def size(self) -> int:
        """The number of parameters."""
        return sum(param.size for param in self.learned.values())

    @property
    def height(self) -> int:
        return 1 + max((part.height for _, part in self.parts), default=0)


def _lines(nodes: list[_Node], label: str = "", indent: str = "", depth: int = 0) -> Iterator[str]:
    """The lines of a layer, or of several with one structure, down to parts of this depth."""
    first = nodes[0]
    pieces = [*first.words, *settings_text([node.settings for node in nodes], arguments_of(first.kind))]
    if first.size:
        pieces.append(f"{first.size:,} parameter{'s' if first.size > 1 else ''}")
    if depth == 1 and first.parts:
        pieces.append("...")
    yield _shortened(f"{indent}{label}{first.kind.__name__}", pieces)
    if depth == 1:
        return
    # of each part, those of all the nodes; equal parts in a row then come together
    parts = [(name, [node.parts[number][1] for node in nodes]) for number, (name, _) in enumerate(first.parts)]
    for _, group in groupby(parts, lambda part: (_list_of(part[0]), part[1][0].structure)):
        equal = list(group)
        name, last, count = equal[0][0], equal[-1][0].rpartition(".")[2], len(equal)
        label = f"({name}): " if count == 1 else f"({name}-{last}): {count} x "
        yield from _lines([node for _, several in equal for node in several], label, indent + "  ", depth - 1)


def _list_of(name: str) -> str:
    """The common part of the names of a list's items, "blocks." of "blocks.0"; any other name is itself."""
    head, dot, last = name.rpartition(".")
    return head + dot if last.isdigit() else name


def _shortened(kind: str, pieces: list[str]) -> str:
    """kind(pieces), with the middle pieces elided where the line would be too long."""
    line = f"{kind}({', '.join(pieces)})"
    keep = len(pieces) - 1
    while len(line) > _WIDEST and keep > 1:
        keep -= 1
        line = f"{kind}({', '.join([*pieces[:keep], '...', pieces[-1]])})"
    return line


def _dtype_and_device(data: Any) -> tuple[str, ...]:
    """A dtype other than float32, and a GPU."""
    dtype = () if data.dtype == np.float32 else (str(data.dtype),)
    return dtype if array_module(data) is np else (*dtype, "on GPU")


# --- settings ---

_LAYERS = vars(Layer).keys()  # attributes of every layer are not settings


def settings_of(thing: Any) -> dict[str, Any]:
    """The attributes of an object that are plain numbers, strings, None, or lists of them."""
    return {name: value for name, value in vars(thing).items() if name[:1] != "_" and is_plain(value)}


def is_plain(value: Any) -> bool:
    """Whether a value can be shown as a setting."""
    if isinstance(value, tuple | list):
        return all(map(is_plain, value))
    return value is None or isinstance(value, bool | int | float | str | np.number)


def arguments_of(kind: type[Any]) -> dict[str, Any]:
    """The arguments of a class and of its bases, with their defaults; those without have `inspect.Parameter.empty`."""
    found: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        if "__init__" not in vars(base):
            continue
        with suppress(TypeError, ValueError):  # a constructor that is no Python function
            found |= {each.name: each.default for each in inspect.signature(base).parameters.values()}
    return found


def settings_text(several: list[dict[str, Any]], arguments: dict[str, Any]) -> list[str]:
    """`name=value` of the settings that differ from the constructor's defaults.

    None is omitted for arguments without default; None, False and 0 for attributes that are not arguments.

    Args:
        several: the settings of several layers, shown together: "drop_path=0 to 0.1".
        arguments: as from `arguments_of`.
    """
    texts = []
    for name in several[0]:
        values, default = [settings[name] for settings in several], arguments.get(name)
        if not all(_is_usual(value, default) for value in values):
            texts.append(f"{name}={_together(values)}")
    return texts


def _is_usual(value: Any, default: Any) -> bool:
    if not is_plain(default):  # there is none
        return value is None
    return value == default or (_is_off(value) and _is_off(default))


def _is_off(value: Any) -> bool:
    return not any(value) if isinstance(value, tuple | list) else not value


def _together(values: list[Any]) -> str:
    distinct = list(dict.fromkeys(map(value_text, values)))
    if len(distinct) > 2 and all(isinstance(value, int | float) for value in values):
        return f"{value_text(min(values))} to {value_text(max(values))}"
    return " or ".join(distinct[:3]) + (" or ..." if len(distinct) > 3 else "")


def value_text(value: Any) -> str:
    """As in Python, with four digits of a fraction, and shortened where it is long."""
    if isinstance(value, float | np.floating):
        return f"{value:.4g}"
    if isinstance(value, tuple | list):
        text = ", ".join(map(value_text, value))
        text = f"({text},)" if len(value) == 1 else f"({text})"
    else:
        text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


# --- backward functions ---


def back_text(back: once) -> str:
    """Its layer, the memory that it holds, and whether it has run."""
    whose = f"backward of {back.name}" if back.name else "backward function"
    if back.spent:
        return f"<{whose}, spent>"
    return without_errors(lambda: f"<{whose}, holds {bytes_text(kept_bytes(back))}, not yet run>", f"<{whose}>")


def bytes_text(count: int) -> str:
    """A number of bytes in kB, MB or GB."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} byte{'' if count == 1 else 's'}"


def without_errors(text: Callable[[], Any], otherwise: Any) -> Any:
    """A debugger prints partly built objects: an error here would hide the original error."""
    try:
        return text()
    except Exception:
        return otherwise


# set here, because this file imports those of these classes
Layer.__repr__ = tree  # type: ignore[assignment]
once.__repr__ = back_text  # type: ignore[assignment]
