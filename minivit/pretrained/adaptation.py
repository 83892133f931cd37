"""Making arrays fit a model that is not quite the one they were trained in: other classes, sizes, windows, channels.

Everything here happens to arrays under our names, before they are loaded; what was changed is listed in words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minivit import functional as F
from minivit.models import Model
from minivit.models.options import patch_grid
from minivit.pretrained.profiles import Profile
from minivit.protocol import Array

HEADS = ("head.", "head_dist.")
# the convolution that reads the image: a hybrid's root, else that of the patches
_FIRST = (
    "patch_embed.backbone.stem.conv.weight",
    "patch_embed.backbone.conv.weight",
    "patch_embed.proj.weight",
)


def fit(
    arrays: dict[str, Array], model: Model, stored: dict[str, Any], profile: Profile
) -> tuple[dict[str, Array], list[str]]:
    """The arrays in the shapes of the model, as far as that can be done, and what was done.

    Args:
        arrays: under our names.
        model: the model they shall be loaded into.
        stored: the arguments of the model that the arrays come from.
        profile: how tables are resampled.
    """
    params, anew = model.parameters(), model.num_classes != stored.get("num_classes")
    first = next((name for name in _FIRST if name in params), None)
    fitted, changes = dict(arrays), list[str]()
    for name in [name for name in fitted if name in params and fitted[name].shape != params[name].shape]:
        array, shape = fitted[name], params[name].shape
        if name.startswith(HEADS) and anew and array.ndim == len(shape):
            fitted[name] = np.zeros(shape, array.dtype)
            changes.append(f"{name}: {len(array)} classes in the file, {shape[0]} in the model: starts at 0")
        elif name in ("pos_embed", "absolute_pos_embed") and array.shape[2] == shape[2]:
            fitted[name] = _positions(array, model.config, stored, shape[1], profile.positions)
            changes.append(f"{name}: resampled from {array.shape[1]} to {shape[1]} places")
        elif name.endswith("relative_position_bias_table") and array.shape[1] == shape[1]:
            fitted[name] = _biases(array, shape, profile.biases)
            changes.append(f"{name}: resampled from {array.shape[0]} to {shape[0]} offsets")
        elif name == first and array.shape[2:] == shape[2:] and array.shape[0] == shape[0]:
            fitted[name] = _channels(array, shape[1])
            changes.append(f"{name}: from {array.shape[1]} to {shape[1]} channels")
    for name in [name for name in fitted if name.startswith("pre_logits.") and name not in params]:
        del fitted[name]
        changes.append(f"{name}: left out, the model has no layer before its head")
    for name in [name for name in params if name.startswith(HEADS) and name not in fitted and anew]:
        fitted[name] = np.zeros(params[name].shape, params[name].data.dtype)
        changes.append(f"{name}: the file has no head: starts at 0")
    return fitted, changes


def choose_classes(arrays: dict[str, Array], classes: Sequence[int]) -> dict[str, Array]:
    """The arrays with only these classes in the head, by their numbers: 1,000 of ImageNet's 21,841, for example.

    Raises:
        ValueError: if the file has no head, or no such class.
    """
    rows = np.asarray(classes)
    heads = [name for name in arrays if name.startswith(HEADS)]
    if not heads:
        raise ValueError("classes: the file has no head to choose from")
    count = len(arrays[heads[0]])
    whole = rows.ndim == 1 and rows.size and rows.dtype.kind in "iu" and rows.min() >= 0 and rows.max() < count
    if not whole:
        raise ValueError(f"classes must be whole numbers from 0 to {count - 1}, got {classes!r:.60}")
    return {name: array[rows] if name in heads else array for name, array in arrays.items()}


def _positions(
    array: Array, config: dict[str, Any], stored: dict[str, Any], places: int, resize: dict[str, Any]
) -> Array:
    """(1, p + N, D) from the grid it was trained on to the model's; what stands before the grid stays."""
    prefix = int(config.get("class_token", False)) + int(config.get("distilled", False))
    old, new = patch_grid(stored), patch_grid(config)
    known = old[0] * old[1] == array.shape[1] - prefix and new[0] * new[1] == places - prefix
    if not known:
        raise ValueError(f"the positions' {array.shape[1] - prefix} places are no grid of {old[0]} x {old[1]}")
    resized, _ = F.resize_grid(array[0, prefix:].reshape(*old, -1), new, **resize)  # (gh, gw, D)
    return np.concatenate((array[:, :prefix], resized.reshape(1, new[0] * new[1], -1)), axis=1)


def _biases(array: Array, shape: tuple[int, ...], resize: dict[str, Any] | None) -> Array:
    """((2M-1)^2, H) resampled as a grid of offsets."""
    old, new = (round(rows**0.5) for rows in (array.shape[0], shape[0]))
    if old * old != len(array) or new * new != shape[0]:
        raise ValueError("tables of windows that are not square stay as they are")
    grid = array.reshape(old, old, -1)
    if resize is None:
        matrix = stretch_matrix(old, new).astype(array.dtype)
        resized = np.einsum("ij,jkd,lk->ild", matrix, grid, matrix)
    else:
        resized, _ = F.resize_grid(grid, (new, new), **resize)
    return resized.reshape(shape)


def stretch_matrix(source: int, target: int) -> Array:
    """(target, source): a line of offsets -R..R laid on a line of other length, far offsets stretched more than near.

    The distances of neighbors grow by a common ratio q, so that the table keeps its detail where it has most, in the
    middle; q is such that the outermost offset comes to lie on the new outermost one. Between the points linear.
    Sources: BEiT's fine-tuning code and timm's `resize_rel_pos_bias_table`.
    """
    half, reach = source // 2, target // 2
    low, high = 1.01, 1.5  # the bounds and the precision of q in the sources
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if (1 - ratio**half) / (1 - ratio) > reach:
            high = ratio
        else:
            low = ratio
    distance = np.cumsum([ratio**power for power in range(half)])
    places = np.concatenate((-distance[::-1], [0], distance))
    wanted = np.arange(-reach, target - reach)
    return np.stack([np.interp(wanted, places, row) for row in np.eye(source, dtype=np.float64)], axis=1)


def _channels(array: Array, channels: int) -> Array:
    """Other image channels: gray is the sum over the kernels of red, green and blue; more repeat them in turn.

    A gray image shown to all three kernels gives the same as one channel with their sum. Repeated kernels are scaled
    so that the sum over all stays what it was.
    """
    if channels == 1:
        return array.sum(axis=1, keepdims=True)
    old = array.shape[1]
    return array[:, np.arange(channels) % old] * np.asarray(old / channels, array.dtype)
