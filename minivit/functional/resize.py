"""Resizing a grid of vectors (position tables, images) as two explicit matrices, one for each axis.

y = A_h x A_w^T is linear, so its backward pass is A_h^T dy A_w, and the matrices show its properties: rows
sum to 1 (constants stay constant), and an unchanged size gives the identity.
"""

from __future__ import annotations

import numpy as np

from minivit.device import array_module
from minivit.protocol import Array, Back, once

# Keys 1981, the cubic kernel's free parameter: -0.5 (third-order exact) with antialiasing, as Pillow and PyTorch's
# antialias mode use, and -0.75 without, as OpenCV and PyTorch's plain bicubic use.
_CUBIC_ANTIALIASED, _CUBIC_PLAIN = -0.5, -0.75


def resize_matrix(
    source: int,
    target: int,
    mode: str = "bicubic",
    antialias: bool = True,
    align_corners: bool = False,
    offset: float = 0.0,
) -> Array:
    """The matrix (target, source), float64, that resamples a line of `source` points to `target` points.

    Args:
        mode: "bicubic" or "bilinear".
        antialias: when downsampling, widen the kernel to the new spacing, so that every source point counts.
        align_corners: align the centers of the first and the last points, instead of the outer edges of their
            pixels; without antialiasing only.
        offset: added to `target` in the ratio of the spacings, as DINO's code does by a `scale_factor`; without
            antialiasing and aligned corners only.

    Both follow torch.nn.functional.interpolate. Beyond the ends, the kernel without antialiasing repeats the last
    point; the antialiased kernel drops the missing points and rescales.
    """
    if mode not in ("bicubic", "bilinear"):
        raise ValueError(f"resize: mode={mode!r}: choose 'bicubic' or 'bilinear'")
    if source < 1 or target < 1:
        raise ValueError(f"resize: cannot resample {source} points to {target}: both must be positive")
    if align_corners and antialias:
        raise ValueError("resize: align_corners=True needs antialias=False")
    if offset and (antialias or align_corners):
        raise ValueError("resize: offset needs antialias=False and align_corners=False")
    ratio = source / (target + offset)
    width = max(ratio, 1.0) if antialias else 1.0  # of the kernel, in source points
    reach = 2 if mode == "bicubic" else 1
    center = np.linspace(0, source - 1, target) if align_corners else (np.arange(target) + 0.5) * ratio - 0.5
    span = int(np.ceil(reach * width)) + 1
    points = np.floor(center)[:, None].astype(np.int64) + np.arange(-span, span + 1)  # (target, 2 span + 1)
    distance = (points - center[:, None]) / width
    if mode == "bicubic":
        weights = _cubic(distance, _CUBIC_ANTIALIASED if antialias else _CUBIC_PLAIN)
    else:
        weights = np.maximum(1 - np.abs(distance), 0)
    if antialias:
        weights = np.where((points < 0) | (points >= source), 0, weights)
        weights = weights / weights.sum(axis=1, keepdims=True)
    one_hot = np.clip(points, 0, source - 1)[..., None] == np.arange(source)  # (target, 2 span + 1, source)
    return (weights[..., None] * one_hot).sum(axis=1)


def _cubic(x: Array, a: float) -> Array:
    """The cubic convolution kernel of Keys 1981: 1 at 0, 0 at the other integers, 0 beyond 2."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def resize_grid(
    x: Array,
    size: tuple[int, int],
    mode: str = "bicubic",
    antialias: bool = True,
    align_corners: bool = False,
    offset: float = 0.0,
) -> tuple[Array, Back]:
    """A grid of vectors x (h, w, D) resampled to (h', w', D). Returns y, and vjp(dy) -> dx."""
    how = (mode, antialias, align_corners, offset)
    rows, columns = (resize_matrix(x.shape[axis], size[axis], *how) for axis in (0, 1))
    return _resample(x, rows, columns, "ij,jkd,lk->ild")


def resize_images(
    x: Array, size: tuple[int, int], mode: str = "bicubic", antialias: bool = True, align_corners: bool = False
) -> tuple[Array, Back]:
    """Images x (B, C, h, w) resampled to (B, C, h', w'). Returns y, and vjp(dy) -> dx."""
    rows, columns = (resize_matrix(x.shape[2 + axis], size[axis], mode, antialias, align_corners) for axis in (0, 1))
    return _resample(x, rows, columns, "ij,bcjk,lk->bcil")


def _resample(x: Array, rows: Array, columns: Array, forward: str) -> tuple[Array, Back]:
    """A_h x A_w^T as an einsum, A_h (h', h) and A_w (w', w); the backward pass uses the transposed matrices."""
    xp = array_module(x)
    rows, columns = (xp.asarray(matrix.astype(x.dtype)) for matrix in (rows, columns))
    operands, result = forward.split("->")
    left, middle, right = operands.split(",")

    @once
    def vjp(dy: Array) -> Array:
        return xp.einsum(f"{left},{result},{right}->{middle}", rows, dy, columns)

    return xp.einsum(forward, rows, x, columns), vjp
