"""Published weights in: a file of any known source, or a published name, becomes a model.

`layouts/` has the names, `profiles.py` what else differs between projects. Next: `export.py`, the way out.
"""

from __future__ import annotations

import difflib
import inspect
import mmap
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from minivit.checkpoint import CheckpointError
from minivit.device import owner
from minivit.functional import pair
from minivit.models import MODELS, Model, configs
from minivit.models.options import patch_grid
from minivit.protocol import Array
from minivit.random import UNSET
from minivit.weights import architecture, hub
from minivit.weights.fit import HEADS, choose_classes, fit
from minivit.weights.profiles import PROFILES
from minivit.weights.read import read_weights
from minivit.weights.recognise import Recognised, identify, of_nobody, recognise
from minivit.weights.source import shown

StrPath = str | os.PathLike[str]


def load(model: Any, path: StrPath, *, strict: bool = True) -> Any:
    """Read a file's parameters into a model, cast to its dtype; returns the model.

    Args:
        model: any model or layer of minivit's.
        path: a file that minivit wrote, or one of timm, Hugging Face, torchvision, Microsoft, Google or WZMIAOMIAO.
        strict: names that are missing or too many are an error; with False they are left alone.

    Raises:
        CheckpointError: if the file is unreadable or does not fit; nothing is then changed.
    """
    found = identify(read_weights(path))
    if found.weights.arrays.keys() == model.state().keys():  # whoever wrote it, these are the model's own names
        found = replace(found, arrays=found.weights.arrays, unknown=[])
    _check(model, found, found.arrays, strict)
    model.load_state_dict(found.arrays, strict)
    return model


def from_pretrained(
    path: StrPath,
    *,
    num_classes: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    in_chans: int | None = None,
    classes: Sequence[int] | None = None,
    dtype: Any = None,
    profile: str | None = None,
    report: Callable[[str], None] = print,
    **overrides: Any,
) -> Model:
    """The model that a file holds: its class and size are read off the names and shapes, and config.json beside it.

    Args:
        path: a file, a folder that holds one, or a published name, which is downloaded once: "vit_tiny_patch16_224",
            one of `list_models()`, or "google/vit-base-patch16-224", a repository of the Hugging Face hub.
        num_classes: another number of classes starts its head at 0; 0 leaves the head out; None is the file's.
        img_size: another size resamples the table of positions.
        in_chans: other channels: 1 sums the kernels of red, green and blue.
        classes: keep these rows of the head, such as ImageNet's 1,000 among its 21,841 classes.
        dtype: "float32" or "float64"; None is float64 for a file of float64, else float32.
        profile: how the source computes, one of `PROFILES`; None is that of the source that was recognised.
        report: gets a line for each array that was changed to fit.
        overrides: other arguments of the class, such as window_size or drop_path_rate.

    Raises:
        CheckpointError: if the file is unreadable, of no known source, or makes no model; if a download fails.
        ValueError: for an unknown profile or argument.
    """
    if profile not in (None, *PROFILES):
        raise ValueError(f"profile={profile!r}: choose one of {', '.join(map(repr, PROFILES))}")
    named = isinstance(path, str) and not os.path.exists(path)
    found = recognise(hub.fetch(str(path), report=report) if named else path)
    asked = {"num_classes": num_classes, "img_size": img_size, "in_chans": in_chans}
    asked = {name: value for name, value in asked.items() if value is not None} | overrides
    plan = plan_of(found, profile, img_size)
    _refuse_unknown(plan.kind, asked)
    wide = any(array.dtype == np.float64 for array in found.arrays.values())
    try:
        arguments = {**plan.arguments, **asked, **_trained_windows(plan, asked)}
        arrays = found.arrays if classes is None else choose_classes(found.arrays, classes)
        if classes is not None and num_classes is None:
            arguments["num_classes"] = len(classes)
        model = plan.kind(**arguments, dtype=dtype or ("float64" if wide else "float32"), seed=UNSET)
        arrays, said = fit(arrays, model, plan.arguments, PROFILES[plan.profile])
    except _NO_MODEL as error:
        memory = "it needs more memory than there is: check where it came from"
        why = memory if isinstance(error, MemoryError) else error
        raise CheckpointError(f"{found.path}, a {found.model} of {found.source}: {why}") from None
    if model.num_classes == 0:
        arrays = {name: array for name, array in arrays.items() if not name.startswith(HEADS)}
    _check(model, found, arrays, strict=True)
    for line in said:
        report(f"minivit: {line}")
    found.weights.arrays.clear()  # so that each array is freed as soon as the model has it, or a copy of it
    found.arrays.clear()
    adoptable = _adoptable(arrays, model.dtype)
    for name, param in model.state().items():
        array = arrays.pop(name)
        param.swap(_writeable(array) if name in adoptable else np.array(array, param.data.dtype, order="C"))
        del array
    return model


