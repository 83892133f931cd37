"""The model of a file: its class, its arguments, and its source's rules."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from minivit.argument_checks import names_like
from minivit.io.safetensors import CheckpointError
from minivit.io.text import printable, quoted
from minivit.models import MODELS
from minivit.models.options import patch_grid, stage_windows, window_of_each
from minivit.models.timm_arguments import in_our_words
from minivit.pretrained import architecture, hidden
from minivit.pretrained.config_json import check_same_model, options_of
from minivit.pretrained.extent import check_extent, check_types
from minivit.pretrained.profiles import PROFILES, Profile
from minivit.pretrained.recognition import Recognized
from minivit.pretrained.window_sizes import check_windows_told, image_is_assumed
from minivit.sizes import pair

# errors of a file with right names but invalid shapes or settings
NO_MODEL = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, MemoryError, RecursionError)


@dataclass(frozen=True)
class Plan:
    """The model of a file.

    Attributes:
        kind: its class.
        stored: the arguments of the file's model.
        arguments: those of the model to build: the stored ones, overridden by the requested ones.
        profile: the source's rules, one of `PROFILES`.
        assumed: arguments that affect the computation and that nothing determines.
    """

    kind: Any
    stored: dict[str, Any]
    arguments: dict[str, Any]
    profile: str
    assumed: list[str]


def plan_of(found: Recognized, profile: str | None = None, requested: dict[str, Any] | None = None) -> Plan:
    """Find the model of a file.

    Args:
        profile: None is that of the source.
        requested: arguments of the class that override the file's. A requested img_size or window_size is also used
            where nothing else determines a grid or window that is not square.

    Raises:
        CheckpointError: if the arrays make no model.
        ValueError: if the class lacks a requested argument.
    """
    kind, requested = MODELS[found.model], in_our_words(found.model, requested or {})
    _check_arguments(kind, requested)
    if found.layout and found.weights.config_fault:  # the library's own files have a complete description
        raise CheckpointError(f"{found.weights.config_fault}. It affects the computation: correct it, or remove it")
    try:
        if found.layout is None:
            chosen, stored, assumed = profile or "timm", _own(kind, found.weights.content), list[str]()
        else:
            chosen = profile or found.source
            config = _told(options_of(found.weights.config, found.model), found)
            settings = {**PROFILES[chosen].settings(found.model), **found.layout.settings}
            settings = {**settings, **{name: config[name] for name in ("covered",) if name in config}}
            read = architecture.arguments(found.model, found.arrays, config, found.buffers, settings, requested)
            _check_square(found.layout.square, read)
            check_same_model(found.weights.config, found.model, read, requested)
            stored = {**_defaults(kind), **settings, **read}
            check_windows_told(found.model, read, config, found.buffers, requested)
            said = {**config, **requested}
            assumed = ["num_heads"] if found.model == "ViT" and hidden.heads_are_assumed(read, said) else []
            if not read.get("ape") and image_is_assumed(found.model, config, found.buffers, requested):
                assumed.append("img_size")
            if profile is None and found.source == "wzmiaomiao":
                _check_one_reading(read)
        check_extent({**_defaults(kind), **stored}, found.weights.arrays)
        arguments = {**stored, **requested, **_trained_windows(kind, stored, requested)}
        return Plan(kind, stored, arguments, chosen, assumed)
    except NO_MODEL as error:
        why = f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else str(error)
        raise CheckpointError(
            f"{found.path} looks like a {found.model} of {found.source}, but lacks what makes one: "
            f"{printable(why[:600])}"
        ) from None


def other_sizes(plan: Plan, config: dict[str, Any], rules: Profile) -> list[str]:
    """Lines on images of another size than the model's, with which its source computes otherwise.

    Args:
        config: the built model's.
        rules: those by which the file's tables are resampled.

    Raises:
        ValueError: for a ViT of dynamic sizes, if its source resamples positions by another rule than the model does.
    """
    of_own_rule = rules.positions != PROFILES["timm"].positions
    if of_own_rule and config.get("dynamic_img_size") and config["pos_embed"] == "learned_1d":
        raise ValueError(
            f"dynamic_img_size=True resamples positions by timm's rule, and {plan.profile} by another: give the size "
            "of the images, img_size=(H, W), to which the file's positions are resampled by its own"
        )
    size, lines = "x".join(map(str, pair(config["img_size"]))), list[str]()
    if of_own_rule and config.get("ape"):
        lines.append(f"absolute_pos_embed: resampled by timm's rule for images that are not {size}: pass img_size=")
    if plan.kind is MODELS["SwinV2"] and plan.profile == "huggingface":
        lines.append(
            f"windows and shifts follow the size of the images, and transformers' Swin v2 keeps those of {size} for all"
        )
    return lines


def _told(config: dict[str, Any], found: Recognized) -> dict[str, Any]:
    """The arguments from config.json and from the source's own arrays, which must agree."""
    for name, value in found.arguments.items():
        if config.get(name, value) != value:
            raise ValueError(
                f"config.json says {name}={config[name]!r:.60}, and the arrays are of {name}={value}: it belongs to "
                "another file. Remove it, or fetch both again"
            )
    return {**config, **found.arguments}


