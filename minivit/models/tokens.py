"""From images to the tokens that the blocks read: patches embedded, class token put in front, positions added.

ViT reads a sequence (`Tokens`), Swin a map (`MapTokens`).

Alphabet: B batch, C image channels, p prefix tokens (class token, distillation token), N patches, T = p + N tokens,
gh x gw the grid of patches, D channels. Next: `heads.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minivit import functional as F
from minivit.backend import array_module, kernels
from minivit.functional.permutations import pair
from minivit.models.resnet import map_size
from minivit.nn import Layer, Param, PatchEmbed
from minivit.nn.init import normal
from minivit.protocol import Array, Back, once, refuse


def patch_grid(config: dict[str, Any], size: Any = None) -> tuple[int, int]:
    """(gh, gw): the grid of patches that a model cuts an image (H, W) into; a partial patch counts whole.

    Args:
        config: the model's, a ViT's or a Swin's.
        size: of the image, a number or a pair; None is the one that the model was built for.
    """
    image, layers = pair(config["img_size"] if size is None else size), config.get("resnet_layers")
    cut, patch = image if layers is None else map_size(image, layers), pair(config["patch_size"])
    return -(-cut[0] // patch[0]), -(-cut[1] // patch[1])


class Tokens(Layer):
    """Images (B, C, H, W) -> tokens (B, T, D): patches embedded, prefix tokens put in front, positions added.

    Args:
        image: the (H, W) that the model is built for.
        grid: (H, W) -> (gh, gw); see `patch_grid`.
        prefix_names: of the parameters that are put in front.
        patch_embed: with a stem or without.
        positions: see `positions.py`, or None.
        drop: the dropout rate of what comes out.
        dynamic: take other images than (H, W).
    """

    names_in_parent = True

    def __init__(
        self,
        image: tuple[int, int],
        grid: Callable[[tuple[int, int]], tuple[int, int]],
        prefix_names: list[str],
        patch_embed: PatchEmbed,
        positions: Any,
        drop: float,
        dynamic: bool,
        dtype: Any,
        rng: Any,
    ) -> None:
        dim = patch_embed.proj.weight.shape[0]
        self.image, self.grid, self.prefix_names, self.dynamic = image, grid, prefix_names, dynamic
        # the order of attributes is the order of parameters, and timm's: class token, positions, distillation token
        for name in prefix_names[:1]:
            setattr(self, name, Param(normal(rng, (1, 1, dim), 1e-6, dtype)))  # 1e-6: timm's start of the class token
        self.positions = positions
        for name in prefix_names[1:]:
            setattr(self, name, Param(normal(rng, (1, 1, dim), 1e-6, dtype)))
        self.patch_embed = patch_embed
        self.drop = drop

    def forward(self, x: Array, rng: Any = None) -> tuple[Array, Back]:
        grid = self._grid_of(x)
        patches, back_patches = self.patch_embed(x)  # (B, N, D)
        prefix, dim = self._prefix(), patches.shape[2]
        table, back_table = self.positions.table(grid) if self.positions else (None, None)  # (T, D)
        y, back_drop = F.dropout(_placed(patches, prefix, table), self.drop, rng)

        @once
        def back(dy: Array) -> Array:
            dtokens = back_drop(dy)  # (B, T, D)
            batch, tokens, _ = dtokens.shape
            # the same table and prefix were added to every image, so their gradients are sums over the batch
            dtable = kernels(dtokens).sum_rows(dtokens.reshape(batch, tokens * dim)).reshape(tokens, dim)
            for place, token in enumerate(prefix):
                token.accumulate(dtable[place].reshape(1, 1, dim))
            if back_table is not None:
                back_table(dtable)
            return back_patches(dtokens[:, len(prefix) :])

        return y, back

    def infer(self, x: Array, **context: Any) -> Array:
        grid = self._grid_of(x)
        table = self.positions.table(grid)[0] if self.positions else None
        return _placed(self.patch_embed.infer(x), self._prefix(), table)

    def _prefix(self) -> list[Param]:
        return [getattr(self, name) for name in self.prefix_names]

    def macs(self, shape: tuple[int, ...]) -> int:
        return self.patch_embed.macs(shape)

    def _grid_of(self, x: Array) -> tuple[int, int]:
        refuse(x.ndim != 4, f"images must be (B, C, H, W), got shape {x.shape}")
        height, width = x.shape[2:]
        refuse(
            not self.dynamic and (height, width) != self.image,
            f"image {height}x{width} does not fit a model built for img_size {self.image[0]}x{self.image[1]}: "
            f"resize the images, or build it with img_size=({height}, {width}) or dynamic_img_size=True",
        )
        return self.grid((height, width))


def _placed(patches: Array, prefix: list[Param], table: Array | None) -> Array:
    """(B, N, D) -> (B, T, D): the prefix in front of each image's patches, and the positions (T, D) added."""
    xp, (batch, _, dim) = array_module(patches), patches.shape
    joined = xp.concatenate([xp.broadcast_to(token.data, (batch, 1, dim)) for token in prefix] + [patches], axis=1)
    return joined if table is None else joined + table


class MapTokens(Layer):
    """Images (B, C, H, W) of any size -> a map of tokens (B, gh, gw, D); a last partial patch is padded with zeros."""

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

    def forward(self, x: Array, rng: Any = None) -> tuple[Array, Back]:
        refuse(x.ndim != 4, f"images must be (B, C, H, W), got shape {x.shape}")
        refuse(min(x.shape[2:]) < 1, f"images of shape {x.shape} have no pixels")
        grid, patch = self.grid(x.shape[2:]), self.patch_embed.proj.weight.shape[2:]
        padded, back_pad = F.pad(x, (grid[0] * patch[0], grid[1] * patch[1]), (2, 3))
        patches, back_patches = self.patch_embed(padded)  # (B, N, D)
        batch, tokens, dim = patches.shape
        table, back_table = self.positions.table(grid) if self.positions else (None, None)  # (N, D)
        placed = patches if table is None else patches + table
        y, back_drop = F.dropout(placed, self.drop, rng)

        @once
        def back(dy: Array) -> Array:
            dtokens = back_drop(dy.reshape(batch, tokens, dim))
            if back_table is not None:
                back_table(kernels(dtokens).sum_rows(dtokens.reshape(batch, tokens * dim)).reshape(tokens, dim))
            return back_pad(back_patches(dtokens))

        return y.reshape(batch, *grid, dim), back

    def macs(self, shape: tuple[int, ...]) -> int:
        """Multiply-adds for images (B, C, H, W)."""
        batch, _, height, width = shape
        grid = self.grid((height, width))
        return batch * grid[0] * grid[1] * self.patch_embed.proj.weight.size
