"""What the features of a model distinguish: patches as colors, the attention of each prefix token, and near images.

Notation: B images, D channels, gh x gw the grid of patches, N = B gh gw patches, H heads, n embeddings.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import numpy as np

from minivit import functional as F
from minivit.device import to_numpy
from minivit.models import Model, ViT
from minivit.observe.attention import attention_weights, block_names, head_maps, prefix_tokens
from minivit.protocol import Array

_TOKENS = {"cls_token": "class token", "dist_token": "distillation token", "reg_token": "register"}
_OUTLIERS = 1.0  # percent at either end of a component that share the end of its color range


class PatchColors(NamedTuple):
    """The first three principal components of patches as colors.

    Attributes:
        colors: (B, gh, gw, 3), shares of red, green and blue; NaN for patches of the background.
        shares: (3,), of the variance of the colored patches in each component.
    """

    colors: Array
    shares: Array

    def __repr__(self) -> str:
        return f"PatchColors(colors {self.colors.shape}, shares {', '.join(f'{each:.1%}' for each in self.shares)})"


def patch_colors(maps: Array, *, foreground: bool = False) -> PatchColors:
    """The colors of patches whose features differ most: one principal component each for red, green and blue.

    With the features X (N, D) less their mean, and X = U S V^T, the components are X V = U S. They are computed over
    all images together, so that equal colors mean similar features in all of them. A component's range becomes a
    color's, 0 to 1, without the outermost percent at either end.

    Args:
        maps: (B, D, gh, gw), as `model.forward_intermediates` returns for one block.
        foreground: color only the patches on one side of the mean in the first component, by components of these
            patches alone. It is the side that has fewer patches at the borders of the images.

    Source: Oquab et al. 2023, DINOv2, section 7.5 and figure 1; there it is the positive side.

    Raises:
        ValueError: for another shape, or fewer than two patches.
    """
    maps = to_numpy(maps)
    if maps.ndim != 4 or len(maps) * maps.shape[2] * maps.shape[3] < 2:
        raise ValueError(f"maps must be (B, D, gh, gw) with two patches or more, got shape {maps.shape}")
    shape = (len(maps), *maps.shape[2:])
    x = maps.transpose(0, 2, 3, 1).reshape(-1, maps.shape[1])  # (N, D)
    kept = np.ones(len(x), dtype=bool)
    if foreground:
        kept = _inner_side(principal_components(x, 1)[0][:, 0].reshape(shape)).reshape(-1)
        if kept.sum() < 2:
            raise ValueError("fewer than two patches are in the foreground: leave foreground out")
    components, shares = principal_components(x[kept], 3)
    low, high = np.percentile(components, (_OUTLIERS, 100 - _OUTLIERS), axis=0)
    colors = np.full((len(x), 3), np.nan, dtype=np.float64)
    colors[kept] = np.clip((components - low) / np.where(high > low, high - low, 1), 0, 1)
    return PatchColors(colors.reshape(*shape, 3), shares)


def principal_components(x: Array, count: int) -> tuple[Array, Array]:
    """The first components (N, count) of the rows of x (N, D), and their shares (count,) of the variance.

    A component's sign is that which makes its largest weight positive. Components beyond the rank of x, where only its
    rounding would show, are 0.
    """
    rounding = 4 * float(np.finfo(x.dtype).eps) * float(np.linalg.norm(x))
    centered = x.astype(np.float64) - x.mean(axis=0, dtype=np.float64)
    u, s, vt = np.linalg.svd(centered, full_matrices=False)  # (N, r), (r,), (r, D)
    r = min(count, int((s > rounding).sum()))
    signs = np.sign(vt[np.arange(r), np.abs(vt[:r]).argmax(axis=1)])
    components, shares = np.zeros((len(x), count), np.float64), np.zeros(count, np.float64)
    components[:, :r] = u[:, :r] * s[:r] * signs
    shares[:r] = s[:r] ** 2 / (s**2).sum()
    return components, shares


def _inner_side(component: Array) -> Array:
    """(B, gh, gw) bool: the patches on the side of 0 that has fewer of them at the borders, relative to its number."""
    border = np.ones(component.shape[1:], dtype=bool)
    border[1:-1, 1:-1] = False
    sides = (component > 0, component <= 0)
    return min(sides, key=lambda side: (side & border).sum() / max(1, side.sum()))


def token_attention(model: Model, images: Array, block: int = -1) -> dict[str, Array]:
    """The attention of each prefix token to the patches, (B, H, gh, gw) by the token's name.

    The names are "class token", "distillation token" and, of a model with registers, "register 1", "register 2", ...
    Also where the head does not read a token, and the last block of a forward pass leaves it out. A model without such
    tokens has one entry, "all patches": the mean over the patches, in a Swin over those of a window (`head_maps`).

    Args:
        model: ViT or Swin.
        images: (B, C, H, W) of the model's dtype.
        block: its number, negative from the end; a Swin's blocks are counted through all stages.

    Raises:
        ValueError: for a block that the model lacks, and images that do not fit.
    """
    count = len(block_names(model))
    if not -count <= block < count:
        raise ValueError(f"block={block}: the model has {count} blocks, 0 to {count - 1}")
    p = prefix_tokens(model)
    if not isinstance(model, ViT) or not p:
        return {"all patches": head_maps(model, images)[block]}
    weights = attention_weights(_with_every_query(model), images)[block].weights  # (B, H, T, T)
    grid = model.embed.grid(images.shape[2:])
    maps = weights[:, :, :p, p:].reshape(*weights.shape[:2], p, *grid)
    return {name: maps[:, :, number] for number, name in enumerate(_token_names(model))}


def _with_every_query(model: ViT) -> ViT:
    """The model, on the same parameters, whose last block has a query for every token."""
    complete = copy.copy(model)
    last = next(layer for layer in reversed(model.before_pooling()) if layer is not model.norm)
    complete.blocks = [*model.blocks[:-1], last]
    return complete


def _token_names(model: ViT) -> list[str]:
    names = []
    for attribute, name in _TOKENS.items():
        token = getattr(model.embed, attribute, None)
        if token is not None:
            several = attribute == "reg_token"
            names += [f"{name} {number + 1}" if several else name for number in range(token.shape[1])]
    return names


def nearest_embeddings(query: Array, embeddings: Array, count: int) -> tuple[Array, Array]:
    """The indices (m,) of the embeddings that are nearest to a query, and their cosines (m,), the nearest first.

    Args:
        query: (D,), such as a row of `model.features`.
        embeddings: (n, D).
        count: how many; m is at most n.

    Raises:
        ValueError: for shapes that do not fit.
    """
    if query.ndim != 1 or embeddings.ndim != 2 or embeddings.shape[1] != len(query):
        raise ValueError(f"query must be (D,) and embeddings (n, D), got {query.shape} and {embeddings.shape}")
    (known, _), (asked, _) = F.normalize(to_numpy(embeddings)), F.normalize(to_numpy(query)[None])
    cosines = (known @ asked.T)[:, 0]
    nearest = np.argsort(-cosines, kind="stable")[:count]
    return nearest, cosines[nearest]
