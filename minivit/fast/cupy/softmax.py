"""Softmax in one launch each way, of rows and of attention's scores."""

from __future__ import annotations

from math import inf
from typing import Any, NamedTuple

import cupy
import numpy as np

from minivit import functional as F
from minivit.device import constant
from minivit.fast.cupy.launch import kept, launch, numbers, warp_grid
from minivit.protocol import Array, Back, once


def softmax(x: Array) -> tuple[Array, Back]:
    """kernels/softmax.cu."""
    if not x.size or not x.ndim:
        return F.softmax.plain(x)
    y = Scores(None, None, 1.0, -inf).weights(cupy.array(x, order="C"), x.dtype)

    @once
    def vjp(dy: Array) -> Array:
        return softmax_backward(cupy.ascontiguousarray(dy), y)

    return y, vjp


class Scores(NamedTuple):
    """What attention makes of its products: scale * product + bias + what the mask adds; kernels/softmax.cu."""

    mask: Array | None
    bias: Array | None  # as kernels take it
    scale: float
    mask_value: float

    def weights(self, products: Array, dtype: Any) -> Array:
        """softmax over the last axis of a contiguous (..., N, M), which is overwritten where the dtypes are equal."""
        y = products if products.dtype == dtype else cupy.empty(products.shape, dtype)
        self._run("softmax_forward", dtype, products, [], [y])
        return y

    def weights_again(self, products: Array, dweights: Array, dtype: Any) -> tuple[Array, Array]:
        """The weights, and the gradient of the scores; both arrays are overwritten where the dtypes are equal."""
        same = products.dtype == dtype
        y, dx = (given if same else cupy.empty(given.shape, dtype) for given in (products, dweights))
        self._run("softmax_again", dtype, products, [dweights], [y, dx])
        return y, dx

    def _run(self, kernel: str, dtype: Any, x: Array, given: list[Array], out: list[Array]) -> None:
        *lead, count = (1,) * (5 - x.ndim) + x.shape
        rows, (inner, heads, queries) = x.size // count, lead[-3:]
        shape = (rows // (inner * heads * queries), inner, heads, queries, count)

        def along(array: Array | None) -> tuple[Array | None, tuple[int, ...]]:
            """The array with the axes of the scores, and its strides along them."""
            if array is None:
                return None, (0,) * 5
            whole = cupy.broadcast_to(array, x.shape).reshape(shape)
            return whole, tuple(step // whole.itemsize for step in whole.strides)

        (mask, mask_strides), (bias, bias_strides) = along(self.mask), along(self.bias)
        layout = constant(numbers((*mask_strides, *bias_strides)), x)
        launch(
            "softmax", kernel, dtype, *warp_grid(rows), x, mask, bias, *given, *out, layout, inner, heads, queries,
            count, np.uint32(rows), float(self.scale), float(self.mask_value), KEPT=kept(count),
        )  # fmt: skip


def softmax_backward(dy: Array, y: Array) -> Array:
    """dx = y (dy - sum of dy y), in the dtype of y; dy may be float32 where y has half precision."""
    dx, count = cupy.empty(y.shape, y.dtype), y.shape[-1]
    rows = y.size // count
    launch(
        "softmax", "softmax_backward", y.dtype, *warp_grid(rows), dy, y, dx, count, np.uint32(rows), KEPT=kept(count)
    )
    return dx
