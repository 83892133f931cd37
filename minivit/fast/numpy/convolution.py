"""Convolution with the windows unfolded block by block, which bounds the memory.

Notation: B batch, G groups, C input channels, O output channels, H x W the map, Kh x Kw the kernel, F = C/G Kh Kw
numbers of a filter, Oh x Ow the output, P its pixels in one block.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import prod

import numpy as np

from minivit.fast.numpy.views import windows
from minivit.functional.sliding import Padding, Slide, inner, output_size, slide, surround
from minivit.protocol import Array, Back, once
from minivit.sizes import Size

# The unfolded windows of one block. All windows together are Kh Kw times as large as the map. 2 MiB
# lose no time: on one core, forward and backward, a 7x7 stem of 8 images took 82 ms with blocks of 0.5 MiB, 76 with 1,
# 74 with 2, 3 and 4; a 3x3 convolution of 64 channels 55 to 57 with all of them.
_MOST_BYTES = 2 << 20

Block = tuple[slice, slice, slice]  # images, rows and columns of the output


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
    """dx is a convolution of dy with flipped filters where that unfolds less, else folded tap by tap."""
    x_shape, shape, size = x.shape, weight.shape, x.shape[2:]
    how = slide("conv2d", size, shape[2:], stride, padding, dilation)
    count = output_size("conv2d", size, how)
    maps = _grouped(x, groups)  # (B, G, C/G, H, W)
    filters = weight.reshape(groups, shape[0] // groups, *shape[1:])  # (G, O/G, C/G, Kh, Kw)
    y = _correlate(maps, filters, how, count).reshape(x.shape[0], shape[0], *count)  # (B, O, Oh, Ow)
    if bias is not None:
        y += bias[:, None, None]

    @once
    def vjp(dy: Array) -> tuple[Array, Array, Array | None]:
        dmaps = _grouped(dy, groups)  # (B, G, O/G, Oh, Ow)
        dweight = _filter_gradient(maps, dmaps, how, count).reshape(shape)
        # two orders of the same sum: unfolding dy takes O Kh Kw numbers a pixel, folding dx C Kh Kw
        flips = how.stride == (1, 1) and shape[0] <= maps.shape[1] * shape[1]
        if flips and all(side[axis] <= how.reach[axis] for side in (how.before, how.after) for axis in (0, 1)):
            dx = _gradient_by_flipped_filters(dmaps, filters, how, size)
        else:
            dx = _gradient_by_folding(dmaps, filters, how, size)
        dbias = None if bias is None else dy.sum(axis=(0, 2, 3))  # (O,)
        return dx.reshape(x_shape), dweight, dbias

    return y, vjp


# --- products of strided views --------------------------------------------------------------------------------------


def _correlate(maps: Array, filters: Array, how: Slide, count: Size) -> Array:
    """(B, G, C/G, H, W) and (G, O/G, C/G, Kh, Kw) -> (B, G, O/G, Oh, Ow), without bias."""
    groups, outputs = filters.shape[:2]
    matrices = filters.reshape(groups, outputs, prod(filters.shape[2:]))  # (G, O/G, F)
    y = np.empty((maps.shape[0], groups, outputs, *count), np.result_type(maps.dtype, filters.dtype))
    for block, part in _views(maps, how, count):
        _write(y, block, matrices @ _unfold(part))
    return y


def _filter_gradient(maps: Array, dmaps: Array, how: Slide, count: Size) -> Array:
    """In the forward pass: y = W columns, for each block; so dW (G, O/G, F) = sum over blocks of dy columns^T."""
    groups, inputs, *_ = maps.shape[1:]
    dmatrices = np.zeros((groups, dmaps.shape[2], inputs * prod(how.kernel)), dmaps.dtype)
    for block, part in _views(maps, how, count):
        dmatrices += _read(dmaps, block) @ _unfold(part).swapaxes(-1, -2)  # (G, O/G, P) @ (G, P, F)
    return dmatrices


def _gradient_by_flipped_filters(dmaps: Array, filters: Array, how: Slide, size: Size) -> Array:
    """dx for stride 1: pixel h was read by tap i from position h + p - d i, so dx is a convolution of dy.

    Its filters are flipped on both axes, with inputs and outputs exchanged, and its padding is d (K - 1) - p.
    """
    flipped = filters[..., ::-1, ::-1].swapaxes(1, 2)  # (G, C/G, O/G, Kh, Kw)
    before, after = ((how.reach[0] - side[0], how.reach[1] - side[1]) for side in (how.before, how.after))
    return _correlate(dmaps, flipped, how._replace(before=before, after=after), size)


def _gradient_by_folding(dmaps: Array, filters: Array, how: Slide, size: Size) -> Array:
    """dx for any stride: dcolumns = W^T dy, and every tap added to the pixel that it read; the padding is cut off."""
    batch, groups, _, *count = dmaps.shape
    inputs, numbers = filters.shape[2], prod(filters.shape[2:])
    matrices = filters.reshape(groups, filters.shape[1], numbers)  # (G, O/G, F)
    dx = np.empty((batch, groups, inputs, *size), dmaps.dtype)
    for images, blocks in _blocks(batch, (count[0], count[1]), numbers * groups * dx.dtype.itemsize):
        padded = np.zeros((*dx[images].shape[:3], *how.padded(size)), dx.dtype)
        view = windows(padded, how, (count[0], count[1]))  # (b, G, C/G, Kh, Kw, Oh, Ow)
        for block in blocks:
            part = view[..., block[1], block[2]]  # (b, G, C/G, Kh, Kw, rows, columns)
            _fold(part, matrices.swapaxes(-1, -2) @ _read(dmaps, block))  # (G, F, O/G) @ (G, O/G, P)
        dx[images] = inner(padded, how, size)
    return dx


def _fold(view: Array, dcolumns: Array) -> None:
    """Adds dcolumns (G, F, P) to the windows (b, G, C/G, Kh, Kw, rows, columns) from which the columns were copied."""
    images, groups, inputs, *rest = view.shape
    dtaps = dcolumns.reshape(groups, inputs, *rest[:2], images, *rest[2:]).transpose(4, 0, 1, 2, 3, 5, 6)
    for i in range(rest[0]):
        for j in range(rest[1]):
            view[:, :, :, i, j] += dtaps[:, :, :, i, j]  # (b, G, C/G, rows, columns): one tap meets no pixel twice


# --- blocks of the output ---------------------------------------------------------------------------------------------


def _views(maps: Array, how: Slide, count: Size) -> Iterator[tuple[Block, Array]]:
    """Blocks of the output, each with a view of its windows (b, G, C/G, Kh, Kw, rows, columns)."""
    batch, groups, inputs = maps.shape[:3]
    for images, blocks in _blocks(batch, count, groups * inputs * prod(how.kernel) * maps.dtype.itemsize):
        view = windows(surround(maps[images], how), how, count)  # (b, G, C/G, Kh, Kw, Oh, Ow)
        for block in blocks:
            yield block, view[..., block[1], block[2]]


def _unfold(part: Array) -> Array:
    """A view of windows (b, G, C/G, Kh, Kw, rows, columns) as a matrix (G, F, P), a copy."""
    turned = part.transpose(1, 2, 3, 4, 0, 5, 6)  # (G, C/G, Kh, Kw, b, rows, columns)
    return turned.reshape(turned.shape[0], prod(turned.shape[1:4]), prod(turned.shape[4:]))


def _blocks(batch: int, count: Size, bytes_per_pixel: int) -> Iterator[tuple[slice, list[Block]]]:
    """The output in blocks that unfold to _MOST_BYTES or less: several images, or rows of one, or a part of a row.

    A block has at least one pixel. Yields some images, and the blocks of their output.
    """
    most = max(1, _MOST_BYTES // max(1, bytes_per_pixel))  # pixels
    columns = min(count[1], most)
    rows = min(count[0], max(1, most // count[1]))
    for images in _slices(batch, max(1, most // (count[0] * count[1]))):
        yield images, [(images, *part) for part in product(_slices(count[0], rows), _slices(count[1], columns))]


def _slices(length: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def _read(maps: Array, block: Block) -> Array:
    """A block of maps (B, G, O/G, Oh, Ow) as a matrix (G, O/G, P)."""
    part = maps[block[0], :, :, block[1], block[2]].transpose(1, 2, 0, 3, 4)  # (G, O/G, b, rows, columns)
    return part.reshape(*part.shape[:2], prod(part.shape[2:]))


def _write(maps: Array, block: Block, values: Array) -> None:
    """The inverse of `_read`: values (G, O/G, P) into a block of maps."""
    part = maps[block[0], :, :, block[1], block[2]]  # (b, G, O/G, rows, columns)
    images, groups, outputs, *rest = part.shape
    part[...] = values.reshape(groups, outputs, images, *rest).transpose(2, 0, 1, 3, 4)


def _grouped(x: Array, groups: int) -> Array:
    batch, channels, *size = x.shape
    return x.reshape(batch, groups, channels // groups, *size)  # (B, G, C/G, H, W)
