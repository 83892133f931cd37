"""The convolution with its products through cuBLAS: CuPy's products cannot be captured in a graph."""

from __future__ import annotations

from math import prod

from minivit.fast.cupy.products import product
from minivit.functional.sliding import Padding, output_size, slide, unfold
from minivit.protocol import Array, Back, once
from minivit.sizes import Size


def conv2d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: int | Size = 1,
    padding: Padding = 0,
    dilation: int | Size = 1,
    groups: int = 1,
) -> tuple[Array, Back]:
    """The formula line by line, with `product` for `@`."""
    how = slide("conv2d", x.shape[2:], weight.shape[2:], stride, padding, dilation)
    size = output_size("conv2d", x.shape[2:], how)
    unfolded, back_unfold = unfold(x, how, size)
    columns = unfolded.reshape(len(x), groups, prod(weight.shape[1:]), prod(size))
    filters = weight.reshape(groups, len(weight) // groups, prod(weight.shape[1:]))
    y = product(filters, columns).reshape(len(x), len(weight), *size)

    @once
    def vjp(dy: Array) -> tuple[Array, Array, Array | None]:
        dproduct = dy.reshape(len(x), groups, len(weight) // groups, prod(size))
        dfilters = product(dproduct, columns.swapaxes(-1, -2)).sum(axis=0)
        dcolumns = product(filters.swapaxes(-1, -2), dproduct)
        dbias = None if bias is None else dy.sum(axis=(0, 2, 3))
        return back_unfold(dcolumns.reshape(unfolded.shape)), dfilters.reshape(weight.shape), dbias

    return y if bias is None else y + bias[:, None, None], vjp
