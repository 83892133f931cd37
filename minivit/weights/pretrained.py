"""Published weights in and out: a file of any known source becomes a model, and a model a file of any known source.

The source is recognised by its names; `layouts.py` has the names, `profiles.py` what else differs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minivit.backend import to_numpy
from minivit.checkpoint import MODELS, CheckpointError, save_arrays
from minivit.models import Model
from minivit.nn.layer import Layer
from minivit.protocol import Array
from minivit.weights import architecture
from minivit.weights.fit import fit
from minivit.weights.layouts import LAYOUTS, Layout
from minivit.weights.profiles import PROFILES
from minivit.weights.read import Weights, read_weights
from minivit.weights.rules import translate

StrPath = str | os.PathLike[str]


@dataclass(frozen=True)
class Recognised:
    """A file's arrays under our names.

    Attributes:
        weights: as they were read.
        layout: the source's; None for a file of ours.
        arrays: under our names.
        buffers: shapes of what is not learned, under our names as far as they have any.
        unknown: names that the source's table does not hold.
    """

    weights: Weights
    layout: Layout | None
    arrays: dict[str, Array]
    buffers: dict[str, tuple[int, ...]]
    unknown: list[str]


def recognise(path: StrPath) -> Recognised:
    """Read a file, find its source by its names, and translate them into ours.

    Raises:
        CheckpointError: if the file cannot be read, or no known source uses these names.
    """
    weights = read_weights(path)
    if weights.content.get("model") in MODELS:
        return Recognised(weights, None, weights.arrays, {}, [])
    for layout in LAYOUTS:
        if layout.recognises(weights.arrays) or any(
            layout.recognises(_cut(weights.arrays, p)) for p in layout.prefixes
        ):
            return _translated(weights, layout)
    names = ", ".join(map(repr, sorted(weights.arrays)[:3]))
    sources = ", ".join(sorted({layout.source for layout in LAYOUTS}))
    raise CheckpointError(
        f"{weights.path} has {len(weights.arrays)} arrays such as {names}, which are no ViT or Swin of a known source "
        f"({sources}): rename them to timm's names, see docs/index.md"
    )


def _translated(weights: Weights, layout: Layout) -> Recognised:
    prefix = max(layout.prefixes, key=lambda p: sum(name.startswith(p) for name in weights.arrays) if p else 0.5)
    named = _cut(weights.arrays, prefix)
    ignored = [name for name in named if any(re.fullmatch(pattern, name) for pattern in layout.ignored)]
    kept = {name: array for name, array in named.items() if name not in ignored}
    if layout.rules:
        arrays, unknown = translate(layout.rules, kept, lambda name: 0)
    else:
        arrays, unknown = kept, []
    return Recognised(weights, layout, arrays, {name: named[name].shape for name in ignored}, unknown)


def _cut(arrays: dict[str, Array], prefix: str) -> dict[str, Array]:
    """The names without the prefix; those that lack it (a classifier beside the body) stay as they are."""
    return {name.removeprefix(prefix): array for name, array in arrays.items()}


def load(model: Any, path: StrPath, *, strict: bool = True) -> Any:
    """Read a file's parameters into a model, cast to its dtype; returns the model.

    Args:
        model: any model of minivit's.
        path: a file that minivit wrote, or one of timm, Hugging Face, torchvision, Microsoft or Google.
        strict: names that are missing or too many are an error; with False they are left alone.

    Raises:
        CheckpointError: if the file is unreadable or does not fit; nothing is then changed.
    """
    found = recognise(path)
    _fill(model, found, found.arrays, strict)
    return model


def from_pretrained(
    path: StrPath,
    *,
    num_classes: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    in_chans: int | None = None,
    dtype: Any = "float32",
    profile: str | None = None,
    report: Callable[[str], None] = print,
    **overrides: Any,
) -> Model:
    """The model that a file holds: its class and size are read off the names and shapes, and config.json beside it.

    Args:
        path: a file or a folder that holds one; see `load`.
        num_classes: another number of classes starts its head anew; 0 leaves the head out; None is the file's.
        img_size: another size resamples the table of positions.
        in_chans: other channels: 1 sums the kernels of red, green and blue.
        dtype: "float32" or "float64".
        profile: how the source computes, one of `PROFILES`; None is that of the source that was recognised.
        report: gets a line for each array that was changed to fit.
        overrides: other arguments of the class, such as window_size or drop_path_rate.

    Raises:
        CheckpointError: if the file is unreadable, of no known source, or makes no model.
        ValueError: for an unknown profile or argument.
    """
    found = recognise(path)
    kind, arguments, chosen = _plan(found, profile)
    asked = {"num_classes": num_classes, "img_size": img_size, "in_chans": in_chans}
    arguments |= {name: value for name, value in asked.items() if value is not None} | overrides
    build: Any = kind
    model: Model = build(**arguments, dtype=dtype)
    arrays, said = fit(found.arrays, model, PROFILES[chosen].resize)
    if num_classes == 0:
        arrays = {name: array for name, array in arrays.items() if not name.startswith(("head.", "head_dist."))}
    for line in said:
        report(f"minivit: {line}")
    _fill(model, found, arrays, strict=True)
    return model


def _plan(found: Recognised, profile: str | None) -> tuple[type[Model], dict[str, Any], str]:
    """The class, its arguments, and the profile's name."""
    if found.layout is None:
        content = found.weights.content
        config = {name: value for name, value in content["config"].items() if name != "dtype"}
        return MODELS[content["model"]], config, profile or "timm"
    chosen = profile or found.layout.source
    if chosen not in PROFILES:
        raise ValueError(f"profile={profile!r}: choose one of {', '.join(map(repr, PROFILES))}")
    model, config = found.layout.model, found.weights.config
    shapes = {name: tuple(array.shape) for name, array in found.arrays.items()}
    try:
        arguments = architecture.arguments(model, shapes, config, found.buffers)
    except (KeyError, IndexError, TypeError, ZeroDivisionError, ValueError) as error:
        raise CheckpointError(
            f"{found.weights.path} looks like a {model} of {found.layout.source}, but lacks what makes one: {error}"
        ) from None
    settings = PROFILES[chosen].vit if model == "ViT" else PROFILES[chosen].swin
    told = {"norm_eps": config["layer_norm_eps"]} if "layer_norm_eps" in config else {}
    return MODELS[model], {**arguments, **settings, **told}, chosen


