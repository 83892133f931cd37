"""From images to the tokens that the blocks read: patches embedded, class token put in front, positions added.

ViT reads a sequence (`Tokens`), Swin a map (`MapTokens`).

Alphabet: B batch, C image channels, p prefix tokens (class token, distillation token), N patches, T = p + N tokens,
gh x gw the grid of patches, D channels. Next: `heads.py`.
"""

from __future__ import annotations

from typing import Any

from minivit import functional as F
from minivit.backend import array_module, kernels
from minivit.nn import Layer, Param, PatchEmbed
from minivit.nn.init import normal
from minivit.protocol import Array, Back, once, refuse


class Tokens(Layer):
    """Images (B, C, H, W) -> tokens (B, T, D): patches embedded, prefix tokens put in front, positions added."""

    names_in_parent = True

    def __init__(
        self,
        image: tuple[int, int],
        patch: tuple[int, int],
        prefix_names: list[str],
        patch_embed: PatchEmbed,
        positions: Any,
        drop: float,
        dynamic: bool,
        dtype: Any,
        rng: Any,
    ) -> None:
        dim = patch_embed.proj.weight.shape[0]
        self.image, self.patch, self.prefix_names, self.dynamic = image, patch, prefix_names, dynamic
        # the order of attributes is the order of parameters, and timm's: class token, positions, distillation token
        for name in prefix_names[:1]:
            setattr(self, name, Param(normal(rng, (1, 1, dim), 1e-6, dtype)))  # 1e-6: timm's start of the class token
        self.positions = positions
        for name in prefix_names[1:]:
            setattr(self, name, Param(normal(rng, (1, 1, dim), 1e-6, dtype)))
        self.patch_embed = patch_embed
        self.drop = drop

    def forward(self, x: Array, rng: Any = None) -> tuple[Array, Back]:
        grid = self._grid(x)
        xp, batch = array_module(x), x.shape[0]
        patches, back_patches = self.patch_embed(x)  # (B, N, D)
        dim = patches.shape[2]
        prefix = [getattr(self, name) for name in self.prefix_names]
        p = len(prefix)
        joined = xp.concatenate([xp.broadcast_to(token.data, (batch, 1, dim)) for token in prefix] + [patches], axis=1)
        table, back_table = self.positions.table(grid) if self.positions else (None, None)  # (T, D)
        placed = joined if table is None else joined + table
        y, back_drop = F.dropout(placed, self.drop, rng)

        @once
        def back(dy: Array) -> Array:
            dtokens = back_drop(dy)  # (B, T, D)
            tokens = dtokens.shape[1]
            # the same table and prefix were added to every image, so their gradients are sums over the batch
            dtable = kernels(dtokens).sum_rows(dtokens.reshape(batch, tokens * dim)).reshape(tokens, dim)
            for place, token in enumerate(prefix):
                token.accumulate(dtable[place].reshape(1, 1, dim))
            if back_table is not None:
                back_table(dtable)
            return back_patches(dtokens[:, p:])

        return y, back

    def macs(self, shape: tuple[int, ...]) -> int:
        return self.patch_embed.macs(shape)

    def _grid(self, x: Array) -> tuple[int, int]:
        refuse(x.ndim != 4, f"images must be (B, C, H, W), got shape {x.shape}")
        height, width = x.shape[2:]
        refuse(
            not self.dynamic and (height, width) != self.image,
            f"image {height}x{width} does not fit a model built for img_size {self.image[0]}x{self.image[1]}: "
            f"resize the images, or build it with img_size=({height}, {width}) or dynamic_img_size=True",
        )
        return height // self.patch[0], width // self.patch[1]


class MapTokens(Layer):
    """Images (B, C, H, W) of any size -> a map of tokens (B, gh, gw, D); a last partial patch is padded with zeros."""

    names_in_parent = True

    def __init__(self, patch: tuple[int, int], patch_embed: PatchEmbed, positions: Any, drop: float) -> None:
        self.patch, self.drop = patch, drop
        self.positions = positions
        self.patch_embed = patch_embed

    def forward(self, x: Array, rng: Any = None) -> tuple[Array, Back]:
        refuse(x.ndim != 4, f"images must be (B, C, H, W), got shape {x.shape}")
        refuse(min(x.shape[2:]) < 1, f"images of shape {x.shape} have no pixels")
        grid = self.grid(*x.shape[2:])
        padded, back_pad = F.pad(x, (grid[0] * self.patch[0], grid[1] * self.patch[1]), (2, 3))
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

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """gh x gw, a partial patch counted whole."""
        return -(-height // self.patch[0]), -(-width // self.patch[1])

    def macs(self, shape: tuple[int, ...]) -> int:
        """Multiply-adds for images (B, C, H, W)."""
        batch, _, height, width = shape
        grid = self.grid(height, width)
        return batch * grid[0] * grid[1] * self.patch_embed.proj.weight.size
