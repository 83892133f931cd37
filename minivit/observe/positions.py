"""The similarity of position vectors between the positions of the grid.

Notation: gh x gw the grid of patches, N = gh gw, p prefix tokens (class token), D channels.
"""

from __future__ import annotations

from typing import Any

from minivit.device import array_module
from minivit.models.options import patch_grid
from minivit.nn import Layer
from minivit.protocol import Array


def position_similarity(model: Layer) -> Array:
    """(gh, gw, gh, gw): the cosine between the position vectors of each two patches, from -1 to 1.

    `position_similarity(model)[y, x]` is the map of similarities to the position in row y and column x. Prefix tokens
    have no position in the grid and are omitted.

    Args:
        model: a ViT with positions of any kind but "none" and "relative", or a Swin with `ape=True`.

    Raises:
        ValueError: for a model that adds no vectors of positions, and for a vector of zeros, which has no direction.

    Source: Dosovitskiy et al. 2021, figure 7, in the middle.
    """
    table, grid = _table(model)
    vectors = table[table.shape[0] - grid[0] * grid[1] :]  # (N, D), after the rows of prefix tokens
    lengths = array_module(vectors).sqrt((vectors * vectors).sum(axis=1, keepdims=True))  # (N, 1)
    zero = int((lengths == 0).sum())
    if zero > 0:
        raise ValueError(f"{zero} of {len(vectors)} position vectors are all zeros, so no angle to them is defined")
    unit = vectors / lengths
    return (unit @ unit.T).reshape(*grid, *grid)  # (gh, gw, gh, gw)


def _table(model: Any) -> tuple[Array, tuple[int, int]]:
    """The vectors (p + N, D) that are added to the tokens, and gh x gw."""
    embed = getattr(model, "embed", None)
    positions = getattr(embed, "positions", None)
    config = getattr(model, "config", {})
    kind = config.get("pos_embed")
    why = f"pos_embed={kind!r}" if kind else "ape=False" if "ape" in config else "no positions in its embedding"
    if positions is None:
        raise ValueError(
            f"{type(model).__name__} with {why} adds no vector of position to its tokens, so there is nothing to "
            "compare: build a ViT with pos_embed='learned_1d', 'learned_2d', 'sincos_1d' or 'sincos_2d', or a Swin "
            "with ape=True (relative positions are a bias in attention: see attn.relative_position_bias_table)"
        )
    grid = patch_grid(config)
    return positions.table(grid)[0], grid