def _fill(model: Any, found: Recognised, arrays: dict[str, Array], strict: bool) -> None:
    path, source = found.weights.path, found.layout.source if found.layout else "minivit"
    try:
        if strict and found.unknown:
            raise ValueError(f"{len(found.unknown)} names are none of {source}'s, first {found.unknown[0]!r}")
        model.load_state_dict(arrays, strict)
    except ValueError as error:
        hint = f" (it is a {found.layout.model} of {source})" if found.layout else ""
        raise CheckpointError(f"{path} does not fit this {type(model).__name__}{hint}: {error}") from None


def export(model: Layer, path: StrPath, layout: str = "timm") -> None:
    """Write a model's parameters as another project names them.

    Args:
        model: a ViT, Swin or SwinV2.
        path: a .safetensors file, or .npz for layout "google".
        layout: "timm" (the names are ours), "huggingface", "torchvision", "microsoft" or "google".

    Raises:
        ValueError: if that project has no such model.
    """
    kind = type(model).__name__
    table = next((each for each in LAYOUTS if (each.source, each.model) == (layout, kind)), None)
    if table is None:
        known = ", ".join(sorted({each.source for each in LAYOUTS if each.model == kind}))
        raise ValueError(f"layout={layout!r} has no {kind}: choose one of {known}")
    arrays = {name: to_numpy(param.data) for name, param in model.parameters().items()}
    if table.rules:
        heads = getattr(model, "config", {}).get("num_heads", 0)
        arrays, unknown = translate(table.rules, arrays, lambda name: heads, out=True)
        if unknown:
            raise ValueError(f"{layout} has no name for {unknown[0]!r} ({len(unknown)} such): export it as 'timm'")
    save_arrays(Path(path), arrays, {})
