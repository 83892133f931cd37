"""Adapting arrays to a model with other classes, sizes, windows or channels than those of their training.

Arrays have our names here, and are not yet loaded. The changes are listed in words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minivit import functional as F
from minivit.models import Model
from minivit.pretrained.geometry import Table, table_of
from minivit.pretrained.profiles import Profile
from minivit.protocol import Array

HEADS = ("head.", "head_dist.")
# the first convolution: a hybrid's root, else the patch embedding
_FIRST = (
    "patch_embed.backbone.stem.conv.weight",
    "patch_embed.backbone.conv.weight",
    "patch_embed.proj.weight",
)


def fit(
    arrays: dict[str, Array], model: Model, stored: dict[str, Any], profile: Profile
) -> tuple[dict[str, Array], list[str]]:
    """The arrays in the shapes of the model as far as possible, and the list of changes.

    Args:
        arrays: under our names.
        model: the model to load into.
        stored: the arguments of the model of the arrays.
        profile: the project's rules of resampling.
    """
    params, new_head = model.parameters(), model.num_classes != stored.get("num_classes")
    first = next((name for name in _FIRST if name in params), None)
    fitted, changes = dict(arrays), list[str]()
    for name in [name for name in fitted if name in params]:
        old, new = table_of(name, stored), table_of(name, model.config)
        if old and new and old.prefix != new.prefix and fitted[name].shape == params[name].shape:
            raise ValueError(
                f"{name} has {old.prefix} rows of prefix tokens before its {old}, and the model's has {new.prefix} "
                f"before a {new}: choose the file's no_embed_class"
            )
        if old and new and old != new and old.prefix == new.prefix:
            fitted[name] = _resampled(name, fitted[name], old, new, profile)
            changes.append(f"{name}: resampled from {old} to {new}")
    for name in [name for name in fitted if name in params and fitted[name].shape != params[name].shape]:
        array, shape = fitted[name], params[name].shape
        if name.startswith(HEADS) and new_head and array.ndim == len(shape):
            fitted[name] = np.zeros(shape, array.dtype)
            changes.append(f"{name}: {len(array)} classes in the file, {shape[0]} in the model: starts at 0")
        elif name == first and array.shape[2:] == shape[2:] and array.shape[0] == shape[0]:
            fitted[name] = _channels(array, shape[1])
            changes.append(f"{name}: from {array.shape[1]} to {shape[1]} channels")
    for name in [name for name in fitted if name.startswith("pre_logits.") and name not in params]:
        del fitted[name]
        changes.append(f"{name}: omitted, the model has no layer before its head")
    for name in [name for name in params if name.startswith(HEADS) and name not in fitted and new_head]:
        fitted[name] = np.zeros(params[name].shape, params[name].data.dtype)
        changes.append(f"{name}: the file has no head: starts at 0")
    return fitted, changes


def choose_classes(arrays: dict[str, Array], classes: Sequence[int]) -> dict[str, Array]:
    """The arrays with only these classes in the head, by number, such as 1,000 of ImageNet's 21,841.

    Raises:
        ValueError: if the file has no head, or no such class.
    """
    rows = np.asarray(classes)
    heads = [name for name in arrays if name.startswith(HEADS)]
    if not heads:
        raise ValueError("classes: the file has no head to choose from")
    count = len(arrays[heads[0]])
    valid = rows.ndim == 1 and rows.size and rows.dtype.kind in "iu" and rows.min() >= 0 and rows.max() < count
    if not valid:
        raise ValueError(f"classes must be integers from 0 to {count - 1}, got {classes!r:.60}")
    return {name: array[rows] if name in heads else array for name, array in arrays.items()}


def _resampled(name: str, array: Array, old: Table, new: Table, profile: Profile) -> Array:
    """A table (1, R, D) of positions or (R, H) of biases, from one grid or window to another; prefix rows stay."""
    table = array[0] if old.kind == "grid" and array.ndim == 3 else array
    if table.ndim != 2 or len(table) != old.rows:
        raise ValueError(f"{name} has shape {array.shape}, and a table of a {old} has {old.rows} rows")
    count = old.prefix if old.kind == "grid" else 0
    front, plane, behind = np.split(table, (count, count + old.plane[0] * old.plane[1]))
    plane = plane.reshape(*old.plane, -1)  # (h, w, D)
    resize = profile.positions if old.kind == "grid" else profile.biases
    if resize is None:
        rows, columns = (stretch_matrix(*sides).astype(array.dtype) for sides in zip(old.plane, new.plane))
        resized = np.einsum("ij,jkd,lk->ild", rows, plane, columns)
    else:
        resized, _ = F.resize_grid(plane, new.plane, **resize)
    fitted = np.concatenate((front, resized.reshape(-1, table.shape[1]), behind))
    return fitted.reshape(*array.shape[:-2], *fitted.shape)


def stretch_matrix(source: int, target: int) -> Array:
    """(target, source): interpolation from offsets -R..R to another range, which stretches far offsets more than near.

    The distances between neighbors grow by a common ratio q, so that the table keeps its detail in the middle. With
    this q the outermost offsets of both ranges coincide. The interpolation is linear.
    Sources: BEiT's fine-tuning code and timm's `resize_rel_pos_bias_table`.
    """
    half, reach = source // 2, target // 2
    low, high = 1.01, 1.5  # bounds and precision of q, as in the sources
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if (1 - ratio**half) / (1 - ratio) > reach:
            high = ratio
        else:
            low = ratio
    distance = np.cumsum([ratio**power for power in range(half)])
    offsets = np.concatenate((-distance[::-1], [0], distance))
    wanted = np.arange(-reach, target - reach)
    return np.stack([np.interp(wanted, offsets, row) for row in np.eye(source, dtype=np.float64)], axis=1)


def _channels(array: Array, channels: int) -> Array:
    """Other image channels: gray is the sum over the kernels of red, green and blue; more repeat them in turn.

    A gray image in three channels gives the same output as one channel with the sum of the kernels. Repeated kernels
    are scaled so that their sum does not change.
    """
    if channels == 1:
        return array.sum(axis=1, keepdims=True)
    old = array.shape[1]
    return array[:, np.arange(channels) % old] * np.asarray(old / channels, array.dtype)
