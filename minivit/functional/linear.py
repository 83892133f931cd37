"""The linear map and the table look-up, which is the linear map of a one-hot vector without the multiplications.

Alphabet: B batch, N tokens, R rows (all leading axes taken together), I inputs, O outputs, D channels.
Next: `permutations.py`.
"""

from __future__ import annotations

from math import prod

from minivit.backend import array_module, kernels
from minivit.protocol import Array, Back, once, refuse


def linear(x: Array, weight: Array, bias: Array | None = None) -> tuple[Array, Back]:
    """y = x W^T + b.

    Args:
        x: (..., I).
        weight: (O, I), as PyTorch and timm store it.
        bias: (O,) or None.

    Returns:
        y (..., O), and vjp(dy) -> (dx, dweight, dbias).

    Raises:
        ValueError: if the last axis of x is not I.
    """
    outputs, inputs = weight.shape
    refuse(
        x.shape[-1:] != (inputs,),
        f"linear: x has shape {x.shape}, but its last axis must be {inputs}, the second axis of weight {weight.shape}",
    )
    shape = x.shape
    count = prod(shape[:-1])  # R, given to reshape as a number because -1 means nothing for an empty array
    rows = x.reshape(count, inputs)  # (R, I): one product for all rows
    y = rows @ weight.T  # (R, O)
    if bias is not None:
        y += bias

    @once
    def vjp(dy: Array) -> tuple[Array, Array, Array | None]:
        drows = dy.reshape(count, outputs)  # (R, O)
        # in the forward pass: y[r] = W x[r] + b
        dx = (drows @ weight).reshape(shape)  # (..., I)
        dweight = drows.T @ rows  # (O, I)
        dbias = None if bias is None else kernels(dy).sum_rows(drows)  # (O,)
        return dx, dweight, dbias

    return y.reshape(*shape[:-1], outputs), vjp


def embedding(index: Array, table: Array) -> tuple[Array, Back]:
    """y = table[index]: row `index` of the table, equal to one_hot(index) @ table.

    Args:
        index: integers in [0, R), any shape (...).
        table: (R, D).

    Returns:
        y (..., D), and vjp(dy) -> dtable (R, D): rows looked up several times collect several gradients.

    Raises:
        ValueError: if an index lies outside the table (a GPU would wrap it around without a word).
    """
    rows, channels = table.shape
    refuse(index.dtype.kind not in "iu", f"embedding: index must be integers, got {index.dtype}")
    if index.size:
        low, high = int(index.min()), int(index.max())
        bad = low if low < 0 else high
        refuse(low < 0 or high >= rows, f"embedding: index {bad} is outside the table of {rows} rows")
    y = array_module(table).take(table, index, axis=0)  # (..., D)

    @once
    def vjp(dy: Array) -> Array:
        return kernels(dy).scatter_add(index.reshape(-1), dy.reshape(index.size, channels), rows)

    return y, vjp
