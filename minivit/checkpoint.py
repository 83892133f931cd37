"""Files: arrays saved as safetensors with a hash of their content, written so that a crash leaves the old file whole.

No pickle anywhere: a file holds numbers and text, and reading one runs nothing. Next: `minivit/training.py`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from minivit.backend import to_numpy
from minivit.files import write_atomically
from minivit.models.model import Model
from minivit.models.swin import Swin, SwinV2
from minivit.models.vit import ViT
from minivit.nn.layer import Layer
from minivit.protocol import Array

_FORMAT = "1"  # raised when an old reader could no longer understand the file
_KEYS = ("minivit_format", "minivit_content", "minivit_sha256")
MODELS: dict[str, type[Model]] = {"ViT": ViT, "Swin": Swin, "SwinV2": SwinV2}


class CheckpointError(ValueError):
    """A file that cannot be read, is damaged, or does not fit; says which file, and what was expected."""


def save(model: Layer, path: str | Path) -> None:
    """Write a model's parameters, under timm's names, and its configuration to a safetensors file."""
    content = {"model": type(model).__name__, "config": getattr(model, "config", {})}
    save_arrays(path, {name: param.data for name, param in model.parameters().items()}, content)


def load(model: Any, path: str | Path) -> Any:
    """Read a file's parameters into a model, cast to its dtype; returns the model.

    Raises:
        CheckpointError: if the file is unreadable or damaged, or names and shapes differ; nothing is then changed.
    """
    return _fill(model, load_arrays(path)[0], path)


def _fill(model: Any, arrays: dict[str, Array], path: str | Path) -> Any:
    try:
        model.load_state_dict(arrays)
    except ValueError as error:
        raise CheckpointError(f"{path} does not fit this {type(model).__name__}: {error}") from None
    return model


def from_pretrained(path: str | Path) -> Model:
    """The model that `save` wrote: built from the configuration in the file, with the file's parameters."""
    arrays, content = load_arrays(path)
    kind = MODELS.get(content.get("model", ""))
    if kind is None:
        raise CheckpointError(f"{path} does not say which model it holds: build the model and use minivit.load")
    model: Model = _fill(kind(**content["config"]), arrays, path)
    return model


def save_arrays(path: str | Path, arrays: dict[str, Array], content: dict[str, Any]) -> None:
    """Write arrays and a JSON-able description, atomically, with a SHA-256 of both."""
    from safetensors import SafetensorError
    from safetensors.numpy import save as to_bytes

    # safetensors 0.8.0 writes the raw buffer of a transposed or strided array without a word (its issue 825)
    host = {name: _plain(to_numpy(array)) for name, array in arrays.items()}
    text = json.dumps(content, sort_keys=True)
    metadata = dict(zip(_KEYS, (_FORMAT, text, _digest(host, text))))
    try:
        data = to_bytes(host, metadata=metadata)
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} cannot hold these arrays ({error}): convert them to float32 or float64"
        ) from None
    write_atomically(Path(path), data)


def _plain(array: Array) -> Array:
    """C-contiguous, in this machine's byte order, of the same shape."""
    return np.asarray(array, array.dtype.newbyteorder("="), order="C")


def load_arrays(path: str | Path) -> tuple[dict[str, Array], dict[str, Any]]:
    """Arrays and description of a file; those written by minivit are checked against their hash.

    Raises:
        CheckpointError: if the file is missing, is no safetensors file, or was changed since it was written.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: {'is a folder, not a' if path.is_dir() else 'no such'} file")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no dict)
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a complete safetensors file ({error}): copy or train it again") from None
    known = [key for key in _KEYS if key in metadata]
    if not known and not any("minivit" in key for key in metadata):
        return arrays, {}  # written by another program, without a hash
    if len(known) < len(_KEYS) or metadata[_KEYS[2]] != _digest(arrays, metadata[_KEYS[1]]):
        raise CheckpointError(f"{path} is damaged: its content does not match its SHA-256. Restore it from a copy")
    if metadata[_KEYS[0]] != _FORMAT:
        raise CheckpointError(
            f"{path} has format {metadata[_KEYS[0]]}, this version reads {_FORMAT}: install the version that wrote it"
        )
    return arrays, json.loads(metadata[_KEYS[1]])


def _digest(arrays: dict[str, Array], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
