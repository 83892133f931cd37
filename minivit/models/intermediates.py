"""The features inside a model: the maps after chosen blocks of a ViT, or after chosen stages of a Swin.

Notation: B batch, p prefix tokens (class token, registers, ...), gh x gw the grid of patches, T = p + gh gw
tokens, D channels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from operator import index as integer
from typing import Any

from minivit.argument_checks import Like, check_generator, check_gradients
from minivit.device import array_module
from minivit.models.options import prefix_tokens
from minivit.nn import Layer
from minivit.protocol import Array, Back, Rng, compose, once
from minivit.sizes import Size

_BLOCK = re.compile(r"(blocks|layers)\.\d+")  # a ViT's blocks and a Swin's stages, by the names of their attributes


def forward_intermediates(
    model: Any,
    x: Array,
    indices: int | Sequence[int] | None,
    *,
    norm: bool,
    intermediates_only: bool,
    return_prefix_tokens: bool,
    stop_early: bool,
    rng: Rng,
) -> tuple[Any, Back]:
    """See `Model.forward_intermediates`."""
    model.check_input(x)
    if rng is not None:
        check_generator(rng)
    layers, first, norms = _encoder(model)
    chosen = [first + number for number in take_indices(len(layers) - first, indices)]
    if stop_early:
        layers = layers[: chosen[-1] + 1]
    p, grid = prefix_tokens(model.config), model.embed.grid(x.shape[2:])
    return_prefix_tokens = return_prefix_tokens and p > 0

    backs: list[Back] = []  # of the layers
    branches: dict[int, Back] = {}  # of the features that branch off behind a layer
    features: list[tuple[Array, ...]] = []  # (map,) or (map, prefix tokens)
    for number, layer in enumerate(layers):
        x, back_layer = layer(x) if rng is None else layer(x, rng)
        backs.append(back_layer)
        if number in chosen:
            both, branches[number] = _feature(x, norms[number] if norm else None, p, grid)
            features.append(both if return_prefix_tokens else both[:1])
    final, back_final = compose(x, norms[number])

    returned = [*([] if intermediates_only else [final]), *(part for parts in features for part in parts)]
    likes = [(type(part), part.shape, part.dtype) for part in returned]
    name, each = f"{type(model).__name__}.forward_intermediates", 1 + return_prefix_tokens

    @once
    def back(*gradients: Array | None) -> Array:
        _check_gradients(name, likes, gradients)
        left = list(gradients)
        dfinal = None if intermediates_only else left.pop(0)
        dx: Any = None if dfinal is None else back_final(dfinal)
        while backs:  # each frees its activations before the next one runs
            back_layer = backs.pop()
            branch = branches.pop(len(backs), None)
            if branch is not None:
                dx = _sum(dx, branch(*left[-each:]))
                del left[-each:]
            dx = None if dx is None else back_layer(dx)  # None: the gradients enter further down
        return dx

    back.name = name
    intermediates = features if return_prefix_tokens else [parts[0] for parts in features]
    return (intermediates if intermediates_only else (final, intermediates)), back


def take_indices(count: int, indices: int | Sequence[int] | None) -> list[int]:
    """The chosen ones of `count` blocks, in their order and each once.

    Args:
        indices: None for all, n for the last n, or their numbers; negative ones count from the end, as in timm.

    Raises:
        ValueError: for a number that is out of range, or no choice at all.
    """
    if not count:
        raise ValueError("the model has no blocks whose features could be taken: build it with depth >= 1")
    if indices is None:
        return list(range(count))
    several = hasattr(indices, "__iter__")
    given: Any = indices if several else [indices]
    try:
        numbers = [integer(each) for each in given]
    except TypeError:
        numbers = []
    if not numbers or isinstance(indices, bool):
        raise ValueError(f"indices={indices!r}: give None for all blocks, n for the last n, or a list of their numbers")
    if not several:
        last = numbers[0]
        if not 1 <= last <= count:
            raise ValueError(f"indices={last}, the last {last}: choose 1 to {count}, or give a list, [{last}]")
        return list(range(count - last, count))
    outside = [number for number in numbers if not -count <= number < count]
    if outside:
        raise ValueError(
            f"indices={numbers}: {outside[0]} is out of range, choose among 0 to {count - 1}, or -{count} to -1 from "
            "the end"
        )
    return sorted({number % count for number in numbers})


def _encoder(model: Any) -> tuple[list[Layer], int, list[Layer | None]]:
    """The layers up to the last block, the number of the first block, and for each layer the norm that fits it."""
    names = (name for name, _ in model.parts())
    named = [(name, layer) for name, layer in zip(names, model.before_pooling()) if name != "norm"]
    layers = [layer for _, layer in named]
    first = sum(not _BLOCK.fullmatch(name) for name, _ in named)
    fits_all = hasattr(model, "blocks")  # a Swin's norm has the width of its last stage
    norms = [model.norm if fits_all or number == len(layers) - 1 else None for number in range(len(layers))]
    return layers, first, norms


def _feature(x: Array, norm: Layer | None, p: int, grid: Size) -> tuple[tuple[Array, Array], Back]:
    """norm(x) as (map, prefix tokens).

    Args:
        x: tokens (B, T, D), or a Swin's map (B, H, W, D), whose p is 0.
        norm: or None.
        p: the number of prefix tokens.
        grid: (gh, gw), of tokens.

    Returns:
        (map (B, D, gh, gw), prefix tokens (B, p, D)), and the back of their gradients. Both are copies, because what
        the layers keep for the backward pass must not change with them.
    """
    xp, shape = array_module(x), x.shape
    grid = grid if x.ndim == 3 else shape[1:3]
    y, back_norm = compose(x, norm)
    tokens = y.reshape(shape[0], -1, shape[-1])  # (B, T, D)
    square = tokens[:, p:].reshape(shape[0], *grid, shape[-1])
    feature = xp.ascontiguousarray(square.transpose(0, 3, 1, 2))  # (B, D, gh, gw)

    @once
    def back(dmap: Array | None, dprefix: Array | None = None) -> Array | None:
        if dmap is None and dprefix is None:
            return None
        dtokens = xp.zeros(tokens.shape, tokens.dtype)
        if dmap is not None:
            dtokens[:, p:] = dmap.transpose(0, 2, 3, 1).reshape(dtokens[:, p:].shape)
        if dprefix is not None:
            dtokens[:, :p] = dprefix
        return back_norm(dtokens.reshape(shape))

    return (feature, tokens[:, :p].copy()), back


def _sum(one: Array | None, other: Array | None) -> Array | None:
    """The sum of two gradients, None being 0."""
    if one is None or other is None:
        return other if one is None else one
    return one + other


def _check_gradients(name: str, likes: list[Like], gradients: tuple[Array | None, ...]) -> None:
    if len(gradients) != len(likes):
        raise ValueError(
            f"{name}: back was called with {len(gradients)} gradients, but takes {len(likes)}, one for each returned "
            "array in order; None stands for an array without a gradient"
        )
    if all(each is None for each in gradients):
        raise ValueError(f"{name}: back was called without any gradient: give one for at least one returned array")
    for number, (each, like) in enumerate(zip(gradients, likes), 1):
        if each is not None:
            check_gradients(f"{name}, gradient {number} of {len(likes)}", [like], (each,))