# what a file can bring about whose names are right and whose shapes or settings make no sense
_NO_MODEL = (ValueError, TypeError, KeyError, IndexError, ZeroDivisionError, OverflowError, AttributeError, MemoryError)


def _adoptable(arrays: dict[str, Array], dtype: Any) -> set[str]:
    """The names whose arrays can serve as parameters as they are, so that a large model is in memory once.

    They must be of the model's dtype, lie in one piece, share no number with another, and not keep much more memory
    alive than they need.
    """
    spans = []
    for name, array in arrays.items():
        base = owner(array).base
        ours = base is None or isinstance(getattr(base, "obj", None), mmap.mmap)  # see `fresh_memory`
        if ours and array.dtype == dtype and array.flags.c_contiguous and array.flags.aligned:
            start = array.__array_interface__["data"][0]
            spans.append((start, start + array.nbytes, name))
    spans.sort()
    shared = {name for one, other in zip(spans, spans[1:]) if one[1] > other[0] for name in (one[2], other[2])}
    used: Counter[int] = Counter()
    for _, _, name in spans:
        used[id(owner(arrays[name]))] += arrays[name].nbytes
    return {
        name
        for _, _, name in spans
        if name not in shared and 2 * used[id(owner(arrays[name]))] > owner(arrays[name]).nbytes
    }


def _writeable(array: Array) -> Array:
    """The array, which is ours alone, so that it may be written to."""
    owner(array).flags.writeable = True
    array.flags.writeable = True
    return array


@dataclass(frozen=True)
class Plan:
    """The model that a file makes: its class, its arguments as they were stored, and how its source computes."""

    kind: Any
    arguments: dict[str, Any]
    profile: str


def plan_of(found: Recognised, profile: str | None = None, image: Any = None) -> Plan:
    """Which model a file makes.

    Args:
        profile: None is that of the source.
        image: the size that was asked for, which decides where nothing else tells a grid that is not square.

    Raises:
        CheckpointError: if the arrays make no model.
    """
    kind = MODELS[found.model]
    try:
        if found.layout is None:
            config = found.weights.content["config"]
            return Plan(kind, {name: config[name] for name in config if name != "dtype"}, profile or "timm")
        chosen = profile or found.source
        told = architecture.arguments(found.model, found.arrays, found.weights.config, found.buffers, image)
        return Plan(kind, {**PROFILES[chosen].settings(found.model), **told}, chosen)
    except _NO_MODEL as error:
        raise CheckpointError(
            f"{found.path} looks like a {found.model} of {found.source}, but lacks what makes one: {error}"
        ) from None


def _refuse_unknown(kind: Any, asked: dict[str, Any]) -> None:
    known = list(inspect.signature(kind).parameters)
    for name in asked:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
            hint = f"did you mean {', '.join(near)}?" if near else f"it has {', '.join(known)}"
            raise ValueError(f"{kind.__name__} has no argument {name!r}: {hint}")


def _trained_windows(plan: Plan, asked: dict[str, Any]) -> dict[str, Any]:
    """Swin v2 in other windows: its MLP has to know those that it was trained in."""
    told = "pretrained_window_sizes" in asked or not {"window_size", "img_size"} & {*asked}
    if plan.kind is not MODELS["SwinV2"] or told:
        return {}
    before, after = _windows(plan, {}), _windows(plan, asked)
    stored = plan.arguments.get("pretrained_window_sizes") or (0,) * len(before)
    windows = (each if any(pair(each)) or a == b else a for each, a, b in zip(stored, before, after))
    return {"pretrained_window_sizes": tuple(windows)}


