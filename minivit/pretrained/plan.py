"""Which model a file makes: its class, its arguments, and how its source computes."""

from __future__ import annotations

import difflib
import inspect
from dataclasses import dataclass
from typing import Any

from minivit.io.safetensors import CheckpointError
from minivit.models import MODELS
from minivit.models.options import patch_grid
from minivit.pretrained import architecture
from minivit.pretrained.profiles import PROFILES
from minivit.pretrained.recognition import Recognized
from minivit.sizes import pair

# what a file can bring about whose names are right and whose shapes or settings make no sense
NO_MODEL = (ValueError, TypeError, KeyError, IndexError, ZeroDivisionError, OverflowError, AttributeError, MemoryError)


@dataclass(frozen=True)
class Plan:
    """The model that a file makes: its class, its arguments as they were stored, and how its source computes."""

    kind: Any
    arguments: dict[str, Any]
    profile: str


def plan_of(found: Recognized, profile: str | None = None, image: Any = None) -> Plan:
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
            if config.get("heads") == "linear":  # an option of version 0.1
                raise ValueError("heads='linear' has gone: load it with minivit 0.1")
            options = {name: config[name] for name in config if name not in ("dtype", "heads")}
            return Plan(kind, options, profile or "timm")
        chosen = profile or found.source
        told = architecture.arguments(found.model, found.arrays, found.weights.config, found.buffers, image)
        return Plan(kind, {**PROFILES[chosen].settings(found.model), **told}, chosen)
    except NO_MODEL as error:
        raise CheckpointError(
            f"{found.path} looks like a {found.model} of {found.source}, but lacks what makes one: {error}"
        ) from None


def check_arguments(kind: Any, asked: dict[str, Any]) -> None:
    known = list(inspect.signature(kind).parameters)
    for name in asked:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
            hint = f"did you mean {', '.join(near)}?" if near else f"it has {', '.join(known)}"
            raise ValueError(f"{kind.__name__} has no argument {name!r}: {hint}")


def trained_windows(plan: Plan, asked: dict[str, Any]) -> dict[str, Any]:
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
