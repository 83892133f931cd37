"""Bilinear warping of a batch by affine maps: four gathers, no loop over images or pixels.

The maps are inverted on the host; images on a GPU are warped there, with the same bits.
"""

# Notation: B images in the batch, C channels, H height, W width.

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from minivit.device import array_module, constant

Array: TypeAlias = NDArray[Any]

# Values in one chunk. Index arrays then stay below 128 KiB, above which malloc fetches fresh
# pages for every temporary: 128 digits of 28x28 take 1.4 ms, and 4.0 ms in one chunk (one core).
GROUP = 16_000


def warp(images: Array, matrix: Array, move: Array, fill: float = 0.0) -> Array:
    """Map each image by p -> matrix p + move, p = (y, x) in pixels from the image's center.

    Args:
        images: (B, C, H, W), floating or uint8 (computed in float32, rounded).
        matrix: (B, 2, 2), invertible; rows and columns in the order (y, x), y pointing down.
        move: (B, 2) in pixels, (y, x).
        fill: value outside the image; blended with the outermost pixels over one pixel's width.

    Returns:
        A new array (B, C, H, W) of the same dtype.

    Raises:
        numpy.linalg.LinAlgError: a matrix has no inverse.
    """
    B, C, H, W = images.shape
    dtype = np.result_type(images.dtype, np.float32)  # float16 is too coarse for coordinates
    xp = array_module(images)
    step = max(1, GROUP // max(1, C * H * W)) if xp is np else max(1, B)  # a GPU has no such cache
    out = xp.empty_like(images, order="C")
    for start in range(0, B, step):
        part = slice(start, start + step)
        y, x = _sources(matrix[part], move[part], H, W, dtype, images)  # (step, H, W), in padded pixels
        values = _bilinear(_pad(images[part], fill, dtype), y, x)
        out[part] = values if images.dtype.kind == "f" else xp.rint(values, out=values)
    return out


def _sources(matrix: Array, move: Array, H: int, W: int, dtype: np.dtype[Any], like: Array) -> tuple[Array, Array]:
    """The source of each output pixel: rows and columns (B, H, W) of the padded image, in the library of `like`."""
    inverse = np.linalg.inv(matrix)  # (B, 2, 2)
    center = np.array([(H - 1) / 2, (W - 1) / 2])
    # A pixel's source is inverse (p - center - move) + center, + 1 for the padding.
    offset = center + 1 - np.einsum("bij,bj->bi", inverse, center + move)  # (B, 2)
    sources = []
    for axis, length in enumerate((H, W)):
        rows = inverse[:, axis, 0, None] * np.arange(H) + offset[:, axis, None]  # (B, H)
        columns = inverse[:, axis, 1, None] * np.arange(W)  # (B, W)
        rows, columns = constant(rows.astype(dtype), like), constant(columns.astype(dtype), like)
        source = rows[:, :, None] + columns[:, None, :]  # (B, H, W)
        # Pixels beyond the border read fill: the padding is 1 pixel before and 2 after, so
        # that the pixel at length + 1 has a right-hand neighbor.
        sources.append(array_module(like).clip(source, 0, length + 1, out=source))
    return sources[0], sources[1]


def _pad(images: Array, fill: float, dtype: np.dtype[Any]) -> Array:
    B, C, H, W = images.shape
    padded: Array = array_module(images).full((B, C, H + 3, W + 3), fill, dtype)
    padded[:, :, 1 : H + 1, 1 : W + 1] = images
    return padded


def _bilinear(padded: Array, y: Array, x: Array) -> Array:
    """Sample padded images (B, C, h, w) at rows y and columns x (B, H, W), none below 0."""
    B, C, h, w = padded.shape
    top, left = y.astype(np.intp), x.astype(np.intp)  # truncation is floor: none is negative
    dy, dx = (y - top).astype(y.dtype)[:, None], (x - left).astype(x.dtype)[:, None]
    planes = constant(np.arange(B * C).reshape(B, C, 1, 1) * (h * w), padded)
    index = planes + (top * w + left)[:, None]  # (B, C, H, W), into the flat array
    flat = padded.reshape(-1)
    upper: Array = flat.take(index)
    lower: Array = flat[w:].take(index)
    upper += dx * (flat[1:].take(index) - upper)
    lower += dx * (flat[w + 1 :].take(index) - lower)
    lower -= upper
    lower *= dy
    upper += lower
    return upper
