"""The source of a file: it is recognized by its names, which are translated to ours."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minivit.io.safetensors import CheckpointError
from minivit.io.text import quoted
from minivit.io.weights import Weights
from minivit.models import MODELS
from minivit.pretrained.layouts import BUFFERS, LAYOUTS, Layout
from minivit.pretrained.layouts.microsoft import as_layer_scale
from minivit.pretrained.open_clip import with_open_clip_config
from minivit.pretrained.renaming import check_same, translate
from minivit.protocol import Array

StrPath = str | os.PathLike[str]


@dataclass(frozen=True)
class Recognized:
    """A file's arrays under our names.

    Attributes:
        weights: as they were read.
        path: of the file.
        source: the project that wrote it.
        model: the name of the model's class; "" if unknown.
        layout: the source's; None for unknown names, and for a file of ours.
        arrays: the learned ones, under our names.
        buffers: arrays that are not learned but informative, under our names.
        unknown: names that the source's table lacks.
        left_out: names of arrays that are not part of the model, such as a loss's weights or a counter.
        arguments: arguments of the class that the source's arrays show, and ours do not.
    """

    weights: Weights = field(repr=False)
    path: Path
    source: str
    model: str
    layout: Layout | None = field(repr=False)
    arrays: dict[str, Array] = field(repr=False)
    buffers: dict[str, Array] = field(repr=False)
    unknown: list[str]
    left_out: list[str]
    arguments: dict[str, Any] = field(default_factory=dict)


def recognize(weights: Weights) -> Recognized:
    """Find the source of arrays by their names, and translate these to ours.

    Raises:
        CheckpointError: if no known source uses these names.
    """
    found = identify(weights)
    content = weights.content
    if "lora" in content:
        raise CheckpointError(
            f"{found.path} holds updates of low rank (LoRA) and no model: load the weights that they were trained on, "
            "and then minivit.load_lora(model, path)"
        )
    if found.layout or (content and found.model in MODELS):
        return found
    if content:
        raise CheckpointError(f"{found.path} does not say which model it holds: build the model and use minivit.load")
    names = ", ".join(map(quoted, sorted(found.arrays)[:3]))
    raise CheckpointError(
        f"{found.path} has {len(found.arrays)} arrays such as {names}, which are {unknown_names()}, "
        "so it does not say which model it holds: build the model and use minivit.load, or rename the "
        "arrays to timm's names, see docs/published_weights.md"
    )


def unknown_names() -> str:
    """A description of names that are in no table."""
    return f"no ViT or Swin of a known source ({', '.join(sorted({layout.source for layout in LAYOUTS}))})"


def identify(weights: Weights) -> Recognized:
    """The result of the names; without a layout, the arrays are unchanged.

    Raises:
        CheckpointError: for a file with updates of weights, and one with several models.
    """
    if not weights.content:
        _check_no_adapters(weights)
        for layout in LAYOUTS:
            try:
                bare = layout.bare(weights.arrays)
            except CheckpointError as error:
                raise CheckpointError(f"{weights.path}: {error}") from None
            if bare:
                return _translated(weights, layout, bare)
    name = weights.content.get("model")
    model = name if isinstance(name, str) else ""
    return Recognized(weights, weights.path, "minivit", model, None, weights.arrays, {}, [], [])


# updates of low rank in peft, loralib, kohya and LyCORIS, and other parts added to the blocks of a frozen model
_LORA = re.compile(r"(?:.*[._])?(?:lora_[A-Za-z]\w*|lora_(?:down|up)|lokr_\w+|hada_\w+|vera_\w+|oft_[rR])(?:\..+)?")
_ADAPTER = re.compile(r".*\.\d+\.(?:.*\.)?(?:adapter\w*|adaptmlp|ia3_l|ssf_\w+)(?:\..+)?")


def _check_no_adapters(weights: Weights) -> None:
    """Refuse the files of adapters by their kind.

    Raises:
        CheckpointError: naming an array.
    """
    for kind, pattern in (("updates of low rank (LoRA)", _LORA), ("an adapter", _ADAPTER)):
        name = next((name for name in weights.arrays if pattern.fullmatch(name)), None)
        if name is not None:
            raise CheckpointError(
                f"{weights.path} holds {kind} of another program, such as {quoted(name)}: merge it into the weights "
                "there, as peft's merge_and_unload does, and save the model"
            )


def _translated(weights: Weights, layout: Layout, bare: dict[str, str]) -> Recognized:
    """The arrays under our names; a classifier may lack the prefix of the other names."""
    if layout.source == "openclip":
        weights = with_open_clip_config(weights)
    names = {**_heads_beside(weights.arrays, bare), **bare}
    names = {name: ours for name, ours in names.items() if not layout.leaves_out(name, bare)}
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    if twice:
        both = " and ".join(quoted(name) for name in names if names[name] == twice[0])
        raise CheckpointError(f"{weights.path} has {both}, which are one array of the model: remove one of them")
    arrays = {names[name]: array for name, array in weights.arrays.items() if name in names}
    left_out = [name for name in weights.arrays if name not in names]
    try:
        _check_factors(arrays)
        arrays = _with_usual_head(layout.prepare(arrays), layout.head)
        arguments = layout.arguments(arrays)
        ours, unknown = translate(layout.rules, arrays, lambda name: 0) if layout.rules else (dict(arrays), list[str]())
    except CheckpointError as error:
        raise CheckpointError(f"{weights.path}: {error}") from None
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(
            f"{weights.path} has the names of {layout.source}'s {layout.model}, but arrays of other shapes: {error}"
        ) from None
    buffers = {name: ours.pop(name) for name in list(ours) if re.fullmatch(BUFFERS, name)}
    ignored = re.compile("|".join(layout.ignored) or "(?!)")
    ours = {name: array for name, array in ours.items() if not ignored.fullmatch(name)}
    unknown = [name for name in unknown if not ignored.fullmatch(name)]
    return Recognized(
        weights, weights.path, layout.source, layout.model, layout, ours, buffers, unknown, left_out, arguments
    )


# a classifier by which a fine-tuning replaced the source's
_HEAD = re.compile(r"((?:heads?|classifier|fc)(?:\.(?:\d+|fc|head|mlp\.\d+))*)\.weight")


def _heads_beside(arrays: Collection[str], bare: dict[str, str]) -> dict[str, str]:
    """The names of a classifier outside of the model's prefix "a.b.", without it, "a." or nothing -> without these."""
    prefix = next((name.removesuffix(inner) for name, inner in bare.items()), "")
    outer = [prefix[:end] for end in range(len(prefix) + 1) if not end or prefix[end - 1] == "."]
    names = {name: name.removeprefix(part) for part in outer for name in arrays if name.startswith(part)}
    return {name: head for name, head in names.items() if name not in bare and _in_head(head)}


def _check_factors(arrays: dict[str, Array]) -> None:
    """Refuse a LayerScale under both names of timm's ViTs, of which one would be read."""
    for name, array in arrays.items():
        (renamed,) = as_layer_scale({name: array})
        if renamed != name and renamed in arrays:
            check_same(name, renamed, arrays[renamed], array)


def _in_head(name: str) -> bool:
    return bool(_HEAD.fullmatch(re.sub(r"\.bias$", ".weight", name)))


def _with_usual_head(arrays: dict[str, Array], head: str) -> dict[str, Array]:
    """The arrays with the classifier under the source's own name, if the file has one linear layer under another."""
    heads = [found[1] for name in arrays if (found := _HEAD.fullmatch(name))]
    if len(heads) != 1 or heads[0] == head:
        return arrays  # several make more than a linear layer: their names are refused as unknown
    renamed = {f"{heads[0]}.{part}": f"{head}.{part}" for part in ("weight", "bias")}
    return {renamed.get(name, name): array for name, array in arrays.items()}
