"""A model's parameters to a file and back. Arrays that do not fit are refused with the likely cause."""

from __future__ import annotations

import mmap
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from minivit.device import owner
from minivit.io.safetensors import CheckpointError, save_arrays
from minivit.io.text import quoted
from minivit.io.weights import read_weights
from minivit.models import MODELS, configs
from minivit.models.lora import check_without
from minivit.models.options import stage_windows
from minivit.nn.layer import Layer, check_layer
from minivit.pretrained.config_json import options_of
from minivit.pretrained.expressible import ANYWHERE, SIZES, idle
from minivit.pretrained.geometry import table_of
from minivit.pretrained.plan import Plan, plan_of
from minivit.pretrained.recognition import Recognized, identify, unknown_names
from minivit.protocol import Array
from minivit.sizes import pair

StrPath = str | os.PathLike[str]


def save(model: Layer, path: str | Path) -> None:
    """Write a model's parameters, under timm's names, and its configuration to a safetensors file."""
    check_layer("save(model, path)", model)
    check_without("save(model, path)", model)
    content = {"model": type(model).__name__, "config": getattr(model, "config", {})}
    save_arrays(path, {name: param.data for name, param in model.state().items()}, content)


def load(model: Any, path: StrPath, *, strict: bool = True) -> Any:
    """Read a file's parameters into a model, cast to its dtype; returns the model.

    Args:
        model: any model or layer of minivit's.
        path: a file that minivit wrote, or one of timm, Hugging Face, torchvision, Microsoft, Google or WZMIAOMIAO.
        strict: missing or unexpected names are an error; with False they are ignored.

    Raises:
        CheckpointError: if the file is unreadable or does not fit, even where a table of another grid or window, or
            a projection of other heads, has the model's shape, and if its configuration says a setting that the model
            has otherwise, such as another GELU; the model is then unchanged.
    """
    found = identify(read_weights(path))
    if found.weights.arrays.keys() == model.state().keys():  # these are the model's own names
        found = replace(found, arrays=found.weights.arrays, unknown=[])
    check_fit(model, found, found.arrays, strict)
    _check_geometry(model, found)
    model.load_state_dict(found.arrays, strict)
    return model


# arguments that may be missing in a file; the model's are used
_OPEN = ("img_size", "window_size", "pretrained_window_sizes", "num_heads", "gelu", "post_norm")


def _check_geometry(model: Any, found: Recognized) -> None:
    """Refuse other heads or windows, and tables of another grid or window with as many entries as the model's."""
    if type(model) is not MODELS.get(found.model):
        return
    sizes: dict[str, Any] = {name: model.config[name] for name in _OPEN if name in model.config}
    _check_said(model, found)
    try:
        stored = plan_of(found, None, sizes).stored
    except CheckpointError:  # whatever the file lacks, the arrays have the model's shapes
        return
    for name, old, new in _hidden_sizes(found, stored, model.config):
        if old != new:
            raise CheckpointError(
                f"{found.path} does not fit this {found.model}, though its arrays have the model's shapes: "
                f"{name}={old!r} in the file, {new!r} in the model. Build the model with the file's"
            )
    for name in [name for name in model.state() if name in found.arrays]:
        old, new = table_of(name, stored), table_of(name, model.config)
        if old and new and old != new:
            raise CheckpointError(
                f"{found.path} does not fit this {found.model}: {quoted(name)} is of a {old}, the model's of a {new}. "
                "from_pretrained with the model's img_size and window_size resamples it; if the file is of the model's "
                "own, keep such a model with minivit.save, which stores its sizes"
            )


def _check_said(model: Any, found: Recognized) -> None:
    """Refuse a file whose configuration says a setting that the model has otherwise, with an effect on its logits."""
    if found.layout is None:
        config = found.weights.content.get("config")
        where, said = "the file", config if isinstance(config, dict) else {}
    else:
        try:
            where, said = "config.json", options_of(found.weights.config, found.model)
        except ValueError as error:
            raise CheckpointError(f"{found.path}: {error}") from None
    unseen = idle(model.config, {**model.config, **said}) | ANYWHERE | SIZES | _SHAPED
    differ = [
        name
        for name, value in model.config.items()
        if name not in unseen and _plain(said.get(name, value)) != _plain(value)
    ]
    if differ:
        theirs = ", ".join(f"{name}={said[name]!r:.60}" for name in differ)
        ours = ", ".join(f"{name}={model.config[name]!r}" for name in differ)
        raise CheckpointError(
            f"{found.path} does not fit this {found.model}, though its arrays have the model's shapes: {where} says "
            f"{theirs}, and the model has {ours}: build the model with {theirs}, or use from_pretrained"
        )


# what the arrays show, or the initial value of what they hold
_SHAPED = {"init_values", "reg_tokens", "class_token", "distilled", "representation_size", "qkv_bias"}