def _windows(plan: Plan, asked: dict[str, Any]) -> list[tuple[int, int]]:
    """The window of each stage: a stage whose map is smaller shrinks it."""
    defaults = {name: each.default for name, each in inspect.signature(plan.kind).parameters.items()}
    config = {**defaults, **plan.arguments, **asked}
    window, grid = pair(config["window_size"]), patch_grid(config)
    found = []
    for stage in range(len(config["depths"])):
        rows, columns = (-(-side // 2**stage) for side in grid)
        shrinks = config["covered"] in ("shrink", "shrink_both")
        found.append((min(window[0], rows), min(window[1], columns)) if shrinks else window)
    return found


def _check(model: Any, found: Recognised, arrays: dict[str, Array], strict: bool) -> None:
    """Refuse arrays that do not fit, with the likely cause, before anything is changed."""
    params = model.state()
    missing = [name for name in params if name not in arrays] if strict else []
    unexpected = found.unknown + [name for name in arrays if name not in params] if strict else []
    common = [name for name in params if name in arrays]
    misshapen = [name for name in common if tuple(arrays[name].shape) != params[name].shape]
    odd = [name for name in common if arrays[name].dtype.kind not in "fiu"]
    faults = []
    if missing:
        faults.append(f"{len(missing)} of {len(params)} parameters are missing, first {shown(missing[0])}")
    if unexpected:
        faults.append(f"{len(unexpected)} names are not the model's, first {shown(unexpected[0])}")
    if misshapen:
        name, more = misshapen[0], f" and {len(misshapen) - 1} more" if len(misshapen) > 1 else ""
        faults.append(f"{shown(name)}{more}: expected shape {params[name].shape}, the file has {arrays[name].shape}")
    if odd:
        faults.append(f"{shown(odd[0])} holds {arrays[odd[0]].dtype}, expected numbers")
    if faults:
        cause = _cause(model, found)
        raise CheckpointError(f"{found.path} does not fit this {type(model).__name__}: {'; '.join(faults)}{cause}")


def _cause(model: Any, found: Recognised) -> str:
    """What the file is, where that is known, and by which arguments of the class it differs from the model."""
    if found.layout is None and found.weights.content.get("model") not in MODELS:
        return "" if found.weights.content else f"; its names are {of_nobody()}"
    try:
        plan = plan_of(found)
    except CheckpointError:
        return f" (it is a {found.model} of {found.source})"
    said = f". This is a {found.source} checkpoint of a {plan.kind.__name__}{_name(plan)}"
    if plan.kind is not type(model):
        return f"{said}: load it with from_pretrained, or build that class"
    config = model.config
    differs = [
        f"{name}={plan.arguments[name]!r} in the file, {config[name]!r} in the model"
        for name in _SHAPES
        if name in plan.arguments and name in config and not _same(plan.arguments[name], config[name])
    ]
    return f"{said}; {', '.join(differs)}" if differs else said


# arguments that show in a model's arrays, those of the encoder first
_SHAPES = (
    *("embed_dim", "depth", "depths", "num_heads", "mlp_ratio", "qkv_bias", "patch_size", "in_chans", "num_classes"),
    *("resnet_layers", "resnet_width"),
    *("img_size", "window_size", "class_token", "distilled", "global_pool", "fc_norm", "pos_embed", "ape"),
    *("representation_size", "patch_norm"),
)


def _same(one: Any, other: Any) -> bool:
    return (tuple(one) if isinstance(one, list) else one) == (tuple(other) if isinstance(other, list) else other)


def _name(plan: Plan) -> str:
    """The published name of this size, if it has one."""
    for name, config in configs.published():
        shared = [key for key in _SIZE if key in config and key in plan.arguments]
        fits = "embed_dim" in shared and all(_same(config[key], plan.arguments[key]) for key in shared)
        if fits and ("depths" in config) == ("depths" in plan.arguments):
            return f" ({name})"
    return ""


_SIZE = ("embed_dim", "depth", "depths", "patch_size", "window_size", "resnet_layers")
