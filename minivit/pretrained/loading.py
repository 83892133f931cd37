"""A file of any known source, or a published name, becomes a model: read, recognize, plan, build, adapt, load.

`layouts/` has the names, `profiles.py` the other differences between projects.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from minivit.io.safetensors import CheckpointError
from minivit.io.text import printable, quoted
from minivit.io.weights import read_weights
from minivit.models import Model, create_model as create_fresh_model, list_models as list_sizes
from minivit.pretrained import hub
from minivit.pretrained.adaptation import HEADS, choose_classes, fit
from minivit.pretrained.checkpoint import StrPath, adopt, check_fit
from minivit.pretrained.plan import NO_MODEL, other_sizes, plan_of
from minivit.pretrained.profiles import PROFILES
from minivit.pretrained.recognition import Recognized, recognize
from minivit.pretrained.tags import DEFAULT_TAGS
from minivit.random import UNSET


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
    """The model in a file: its class and size are inferred from names, shapes, and config.json next to it.

    Args:
        path: a file, a folder that holds one, or a published name, which is downloaded once: "vit_tiny_patch16_224",
            one of `list_models()`, or "google/vit-base-patch16-224", a repository of the Hugging Face hub.
        num_classes: another number of classes sets a new head to 0; 0 omits the head; None is the file's.
        img_size: another size resamples the table of positions.
        in_chans: other channels: 1 sums the kernels of red, green and blue.
        classes: keep these rows of the head, such as ImageNet's 1,000 among its 21,841 classes.
        dtype: "float32" or "float64"; None is float64 for a file of float64, else float32.
        profile: the rules of the source, one of `PROFILES`; None is that of the recognized source.
        report: gets a line for each array that was adapted or omitted, and for each assumption.
        overrides: other arguments of the class, such as window_size or drop_path_rate.

    Raises:
        CheckpointError: if the file is unreadable, of no known source, or makes no model; if a download fails.
        ValueError: for an unknown profile or argument.
    """
    if profile not in (None, *PROFILES):
        raise ValueError(f"profile={profile!r}: choose one of {', '.join(map(repr, PROFILES))}")
    named = isinstance(path, str) and not os.path.exists(path)
    weights = read_weights(hub.fetch(str(path), report=report) if named else path)
    found = recognize(weights)
    requested = {"num_classes": num_classes, "img_size": img_size, "in_chans": in_chans}
    told = hub.said_by_name(str(path)) if named else {}
    requested = told | {name: value for name, value in requested.items() if value is not None} | overrides
    plan = plan_of(found, profile, requested)
    wide = any(array.dtype == np.float64 for array in found.arrays.values())
    try:
        arrays, arguments = found.arrays, dict(plan.arguments)
        if classes is not None:
            arrays = choose_classes(arrays, classes)
            arguments["num_classes"] = len(classes) if num_classes is None else num_classes
        model = plan.kind(**arguments, dtype=dtype or ("float64" if wide else "float32"), seed=UNSET)
        rules = PROFILES[plan.profile]
        if profile is None and found.layout:
            own = {"positions": found.layout.positions, "biases": found.layout.biases}
            rules = replace(rules, **{name: dict(how) for name, how in own.items() if how})
        arrays, changes = fit(arrays, model, plan.stored, rules)
        changes += other_sizes(plan, model.config, rules)
    except NO_MODEL as error:
        memory = "it needs more memory than there is: check where it came from"
        why = memory if isinstance(error, MemoryError) else printable(str(error)[:600])
        raise CheckpointError(f"{found.path}, a {found.model} of {found.source}: {why}") from None
    if requested.get("num_classes") == 0:
        arrays = {name: array for name, array in arrays.items() if not name.startswith(HEADS)}
    elif num_classes is None and not model.num_classes:
        _check_no_head_beside(found, model)
    check_fit(model, found, arrays, strict=True)
    changes[:0] = [weights.note] if weights.note else []
    if found.left_out:
        more = f" and {len(found.left_out) - 5} more" if len(found.left_out) > 5 else ""
        changes.append(f"omitted, as not part of the model: {', '.join(map(quoted, found.left_out[:5]))}{more}")
    if plan.assumed:
        assumed = " and ".join(f"{name}={plan.stored[name]!r}" for name in plan.assumed)
        changes.append(f"{assumed}: assumed, as no array shows it; pass the value of the file's name or its authors")
    for line in changes:
        report(f"minivit: {line}")
    weights.arrays.clear()  # so that each array is freed once the model has it, or a copy
    found.arrays.clear()
    adopt(model, arrays)
    return model


def _check_no_head_beside(found: Recognized, model: Model) -> None:
    """Refuse a file whose only matrix beside an encoder may be its classifier, under a name that says nothing."""
    layout = found.layout
    bare = layout.bare(found.weights.arrays) if layout else None
    unknown = [name for name in found.left_out if not (layout and layout.leaves_out(name, bare or {}))]
    matrices = [name for name in unknown if name.endswith(".weight") and found.weights.arrays[name].ndim == 2]
    width = model.config["embed_dim"] * 2 ** (len(model.config.get("depths", (0,))) - 1)  # doubles from stage to stage
    if len(matrices) == 1 and found.weights.arrays[matrices[0]].shape[1] == width:
        raise CheckpointError(
            f"{found.path} has {quoted(matrices[0])} beside its encoder, which may be its classifier: rename it and "
            "its bias to head.weight and head.bias, or choose num_classes=0 for the features"
        )


def list_models(pattern: str = "*", *, pretrained: bool = False) -> list[str]:
    """The published names, in alphabetical order.

    Args:
        pattern: with the wildcards of file names, such as "*dinov2*" or "swin*".
        pretrained: only those with published weights, each with the tag of its default, as in
            "vit_base_patch14_dinov2.lvd142m"; other tags of timm's are accepted too.
    """
    names = list_sizes(pattern)
    return [f"{name}.{DEFAULT_TAGS[name]}" for name in names if name in DEFAULT_TAGS] if pretrained else names


def create_model(
    name: str,
    pretrained: bool = False,
    *,
    num_classes: int | None = None,
    in_chans: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    dtype: Any = None,
    seed: Any = 0,
    **overrides: Any,
) -> Model:
    """A model of a published size, with fresh weights or with published ones.

    Args:
        name: one of `list_models()`; with `pretrained` also with a tag or of another publisher, as for
            `from_pretrained`.
        pretrained: load published weights: `from_pretrained(name)` with the other arguments.
        num_classes: None is 1000, or that of the published weights; 0 gives pooled features. With `pretrained`, another
            number than the file's sets a new head to 0.
        in_chans: image channels; None is 3, or that of the published weights.
        img_size: int or (H, W); None is the size in the name.
        dtype: "float32" or "float64"; None is "float32", or that of the published file.
        seed: of the initial weights; published weights are not random.
        overrides: any other argument of the model's class, such as drop_path_rate=0.1; with `pretrained` also
            `classes`, `profile` and `report` of `from_pretrained`.

    Raises:
        ValueError: for an unknown name; the message lists the nearest known ones.
        CheckpointError: with `pretrained`, if the weights are not in the cache and cannot be fetched; the message has
            the files to fetch, their URLs and the folder for them.
    """
    if pretrained:
        return from_pretrained(
            name, num_classes=num_classes, in_chans=in_chans, img_size=img_size, dtype=dtype, **overrides
        )
    return create_fresh_model(
        name,
        num_classes=1000 if num_classes is None else num_classes,
        in_chans=3 if in_chans is None else in_chans,
        img_size=img_size,
        dtype=dtype or "float32",
        seed=seed,
        **overrides,
    )
