"""Making arrays fit a model that is not quite the one they were trained in: other classes, sizes, windows, channels.

Everything here happens to arrays under our names, before they are loaded; what was changed is said in words.
Next: `source.py`, the first of the files that read PyTorch's format.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minivit import functional as F
from minivit.models import Model
from minivit.protocol import Array


def fit(arrays: dict[str, Array], model: Model, resize: dict[str, Any]) -> tuple[dict[str, Array], list[str]]:
    """The arrays in the shapes of the model, as far as that can be done, and what was done.

    Args:
        arrays: under our names.
        model: the model they shall be loaded into; its fresh weights stand in for a head of other classes.
        resize: how tables are resampled, `mode` and `antialias` of `F.resize_grid`.
    """
    params = model.parameters()
    fitted, said = dict(arrays), list[str]()
    for name in [name for name in fitted if name in params and fitted[name].shape != params[name].shape]:
        array, shape = fitted[name], params[name].shape
        if name.startswith(("head.", "head_dist.")):
            fitted[name] = params[name].data
            said.append(f"{name}: {len(array)} classes in the file, {shape[0]} in the model: starts anew")
        elif name in ("pos_embed", "absolute_pos_embed") and array.shape[2] == shape[2]:
            fitted[name] = _positions(array, model, shape, resize)
            said.append(f"{name}: resampled from {array.shape[1]} to {shape[1]} places")
        elif name.endswith("relative_position_bias_table") and array.shape[1] == shape[1]:
            fitted[name] = _bias_table(array, shape, resize)
            said.append(f"{name}: resampled from {array.shape[0]} to {shape[0]} offsets")
        elif name == "patch_embed.proj.weight" and array.shape[2:] == shape[2:] and array.shape[0] == shape[0]:
            fitted[name] = _channels(array, shape[1])
            said.append(f"{name}: from {array.shape[1]} to {shape[1]} channels")
    for name in [name for name in fitted if name.startswith("pre_logits.") and name not in params]:
        del fitted[name]
        said.append(f"{name}: left out, the model has no layer before its head")
    return fitted, said


def _positions(array: Array, model: Model, shape: tuple[int, ...], resize: dict[str, Any]) -> Array:
    """(1, p + N, D) resampled on its square grid; what stands before the grid stays."""
    config = model.config
    prefix = int(config.get("class_token", False)) + int(config.get("distilled", False))
    side = int((array.shape[1] - prefix) ** 0.5)
    patch = F.pair(config["patch_size"])
    image = F.pair(config["img_size"])
    grid = -(-image[0] // patch[0]), -(-image[1] // patch[1])
    square = array[0, prefix:].reshape(side, side, -1)
    resized, _ = F.resize_grid(square, grid, **resize)  # (gh, gw, D)
    return np.concatenate((array[:, :prefix], resized.reshape(1, grid[0] * grid[1], -1)), axis=1)


def _bias_table(array: Array, shape: tuple[int, ...], resize: dict[str, Any]) -> Array:
    """((2M-1)^2, H) resampled as a grid of offsets."""
    old, new = (int(rows**0.5) for rows in (array.shape[0], shape[0]))
    resized, _ = F.resize_grid(array.reshape(old, old, -1), (new, new), **resize)
    return resized.reshape(shape)


def _channels(array: Array, channels: int) -> Array:
    """Other image channels: gray is the sum over the kernels of red, green and blue; more repeat them in turn.

    A gray image shown to all three kernels gives the same as one channel with their sum. Repeated kernels are scaled
    so that the sum over all stays what it was.
    """
    if channels == 1:
        return array.sum(axis=1, keepdims=True)
    old = array.shape[1]
    return array[:, np.arange(channels) % old] * np.asarray(old / channels, array.dtype)
