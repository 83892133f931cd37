"""The named arrays of one model in the object that a program saved, with other states and models around them.

    {"epoch": 3, "model": {name: array, ...}, "optimizer": {...}}

One reading is taken where only one is possible, and several are refused with their keys.
"""

from __future__ import annotations

import os
import re
from typing import Any

import numpy as np

from minivit.protocol import Array

# keys of an average over training, which a program saves beside the last weights to be used instead of them
_AVERAGES = ("model_ema", "state_dict_ema", "ema_state_dict", "target_encoder")
_LAST = ("model", "model_state_dict", "state_dict", "net", "params", "weights", "module", "backbone", "encoder")
_KNOWN = (*_AVERAGES, *_LAST, "teacher", "student")
# states of a training that may have arrays by name too
_OF_TRAINING = re.compile(r".*(optim|sched|scaler|rng|random|buffer|loss|criterion|metric|grad).*|opt|args", re.I)
_DEPTH = 5  # dictionaries and lists within each other, as in {"teacher": {"model": [{...}]}}

Arrays = dict[str, Array]


def named_arrays(content: Any) -> tuple[Arrays, str]:
    """The arrays of the model in a saved object, and what was passed over for them, in words.

    Arrays that stand beside the model under another key, such as a classifier, get the key before their names, and the
    model's get "model.".

    Returns:
        the arrays, empty if there are none, and "" or a line.

    Raises:
        ValueError: naming the keys, if several models are there.
    """
    return _search(content, _DEPTH, set()) or ({}, "")


def _search(content: Any, depth: int, seen: set[int]) -> tuple[Arrays, str] | None:
    """`seen` has the identities of what was searched: an object may contain itself, many times."""
    if depth == 0 or not isinstance(content, dict | list | tuple) or id(content) in seen:
        return None
    seen.add(id(content))
    if not isinstance(content, dict):
        models = [each for part in content if (each := _search(part, depth - 1, seen))]
        if len(models) > 1 and not all(_equal(models[0][0], each[0]) for each in models):
            raise ValueError(f"it is a list of {len(models)} models: {_REMEDY}")
        return models[0] if models else None
    direct = {str(name): value for name, value in content.items() if isinstance(value, np.ndarray)}
    within = {}
    for name, value in content.items():
        if isinstance(name, str) and not _OF_TRAINING.fullmatch(name) and (found := _search(value, depth - 1, seen)):
            within[name] = found
    known = {name: within[name] for name in _KNOWN if name in within}
    if direct and not known:
        return direct, ""
    chosen, note = _chosen(known or within)
    if chosen is None:
        return None
    arrays, inner = within[chosen]
    beside = {name: each for name, (each, _) in within.items() if name not in _KNOWN and name != chosen}
    if beside:
        arrays = {f"model.{name}": array for name, array in arrays.items()}
        arrays |= {f"{key}.{name}": array for key, each in beside.items() for name, array in each.items()}
    return arrays, note or inner


def _chosen(models: dict[str, tuple[Arrays, str]]) -> tuple[str | None, str]:
    """The key of the model to read, and a line about the others."""
    large = {name: arrays for name, (arrays, _) in models.items() if any(each.ndim > 1 for each in arrays.values())}
    models = {name: models[name] for name in large or models}
    names = list(models)
    if not names:
        return None, ""
    if all(_equal(models[names[0]][0], models[name][0]) for name in names[1:]):
        return names[0], ""
    averages = [name for name in names if name in _AVERAGES]
    others = [name for name in names if name not in _AVERAGES]
    if len(averages) == 1 and all(name in _LAST for name in others):
        passed = ", ".join(map(repr, others))
        return averages[0], f"read {averages[0]!r}, an average over training; the file has other weights under {passed}"
    raise ValueError(f"it holds several models, under {', '.join(map(repr, names))}: {_REMEDY}")


_REMEDY = "save the arrays of one of them in a separate file"


def _equal(one: Arrays, other: Arrays) -> bool:
    """Whether the arrays are the same, each side's under a prefix of its own."""
    first, second = (_without_prefix(arrays) for arrays in (one, other))
    return first.keys() == second.keys() and all(_same_bits(array, second[name]) for name, array in first.items())


def _without_prefix(arrays: Arrays) -> Arrays:
    prefix = os.path.commonprefix(list(arrays)).rpartition(".")
    return {name.removeprefix(prefix[0] + prefix[1]): array for name, array in arrays.items()}


def _same_bits(one: Array, other: Array) -> bool:
    same = one.dtype == other.dtype and one.shape == other.shape
    return same and one.tobytes() == other.tobytes()
