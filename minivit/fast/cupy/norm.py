"""LayerNorm in one launch each way, right for rows near 1e20 and for rows whose mean is large beside their spread."""

from __future__ import annotations

import cupy

from minivit import functional as F
from minivit.fast.cupy.launch import column_sums, in_real, kept, launch, real, row_groups, warp_grid
from minivit.functional.linear import rows
from minivit.protocol import Array, Back, once

_WARPS = 8  # of a block of the backward pass
_LEAST_ROWS = 4 * _WARPS  # of a block: what it writes for the sums over rows is then 1/16 of what it reads
_MOST_GROUPS = 1024  # blocks, which fill the largest GPU


def layer_norm(x: Array, weight: Array | None, bias: Array | None, eps: float = 1e-6) -> tuple[Array, Back]:
    """kernels/layer_norm.cu."""
    if not x.size:
        return F.layer_norm.plain(x, weight, bias, eps)
    flat, channels, dtype = cupy.ascontiguousarray(rows(x)), x.shape[-1], x.dtype
    count = len(flat)
    grid, block = warp_grid(count)
    y, statistics = cupy.empty(x.shape, dtype), cupy.empty((count, 3), real(dtype))
    gain, offset = in_real(weight), in_real(bias)
    limit = float(cupy.finfo(real(dtype)).max) ** 0.5 / (4 * channels)  # of numbers whose squares can be summed
    launch(
        "layer_norm", "layer_norm_forward", dtype, grid, block, flat, gain, offset, y, statistics, count, channels,
        float(eps), limit, KEPT=kept(channels),
    )  # fmt: skip

    @once
    def vjp(dy: Array) -> tuple[Array, Array | None, Array | None]:
        dx, flat_dy = cupy.empty(x.shape, dtype), cupy.ascontiguousarray(rows(dy))
        groups, length = row_groups(count, _LEAST_ROWS, _MOST_GROUPS)
        parts = None if weight is None and bias is None else cupy.empty((2, groups, channels), real(dtype))
        launch(
            "layer_norm", "layer_norm_backward", dtype, (groups,), (32, _WARPS), flat_dy, flat, gain, statistics, dx,
            parts, count, channels, length, KEPT=kept(channels),
        )  # fmt: skip
        if parts is None:
            return dx, None, None
        if not kept(channels):
            launch(
                "layer_norm", "layer_norm_weight_gradients", dtype, (-(-channels // 32), groups), (32, 8), flat_dy,
                flat, statistics, parts, count, channels, length, KEPT=0,
            )  # fmt: skip
        dweight, dbias = (
            None if param is None else column_sums(part).astype(param.dtype, copy=False)
            for param, part in zip((weight, bias), parts)
        )
        return dx, dweight, dbias

    return y, vjp
