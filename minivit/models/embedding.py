"""From images to the tokens that the blocks read: patches embedded, class token prepended, positions added.

ViT reads a sequence (`Tokens`), Swin a map (`MapTokens`).

Notation: B batch, C image channels, p prefix tokens (class token, distillation token, registers), N patches,
T = p + N tokens, gh x gw the grid of patches, D channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minivit import functional as F
from minivit.device import array_module
from minivit.fast.half import in_dtype_of, is_half
from minivit.nn import Layer, Parameter, PatchEmbed
from minivit.nn.init import normal
from minivit.protocol import Array, Back, Rng, once


class Tokens(Layer):
    """Images (B, C, H, W) -> tokens (B, T, D): patches embedded, prefix tokens prepended, positions added.

    Args:
        image: the model's (H, W).
        grid: (H, W) -> (gh, gw); see `options.patch_grid`.
        partial: images may have partial patches, which `grid` counts or drops.
        class_token, distilled: whether there is a class token, and a distillation token.
        registers: the number of register tokens.
        patch_embed: with a stem or without.
        positions: see `positions.py`, or None.
        drop: the dropout rate of the output.
        dynamic: accept images of other sizes.
        one_ratio: of these, only those whose grid has the model's ratio of sides, as attention infers it.
    """

    names_in_parent = True

    def __init__(
        self,
        *,
        image: tuple[int, int],
        grid: Callable[[tuple[int, int]], tuple[int, int]],
        class_token: bool,
        distilled: bool,
        registers: int,
        patch_embed: PatchEmbed,
        positions: Any,
        drop: float,
        dynamic: bool,
        partial: bool,
        one_ratio: bool = False,
        dtype: Any,
        rng: Rng,
    ) -> None:
        dim = patch_embed.proj.weight.shape[0]
        self.image, self.grid, self.dynamic, self.partial = image, grid, dynamic, partial
        self.one_ratio = one_ratio
        # the order of attributes is that of the parameters, as in timm; 1e-6 is timm's initial std of these tokens
        self.cls_token = Parameter(normal(rng, (1, 1, dim), 1e-6, dtype)) if class_token else None
        self.reg_token = Parameter(normal(rng, (1, registers, dim), 1e-6, dtype)) if registers else None
        self.positions = positions
        self.dist_token = Parameter(normal(rng, (1, 1, dim), 1e-6, dtype)) if distilled else None
        self.patch_embed = patch_embed
        self.drop = drop

    @property
    def prefix(self) -> list[Parameter]:
        """The prefix tokens: class token and distillation token (1, 1, D), registers (1, R, D)."""
        return [token for token in (self.cls_token, self.dist_token, self.reg_token) if token is not None]

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Back]:
        grid, prefix, xp = self._grid_of(x), self.prefix, array_module(x)
        padded, back_padded = (
            whole_patches(x, grid, self.patch_embed.proj.weight.shape[2:]) if self.partial else (x, None)
        )
        patches, back_patches = self.patch_embed(padded)  # (B, N, D)
        batch = len(patches)
        front = [xp.broadcast_to(in_dtype_of(patches, token.data), (batch, *token.shape[1:])) for token in prefix]
        tokens = xp.concatenate([*front, patches], axis=1)  # (B, T, D)
        placed, back_positions = add_positions(tokens, self.positions, grid)
        y, back_drop = F.dropout(placed, self.drop, rng)

        @once
        def back(dy: Array) -> Array:
            dtokens = back_positions(back_drop(dy))  # (B, T, D)
            start = 0
            for token in prefix:
                end = start + token.shape[1]
                # the same token for every image
                token.accumulate(_sum_over_batch(dtokens[:, start:end])[None])
                start = end
            dwhole = back_patches(dtokens[:, start:])
            return dwhole if back_padded is None else back_padded(dwhole)

        return y, back

    def _grid_of(self, x: Array) -> tuple[int, int]:
        if x.ndim != 4:
            raise ValueError(f"images must be (B, C, H, W), got shape {x.shape}")
        height, width = x.shape[2:]
        if not self.dynamic and (height, width) != self.image:
            raise ValueError(
                f"image {height}x{width} does not fit a model built for img_size {self.image[0]}x{self.image[1]}: "
                f"resize the images, or build it with img_size=({height}, {width}) or dynamic_img_size=True"
            )
        grid = self.grid((height, width))
        if self.one_ratio:
            own = self.grid(self.image)
            if grid[0] * own[1] != grid[1] * own[0]:
                raise ValueError(
                    f"image {height}x{width} has a grid of {grid[0]}x{grid[1]} patches, and a model with rotary "
                    f"positions of {own[0]}x{own[1]} takes those of its ratio of sides: build it with "
                    f"img_size=({height}, {width})"
                )
        return grid


def whole_patches(x: Array, grid: tuple[int, int], patch: tuple[int, ...]) -> tuple[Array, Back]:
    """Images (B, C, H, W) -> (B, C, gh Ph, gw Pw): partial patches that `grid` counts are padded, others dropped."""
    size = (grid[0] * patch[0], grid[1] * patch[1])
    fit = F.crop if size[0] <= x.shape[2] and size[1] <= x.shape[3] else F.pad
    return fit(x, size, (2, 3))


def add_positions(tokens: Array, positions: Any, grid: tuple[int, int]) -> tuple[Array, Back]:
    """tokens (B, T, D) + a table (T, D), the same for every image, so its gradient is a sum over the batch."""
    if positions is None:
        return tokens, once(lambda dy: dy)
    table, back_table = positions.table(grid)

    @once
    def back(dy: Array) -> Array:
        back_table(_sum_over_batch(dy))
        return dy

    return tokens + in_dtype_of(tokens, table), back


def _sum_over_batch(dy: Array) -> Array:
    """The gradient of what is the same for every image; float32 where dy has half precision."""
    return dy.sum(axis=0, dtype=np.float32 if is_half(dy.dtype) else None)


class MapTokens(Layer):
    """Images (B, C, H, W) of any size -> a map of tokens (B, gh, gw, D), positions added.

    Args:
        grid: (H, W) -> (gh, gw), which decides whether a partial patch is padded or dropped; see `options.patch_grid`.
        patch_embed, positions, drop: as of `Tokens`.
    """

    names_in_parent = True

    def __init__(
        self,
        grid: Callable[[tuple[int, int]], tuple[int, int]],
        patch_embed: PatchEmbed,
        positions: Any,
        drop: float,
    ) -> None:
        self.grid, self.drop = grid, drop
        self.positions = positions
        self.patch_embed = patch_embed

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Back]:
        if x.ndim != 4:
            raise ValueError(f"images must be (B, C, H, W), got shape {x.shape}")
        if min(x.shape[2:]) < 1:
            raise ValueError(f"images of shape {x.shape} have no pixels")
        grid, patch = self.grid(x.shape[2:]), self.patch_embed.proj.weight.shape[2:]
        padded, back_padded = whole_patches(x, grid, patch)  # (B, C, gh Ph, gw Pw)
        patches, back_patches = self.patch_embed(padded)  # (B, N, D)
        batch, tokens, dim = patches.shape
        placed, back_positions = add_positions(patches, self.positions, grid)
        y, back_drop = F.dropout(placed, self.drop, rng)

        @once
        def back(dy: Array) -> Array:
            dpatches = back_positions(back_drop(dy.reshape(batch, tokens, dim)))
            return back_padded(back_patches(dpatches))

        return y.reshape(batch, *grid, dim), back
