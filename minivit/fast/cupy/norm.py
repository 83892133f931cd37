"""LayerNorm that is right for rows near 1e20 and for rows whose mean is large beside their spread."""

from __future__ import annotations

import cupy

from minivit.functional.linear import rows
from minivit.functional.norm import scale_and_shift
from minivit.protocol import Array, Back, once


def layer_norm(x: Array, weight: Array | None, bias: Array | None, eps: float = 1e-6) -> tuple[Array, Back]:
    """All rows are scaled into the range whose squares fit, and shifted by their first element before the mean.

    A test for the rows that need it would make the host wait for the device.
    """
    size = cupy.abs(x).max(axis=-1, keepdims=True)
    limit = float(cupy.finfo(x.dtype).max) ** 0.5 / (4 * x.shape[-1])
    shrink = cupy.minimum(limit / cupy.maximum(size, limit), 1).astype(size.dtype)
    scaled = x * shrink
    scaled = scaled - scaled[..., :1]
    centered = scaled - scaled.mean(axis=-1, keepdims=True)
    rstd = ((centered * centered).mean(axis=-1, keepdims=True) + eps) ** -0.5
    xhat = centered * rstd
    y = scale_and_shift(xhat, weight, bias)

    @once
    def vjp(dy: Array) -> tuple[Array, Array | None, Array | None]:
        dweight = None if weight is None else rows(dy * xhat).sum(axis=0)
        dbias = None if bias is None else rows(dy).sum(axis=0)
        dxhat = dy if weight is None else dy * weight
        along = xhat * (dxhat * xhat).mean(axis=-1, keepdims=True)
        dx = rstd * (dxhat - dxhat.mean(axis=-1, keepdims=True) - along)
        return dx * shrink, dweight, dbias  # shrink last: rstd * shrink may be subnormal, which a GPU takes for 0

    return y, vjp
