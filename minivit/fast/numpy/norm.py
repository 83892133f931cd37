"""Norms over rows: reused buffers, sums as products with ones, and rows where the plain formula overflows."""

from __future__ import annotations

from math import prod

import numpy as np

from minivit.fast.numpy.linear import sum_rows
from minivit.functional.norm import by_channel
from minivit.protocol import Array, Back, once


def layer_norm(x: Array, weight: Array | None, bias: Array | None, eps: float = 1e-6) -> tuple[Array, Back]:
    """Also correct for rows near 1e20, whose squares overflow, and for a mean much larger than the spread."""
    shape = x.shape  # `back` must not hold x itself
    rows = x.reshape(prod(shape[:-1]), shape[-1])  # (R, D)
    xhat, rstd = normalize_rows(rows, eps)  # (R, D), (R, 1)
    y = xhat if weight is None else xhat * weight
    if bias is not None:
        y = y + bias if y is xhat else np.add(y, bias, out=y)

    @once
    def vjp(dy: Array) -> tuple[Array, Array | None, Array | None]:
        drows = dy.reshape(xhat.shape)
        dweight = None if weight is None else np.einsum("ij,ij->j", drows, xhat)  # without the product in memory
        dbias = None if bias is None else sum_rows(drows)
        dx = normalize_rows_backward(drows if weight is None else drows * weight, xhat, rstd)
        return dx.reshape(shape), dweight, dbias

    return y.reshape(shape), vjp


def normalize_rows(x: Array, eps: float, out: Array | None = None) -> tuple[Array, Array]:
    """Rows of x (R, D) shifted to mean 0 and scaled to variance 1: xhat (R, D) and 1/std (R, 1).

    The variance is the mean square of the centered row (two passes; E[x^2] - mean^2 cancels), biased, plus eps.
    """
    width = x.shape[1]
    average = np.full((width, 1), 1 / width, x.dtype)
    with np.errstate(over="ignore", invalid="ignore"):  # such rows are treated below
        mean = x @ average
        xhat = np.subtract(x, mean, out=out)
        variance = np.einsum("ij,ij->i", xhat, xhat)[:, None] / width
        hard = ~np.isfinite(variance.real) | (variance.real < 1e-6 * mean.real**2)
    rows = hard[:, 0]
    shrink = None
    if rows.any():
        xhat[rows], variance[rows], shrink = _center_carefully(x[rows])
    variance += eps
    rstd = np.reciprocal(np.sqrt(variance, out=variance), out=variance)
    xhat *= rstd
    if shrink is not None:
        rstd[rows] *= shrink
    return xhat, rstd


def _center_carefully(x: Array) -> tuple[Array, Array, Array]:
    """Centered rows and variances where the plain formula overflows (values near 1e20) or cancels (mean >> spread).

    Rows too large to square are first scaled by `shrink`, a factor (R, 1) that is 1 for the others; eps is negligible
    relative to their variance. The first element is subtracted first, so that a constant row comes out exactly 0.
    """
    size = np.abs(x).max(axis=1, keepdims=True)
    limit = np.finfo(x.dtype).max ** 0.5 / (4 * x.shape[1])
    shrink = np.where(size > limit, limit / np.maximum(size, limit), 1).astype(size.dtype)
    centered = x * shrink
    centered -= centered[:, :1].copy()
    centered -= centered.mean(axis=1, keepdims=True)
    return centered, (centered * centered).mean(axis=1, keepdims=True), shrink


def normalize_rows_backward(dxhat: Array, xhat: Array, rstd: Array) -> Array:
    """dx = rstd (dxhat - mean(dxhat) - xhat mean(dxhat xhat)), row by row."""
    width = xhat.shape[1]
    average = np.full((width, 1), 1 / width, xhat.dtype)
    along = np.einsum("ij,ij->i", dxhat, xhat)[:, None]
    along /= width
    dx = xhat * along
    np.subtract(dxhat, dx, out=dx)
    dx -= dxhat @ average
    dx *= rstd
    return dx


def group_norm(
    x: Array, groups: int, weight: Array | None, bias: Array | None, eps: float = 1e-5
) -> tuple[Array, Back]:
    """A group is one row; gain and offset are applied in place, and dweight is summed without the product in memory."""
    shape, maps = x.shape, (*x.shape[:2], prod(x.shape[2:]))  # (B, C, S)
    rows = (len(x) * groups, maps[1] // groups * maps[2])  # (B G, C/G S)
    xhat, rstd = normalize_rows(x.reshape(rows), eps)
    y = xhat.reshape(maps).copy()
    if weight is not None:
        y *= by_channel(weight)
    if bias is not None:
        y += by_channel(bias)

    @once
    def vjp(dy: Array) -> tuple[Array, Array | None, Array | None]:
        dy = dy.reshape(maps)
        dweight = None if weight is None else np.einsum("bcs,bcs->c", dy, xhat.reshape(maps))  # (C,)
        dbias = None if bias is None else dy.sum(axis=(0, 2))  # (C,)
        dxhat = dy if weight is None else dy * by_channel(weight)
        return normalize_rows_backward(dxhat.reshape(rows), xhat, rstd).reshape(shape), dweight, dbias

    return y.reshape(shape), vjp


def normalize(x: Array, eps: float = 1e-12) -> tuple[Array, Back]:
    """As the formula, with squares summed without their array in memory."""
    length = np.sqrt(np.einsum("...d,...d->...", x, x))[..., None]  # (..., 1)
    short = length.real < eps
    length[short] = eps
    y = x / length

    @once
    def vjp(dy: Array) -> Array:
        along = np.einsum("...d,...d->...", dy, y)[..., None]
        along[short] = 0
        return (dy - y * along) / length

    return y, vjp
