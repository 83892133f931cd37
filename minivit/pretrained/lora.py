"""Updates of low rank as a small file of their own, beside the weights that they belong to."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from minivit.device import to_numpy
from minivit.io.safetensors import CheckpointError, load_arrays, save_arrays
from minivit.io.text import quoted
from minivit.models import Model
from minivit.models.lora import check_without, head_names, lora, lora_layers, lora_parameters
from minivit.nn.layer import check_layer
from minivit.nn.parameter import Parameter
from minivit.protocol import Array

# arguments that change neither the frozen weights nor what the model computes for inference
_FREE = ("num_classes", "dtype", "drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate")


def save_lora(model: Model, path: str | os.PathLike[str]) -> None:
    """Write the updates of low rank and the classifier to a safetensors file, without the frozen weights.

    The file also has the rank, alpha and targets, the model's class and configuration, and a SHA-256 of its frozen
    weights (in float32), by which `load_lora` refuses it for others.

    Args:
        model: changed by `minivit.lora`, and not merged yet.
        path: the file.

    Raises:
        ValueError: for a model without updates.
    """
    check_layer("save_lora(model, path)", model)
    layers = [(name, getattr(owner, name)) for owner, name in lora_layers(model)]
    if not layers:
        raise ValueError("the model has no updates of low rank: minivit.lora(model) makes them, before the training")
    kinds = {(layer.rank, layer.alpha) for _, layer in layers}
    if len(kinds) > 1:
        raise ValueError(f"the updates have several ranks and alphas, {sorted(kinds)}: a file has one of each")
    ((rank, alpha),) = kinds
    settings = {"rank": rank, "alpha": alpha, "targets": list(dict.fromkeys(name for name, _ in layers))}
    base = {"class": type(model).__name__, "config": model.config, "sha256": _frozen_weights(model)}
    arrays = {name: param.data for name, param in lora_parameters(model).items()}
    save_arrays(Path(path), arrays, {"lora": settings, "base": base})


def load_lora(model: Model, path: str | os.PathLike[str]) -> dict[str, Parameter]:
    """Put the updates of a file of `save_lora` into a model, in place, and the classifier that was trained with them.

    Args:
        model: the model that the updates were trained on, without updates. With another number of classes it gets the
            file's classifier.
        path: the file.

    Returns:
        The parameters to train on, as `minivit.lora` does.

    Raises:
        CheckpointError: for another file, one of another class or size of model, and one that was trained on other
            weights; the model is then unchanged.
        ValueError: for a model that has updates already.
    """
    check_layer("load_lora(model, path)", model)
    check_without("load_lora(model, path)", model)
    arrays, content = load_arrays(Path(path))
    settings, base = content.get("lora"), content.get("base")
    if not isinstance(settings, dict) or not isinstance(base, dict):
        raise CheckpointError(f"{path} holds no updates of low rank: minivit.load and from_pretrained read weights")
    _check_base(model, base, path)
    classes = base["config"].get("num_classes")
    try:
        twin = model.replica()  # which shares the arrays
        _prepare(twin, settings, classes)
        expected = {name: param.shape for name, param in lora_parameters(twin).items()}
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} does not fit this {type(model).__name__}: {error}") from None
    found = {name: tuple(array.shape) for name, array in arrays.items()}
    differs = [name for name in expected | found if expected.get(name) != found.get(name)]
    if differs:
        name = differs[0]
        raise CheckpointError(
            f"{path} does not fit this {type(model).__name__}: {quoted(name)} has shape {found.get(name, 'none')} "
            f"in the file, and {expected.get(name, 'none')} in the model"
        )
    trained = _prepare(model, settings, classes)
    for name, param in trained.items():
        param.data = arrays[name]
    return trained


def _prepare(model: Any, settings: dict[str, Any], classes: Any) -> dict[str, Parameter]:
    if classes != model.num_classes:
        model.reset_classifier(classes)
    return lora(model, settings.get("rank", 0), settings.get("alpha", 0), tuple(settings.get("targets", ())))


def _check_base(model: Model, base: dict[str, Any], path: Any) -> None:
    """Refuse updates of another class, size or weights."""
    if base.get("class") != type(model).__name__:
        raise CheckpointError(
            f"{path} has updates of a {base.get('class')!r:.40}, and this is a {type(model).__name__}"
        )
    theirs, ours = base.get("config"), model.config
    if not isinstance(theirs, dict):
        raise CheckpointError(f"{path} does not say which model it was trained on: save it again")
    differs = [
        f"{name}={theirs.get(name)!r:.60} in the file, {ours.get(name)!r:.60} in the model"
        for name in (*ours, *(name for name in theirs if name not in ours))
        if name not in _FREE and _plain(theirs.get(name)) != _plain(ours.get(name))
    ]
    if differs:
        raise CheckpointError(f"{path} was trained on a model of another configuration: {'; '.join(differs)}")
    if base.get("sha256") != _frozen_weights(model):
        raise CheckpointError(
            f"{path} was trained on a {type(model).__name__} of this size with other weights: load the weights that it "
            "was trained on"
        )


def _plain(value: Any) -> Any:
    """A value with JSON's lists as tuples."""
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


def _frozen_weights(model: Model) -> str:
    """The SHA-256 of all weights except the updates and the classifier, in float32."""
    digest, trained = hashlib.sha256(), lora_parameters(model).keys() | head_names(model)
    for name, each in model.state().items():
        if name not in trained:
            array: Array = np.ascontiguousarray(to_numpy(each.data), "<f4")
            digest.update(f"{name} {array.shape}\n".encode())
            digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
