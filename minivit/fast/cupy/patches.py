"""Patches cut from an image, and put together again, in one launch of 16 bytes a thread; kernels/patches.cu."""

from __future__ import annotations

import cupy
import numpy as np

from minivit import functional as F
from minivit.fast.cupy.add import chunk
from minivit.fast.cupy.launch import element_grid, launch
from minivit.protocol import Array, Back, once
from minivit.sizes import Size, pair


def patchify(images: Array, patch_size: int | Size) -> tuple[Array, Back]:
    """The backward pass is the move of `unpatchify`."""
    if not images.size:
        return F.patchify.plain(images, patch_size)
    _, channels, height, width = images.shape
    patch = pair(patch_size)
    grid = (height // patch[0], width // patch[1])
    return _move(images, channels, grid, patch, True), once(lambda dy: _move(dy, channels, grid, patch, False))


def unpatchify(rows: Array, patch_size: int | Size, grid: Size) -> tuple[Array, Back]:
    """The backward pass is the move of `patchify`."""
    if not rows.size:
        return F.unpatchify.plain(rows, patch_size, grid)
    patch = pair(patch_size)
    channels = rows.shape[2] // (patch[0] * patch[1])
    return _move(rows, channels, grid, patch, False), once(lambda dy: _move(dy, channels, grid, patch, True))


def _move(x: Array, channels: int, grid: Size, patch: Size, to_rows: bool) -> Array:
    image = (len(x), channels, grid[0] * patch[0], grid[1] * patch[1])
    rows = (len(x), grid[0] * grid[1], channels * patch[0] * patch[1])
    x, y = cupy.ascontiguousarray(x), cupy.empty(rows if to_rows else image, x.dtype)
    lanes = chunk(x.dtype, patch[1], x, y)
    launch(
        "patches", "move_patches", x.dtype, *element_grid(y.size // lanes), x, y, np.uint32(y.size // lanes), channels,
        *grid, patch[0], patch[1] // lanes, to_rows, CHUNKED=int(lanes > 1),
    )  # fmt: skip
    return y
