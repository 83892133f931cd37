"""A model's arguments, defined once: a dataclass whose fields are the constructor's arguments and defaults."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import numpy as np

from minivit.argument_checks import names_like
from minivit.models.resnet import map_size
from minivit.nn.init import dtype_of
from minivit.nn.window_attention import shrunk_window
from minivit.sizes import Size, pair, short

P = ParamSpec("P")
O = TypeVar("O")  # noqa: E741


@dataclass
class Options:
    """The base of every model's options; a subclass adds the fields."""

    def config(self) -> dict[str, Any]:
        """The options as plain numbers, strings and tuples, without the seed, as a file stores them."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "seed"}


def built_from(options: Callable[P, O]) -> Callable[[Callable[[Any, O], None]], Callable[Concatenate[Any, P], None]]:
    """Decorator of `__init__(self, options)`: the constructor takes the fields of the class `options` as arguments."""

    def decorate(build: Callable[[Any, O], None]) -> Callable[Concatenate[Any, P], None]:
        @wraps(build)
        def __init__(self: Any, *args: P.args, **named: P.kwargs) -> None:
            _check_arguments(type(self).__name__, list(signature), args, named)
            build(self, options(*args, **named))

        signature = inspect.signature(options).parameters
        parameters = signature.values()
        own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        __init__.__signature__ = inspect.Signature([own, *parameters])  # type: ignore[attr-defined]
        return cast(Callable[Concatenate[Any, P], None], __init__)

    return decorate


def _check_arguments(name: str, known: list[str], args: Any, named: dict[str, Any]) -> None:
    """Refuse arguments that the class does not have, suggesting similar ones."""
    if args and isinstance(args[0], str):
        raise ValueError(f"{name} takes sizes, not a name: minivit.create_model({args[0]!r}) builds a published size")
    for argument in named:
        if argument in known:
            continue
        near = names_like(argument, known)
        remedy = f"did you mean {' or '.join(near)}?" if near else f"help(minivit.{name}) lists its arguments"
        if argument.startswith("pretrained") and argument != "pretrained_window_sizes":
            remedy = "it has fresh weights; minivit.from_pretrained(NAME or FILE) loads trained ones"
        raise TypeError(f"{name} has no argument {argument!r}: {remedy}")


def plain_size(size: Any) -> int | Size:
    """A size as a configuration keeps it: plain integers, in a tuple even where a file has a list."""
    both = pair(size)
    return both if isinstance(size, tuple | list) else both[0]


def patch_grid(config: dict[str, Any], size: Any = None) -> Size:
    """(gh, gw): the grid of patches of an image (H, W).

    A partial patch counts as one, unless the model drops it.

    Args:
        config: the model's, a ViT's or a Swin's.
        size: of the image, a number or a pair; None is the model's.
    """
    image, layers = pair(config["img_size"] if size is None else size), config.get("resnet_layers")
    cut, patch = image if layers is None else map_size(image, layers), pair(config["patch_size"])
    if config.get("partial_patches") == "drop":
        if cut[0] < patch[0] or cut[1] < patch[1]:
            raise ValueError(
                f"an image of {cut[0]}x{cut[1]} pixels has no complete patch of {patch[0]}x{patch[1]}: enlarge it, "
                "or use partial_patches='pad'"
            )
        return cut[0] // patch[0], cut[1] // patch[1]
    return -(-cut[0] // patch[0]), -(-cut[1] // patch[1])


def prefix_tokens(config: dict[str, Any]) -> int:
    """The number of tokens before the patches: class and distillation token, registers; 0 in a Swin."""
    own = bool(config.get("class_token", False)) + bool(config.get("distilled", False))
    return own + int(config.get("reg_tokens", 0))


def tokens_read(config: dict[str, Any]) -> int | None:
    """How many of the first tokens the head of a ViT reads; None if it reads the patches."""
    return 1 + bool(config["distilled"]) if config["global_pool"] == "token" else None


def check_partial_patches(options: Any, *choices: str) -> None:
    """Refuse an unknown `partial_patches`."""
    if options.partial_patches not in choices:
        raise ValueError(
            f"partial_patches={options.partial_patches!r}: choose {' or '.join(map(repr, choices))}, which is what "
            "happens to pixels at the right and bottom that fill no complete patch"
        )


def stage_grids(config: dict[str, Any]) -> list[Size]:
    """The map (H, W) of each stage of a Swin for its img_size: each merging rounds up."""
    grids = [patch_grid(config)]
    while len(grids) < len(config["depths"]):
        grids.append((-(-grids[-1][0] // 2), -(-grids[-1][1] // 2)))
    return grids


def window_of_each(window: Any, stages: int) -> list[Size]:
    """The window (Mh, Mw) of each stage, from a Swin's `window_size`, before it is reduced to the map.

    Args:
        window: one size for all stages, or a sequence of one for each. Two numbers are height and width, as in timm.
        stages: how many there are.

    Raises:
        ValueError: for a sequence of another length, and for what is no size.
    """
    if not _one_for_each(window):
        return [pair(window)] * stages
    if len(window) != stages:
        raise ValueError(
            f"window_size={window!r:.60} must be one size, or one for each of the {stages} stages; two numbers are "
            "height and width"
        )
    return [pair(each) for each in window]


def plain_window(window: Any, stages: int) -> Any:
    """A `window_size` as a configuration keeps it: one size where all stages have one, pairs where there are two."""
    if not _one_for_each(window):
        return plain_size(window)
    windows = window_of_each(window, stages)
    if len(set(windows)) == 1:
        return short(windows[0])
    return tuple(windows) if stages == 2 else tuple(short(each) for each in windows)


def _one_for_each(window: Any) -> bool:
    """Whether a `window_size` is a sequence of one for each stage."""
    return isinstance(window, tuple | list) and (
        len(window) != 2 or any(isinstance(each, tuple | list) for each in window)
    )


def stage_windows(config: dict[str, Any]) -> list[Size]:
    """The window (Mh, Mw) of each stage of a Swin."""
    windows = window_of_each(config["window_size"], len(config["depths"]))
    return [shrunk_window(window, grid, config["covered"]) for window, grid in zip(windows, stage_grids(config))]


def check_rates(options: Any) -> None:
    """Refuse invalid values: rates outside [0, 1), an unknown GELU or dtype, sizes that are not positive."""
    for name in ("drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"):
        if not 0 <= getattr(options, name) < 1:
            raise ValueError(f"{name}={getattr(options, name)} must lie in [0, 1)")
    if options.gelu not in ("none", "tanh", "quick"):
        raise ValueError(f"gelu={options.gelu!r}: choose 'none', 'tanh' or 'quick'")
    for name in ("norm_eps", "mlp_ratio"):
        value = getattr(options, name)
        if not (isinstance(value, int | float | np.floating) and value > 0):
            raise ValueError(f"{name}={value!r:.60} must be a positive number")
    options.dtype = dtype_of(options.dtype).name


def check_whole(options: Any, **least: int) -> None:
    """Refuse an option that is not an integer of at least its `least`."""
    for name, smallest in least.items():
        value = getattr(options, name)
        if not isinstance(value, int) or value < smallest:
            raise ValueError(f"{name}={value} must be an integer of at least {smallest}")
