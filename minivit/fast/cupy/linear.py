"""The linear map through our own cuBLAS handle, alone and with GELU; look-ups whose gradient has a fixed order."""

from __future__ import annotations

import cupy
import numpy as np

from minivit.fast.cupy.add import add_bias, chunk
from minivit.fast.cupy.launch import column_sums, element_grid, in_real, launch
from minivit.fast.cupy.products import product
from minivit.fast.half import in_dtype_of
from minivit.functional.linear import rows
from minivit.protocol import Array, Back, once


def linear(x: Array, weight: Array, bias: Array | None = None) -> tuple[Array, Back]:
    """The formula, with the sum over rows by a kernel."""
    rounded = in_dtype_of(x, weight)
    y = _map(x, rounded)
    if bias is not None:
        add_bias(y, bias)

    @once
    def vjp(dy: Array) -> tuple[Array, Array, Array | None]:
        return _gradients(dy, x, rounded, weight, bias)

    return y, vjp


def linear_gelu(x: Array, weight: Array, bias: Array | None = None, approximate: str = "none") -> tuple[Array, Back]:
    """Bias and GELU in one launch; the backward pass keeps the product and computes the slope again."""
    rounded = in_dtype_of(x, weight)
    hidden = _map(x, rounded)
    y, back_gelu = bias_gelu(hidden, bias, approximate)

    @once
    def vjp(dy: Array) -> tuple[Array, Array, Array | None]:
        return _gradients(back_gelu(dy), x, rounded, weight, bias)

    return y, vjp


def gelu(x: Array, approximate: str = "none") -> tuple[Array, Back]:
    """kernels/gelu.cu."""
    return bias_gelu(cupy.ascontiguousarray(x), None, approximate)


def bias_gelu(hidden: Array, bias: Array | None, approximate: str) -> tuple[Array, Back]:
    """y = gelu(hidden + bias), and vjp(dy) -> dhidden; kernels/gelu.cu."""
    y, bias, channels = cupy.empty_like(hidden), in_real(bias), hidden.shape[-1] if hidden.ndim else 1

    def run(kernel: str, *arrays: Array) -> None:
        lanes = chunk(hidden.dtype, channels, *arrays)
        *given, out = arrays
        count = hidden.size // lanes
        launch(
            "gelu", kernel, hidden.dtype, *element_grid(count), *given, bias, out, np.uint32(count),
            np.uint32(channels // lanes), int(approximate == "tanh"), CHUNKED=int(lanes > 1),
        )  # fmt: skip

    run("bias_gelu_forward", hidden, y)

    @once
    def vjp(dy: Array) -> Array:
        dhidden = cupy.empty_like(hidden)
        run("bias_gelu_backward", cupy.ascontiguousarray(dy), hidden, dhidden)
        return dhidden

    return y, vjp


def scatter_add(index: Array, values: Array, count: int) -> Array:
    """The formula's sums in a fixed order; kernels/sums.cu."""
    columns = values.shape[1]
    y = cupy.zeros((count, columns), values.dtype)
    if y.size and values.size:
        index, values = cupy.ascontiguousarray(index, np.int64), cupy.ascontiguousarray(values)
        launch("sums", "scatter_add", values.dtype, (count, columns), (128,), index, values, y, len(values), columns)
    return y


def _map(x: Array, weight: Array) -> Array:
    """x W^T, (..., I) -> (..., O)."""
    return product(rows(x), weight.T).reshape(*x.shape[:-1], len(weight))


def _gradients(
    dy: Array, x: Array, rounded: Array, weight: Array, bias: Array | None
) -> tuple[Array, Array, Array | None]:
    """dx, dweight and dbias of y = x W^T + b, where W was rounded to the dtype of x."""
    flat = rows(dy)
    dx = product(flat, rounded).reshape(x.shape)
    dbias = None if bias is None else column_sums(flat).astype(bias.dtype, copy=False)
    return dx, product(flat.T, rows(x), dtype=weight.dtype), dbias