def _hidden_sizes(found: Recognized, stored: dict[str, Any], config: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """(name, the file's, the model's) of sizes that the weights depend on and that their shapes do not show."""
    sizes = [("num_heads", *(_plain(each["num_heads"]) for each in (stored, config)))]
    # the positions of a Swin v2 are scaled by the windows of its training
    said = (
        found.layout is None or found.weights.config or any("relative_coords_table" in name for name in found.buffers)
    )
    if said and "pretrained_window_sizes" in config:
        sizes.append(("pretrained_window_sizes", *(_scaled_by(each) for each in (stored, config))))
    return sizes


def _scaled_by(config: dict[str, Any]) -> tuple[Any, ...]:
    """The window of each stage's training; 0 stands for the stage's own."""
    own = stage_windows(config)
    trained = config["pretrained_window_sizes"] or (0,) * len(own)
    return tuple(pair(each) if any(pair(each)) else window for each, window in zip(trained, own))


def _plain(value: Any) -> Any:
    """Tuples for lists, as which a file stores them."""
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


def adopt(model: Any, arrays: dict[str, Array]) -> None:
    """Give a new model its arrays and empty `arrays`; an array becomes a parameter without a copy where possible."""
    adoptable = _adoptable(arrays, model.dtype)
    for name, param in model.state().items():
        array = arrays.pop(name)
        param.swap(_writeable(array) if name in adoptable else np.array(array, param.data.dtype, order="C"))
        del array  # so that it is freed once the model has a copy


def _adoptable(arrays: dict[str, Array], dtype: Any) -> set[str]:
    """The names of arrays that can become parameters without a copy, so that a large model is in memory once.

    They must have the model's dtype, be contiguous, overlap no other array, and not keep much more memory alive than
    they need.
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
    """The array, which no other code holds, made writeable."""
    owner(array).flags.writeable = True
    array.flags.writeable = True
    return array


def check_fit(model: Any, found: Recognized, arrays: dict[str, Array], strict: bool) -> None:
    """Refuse arrays that do not fit, with the likely cause, before the model is changed."""
    params = model.state()
    missing = [name for name in params if name not in arrays] if strict else []
    unexpected = found.unknown + [name for name in arrays if name not in params] if strict else []
    common = [name for name in params if name in arrays]
    misshapen = [name for name in common if tuple(arrays[name].shape) != params[name].shape]
    odd = [name for name in common if arrays[name].dtype.kind not in "fiu"]
    whole = [name for name in common if arrays[name].dtype.kind in "iu"]
    faults = []
    if missing:
        faults.append(f"{len(missing)} of {len(params)} parameters are missing, first {quoted(missing[0])}")
    if unexpected:
        faults.append(f"{len(unexpected)} names are not the model's, first {quoted(unexpected[0])}")
    if misshapen:
        name, more = misshapen[0], f" and {len(misshapen) - 1} more" if len(misshapen) > 1 else ""
        faults.append(f"{quoted(name)}{more}: expected shape {params[name].shape}, the file has {arrays[name].shape}")
    if odd:
        faults.append(f"{quoted(odd[0])} holds {arrays[odd[0]].dtype}, expected numbers")
    if whole:
        kind = arrays[whole[0]].dtype
        what = "quantized weights without their scales" if kind.itemsize == 1 else "integers, which no weights are"
        faults.append(f"{quoted(whole[0])} holds {kind}, {what}: use a file of floats")
    if faults:
        cause = _cause(model, found)
        raise CheckpointError(f"{found.path} does not fit this {type(model).__name__}: {'; '.join(faults)}{cause}")


def _cause(model: Any, found: Recognized) -> str:
    """The kind of file, if known, and the arguments in which it differs from the model."""
    if found.layout is None and found.model not in MODELS:
        return "" if found.weights.content else f"; its names are {unknown_names()}"
    try:
        plan = plan_of(found)
    except CheckpointError:
        return f" (it is a {found.model} of {found.source})"
    cause = f". This is a {found.source} checkpoint of a {plan.kind.__name__}{_name(plan)}"
    if plan.kind is not type(model):
        return f"{cause}: load it with from_pretrained, or build that class"
    config = model.config
    differs = [
        f"{name}={plan.arguments[name]!r} in the file, {config[name]!r} in the model"
        for name in _SHAPES
        if name in plan.arguments and name in config and not _same(plan.arguments[name], config[name])
    ]
    return f"{cause}; {', '.join(differs)}" if differs else cause


# arguments that determine shapes, those of the encoder first
_SHAPES = (
    *("embed_dim", "depth", "depths", "num_heads", "mlp_ratio", "qkv_bias", "patch_size", "in_chans", "num_classes"),
    *("resnet_layers", "resnet_width"),
    *("img_size", "window_size", "class_token", "distilled", "global_pool", "fc_norm", "pos_embed", "ape"),
    *("representation_size", "patch_norm"),
)


def _same(one: Any, other: Any) -> bool:
    return bool(_plain(one) == _plain(other))


def _name(plan: Plan) -> str:
    """The published name of this size, if there is one."""
    for name, config in configs.published():
        shared = [key for key in _SIZE if key in config and key in plan.arguments]
        fits = "embed_dim" in shared and all(_same(config[key], plan.arguments[key]) for key in shared)
        if fits and ("depths" in config) == ("depths" in plan.arguments):
            return f" ({name})"
    return ""


_SIZE = ("embed_dim", "depth", "depths", "patch_size", "window_size", "resnet_layers")