def _check_square(why: str, read: dict[str, Any]) -> None:
    """Refuse a table of biases of a grid that is not square, where the source reads it in another order."""
    grid = patch_grid(read) if why and read.get("pos_embed") == "relative" else (1, 1)
    if grid[0] != grid[1]:
        raise ValueError(
            f"its biases are of a grid of {grid[0]}x{grid[1]} patches, and {why}: choose a file whose image is square, "
            "and img_size=(H, W) for others"
        )


def _check_one_reading(read: dict[str, Any]) -> None:
    """Refuse a Swin without masks that may be Microsoft's, with a window that covers every map of shifted blocks.

    Maps halve from stage to stage, so equal windows of two such stages cannot both cover theirs.
    """
    depths = read.get("depths", ())
    each = window_of_each(read["window_size"], len(depths)) if depths else []
    windows = [window for window, depth in zip(each, depths) if depth > 1]
    if len(set(windows)) == len(windows) and max(map(max, windows), default=1) > 1:
        raise ValueError(
            "it has no masks, so it may be WZMIAOMIAO's, or Microsoft's with a window that covers the map, and the two "
            "shift differently: give profile='wzmiaomiao' or profile='microsoft'"
        )


# every version has written these
_SIZES = (
    *("img_size", "patch_size", "in_chans", "num_classes"),
    *("embed_dim", "depth", "depths", "num_heads", "window_size"),
)


def _own(kind: Any, content: dict[str, Any]) -> dict[str, Any]:
    """The arguments in a file of the library's own. Its hash shows that it is complete, not who wrote it."""
    config = content.get("config")
    if not isinstance(config, dict):
        raise ValueError("its description has no 'config': save it again")
    if config.get("heads") == "linear":  # an option of version 0.1
        raise ValueError("heads='linear' was removed: load it with minivit 0.1")
    own = {name: config[name] for name in config if name not in ("dtype", "heads")}
    unknown = [name for name in own if name not in _defaults(kind)]
    if unknown:
        raise ValueError(f"{kind.__name__} has no argument {quoted(unknown[0])}: install the version that wrote it")
    lacking = [name for name in _SIZES if name in _defaults(kind) and name not in own]
    if lacking:
        raise ValueError(f"its description does not say {quoted(lacking[0])}: save it again")
    check_types(own, _defaults(kind))
    return {**_defaults(kind), **own}  # options that are newer than the file have their defaults


def _check_arguments(kind: Any, requested: dict[str, Any]) -> None:
    names = list(inspect.signature(kind).parameters)
    for name in requested:
        if name == "seed":
            raise ValueError("seed: from_pretrained draws no weights, and a new head starts at 0: leave it out")
        if name not in names:
            near = names_like(name, names)
            hint = f"did you mean {', '.join(near)}?" if near else f"it has {', '.join(names)}"
            raise ValueError(f"{kind.__name__} has no argument {name!r}: {hint}")


def _trained_windows(kind: Any, stored: dict[str, Any], requested: dict[str, Any]) -> dict[str, Any]:
    """Swin v2 in other windows: its MLP needs the windows of its training."""
    same = "pretrained_window_sizes" in requested or not {"window_size", "img_size"} & {*requested}
    if kind is not MODELS["SwinV2"] or same:
        return {}
    before, after = stage_windows(stored), stage_windows({**_defaults(kind), **stored, **requested})
    trained = stored.get("pretrained_window_sizes") or (0,) * len(before)
    windows = (each if any(pair(each)) or a == b else a for each, a, b in zip(trained, before, after))
    return {"pretrained_window_sizes": tuple(windows)}


def _defaults(kind: Any) -> dict[str, Any]:
    parameters = inspect.signature(kind).parameters
    return {name: each.default for name, each in parameters.items() if name not in ("dtype", "seed")}
