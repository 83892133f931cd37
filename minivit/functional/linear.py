"""The linear map, the linear map with a low-rank update (LoRA), and the table look-up: a linear map of one-hot vectors
without the multiplications.

Notation: B batch, N tokens, R rows of a table, I inputs, O outputs, D channels, r the rank; "..." any leading axes.
"""

from __future__ import annotations

from math import prod

from minivit.device import array_module
from minivit.protocol import Array, Back, once


def linear(x: Array, weight: Array, bias: Array | None = None) -> tuple[Array, Back]:
    """y = x W^T + b.

    Args:
        x: (..., I).
        weight: (O, I), as PyTorch and timm store it.
        bias: (O,) or None.

    Returns:
        y (..., O), and vjp(dy) -> (dx, dweight, dbias).

    Raises:
        ValueError: if the last axis of x is not I, or the bias does not fit.

    Derivation: docs/derivations/linear.md.
    """
    y = x @ weight.T if bias is None else x @ weight.T + bias  # (..., O)

    @once
    def vjp(dy: Array) -> tuple[Array, Array, Array | None]:
        dx = dy @ weight  # (..., I)
        dweight = rows(dy).T @ rows(x)  # (O, I): y = x W^T, summed over all leading axes
        dbias = None if bias is None else rows(dy).sum(axis=0)  # (O,)
        return dx, dweight, dbias

    return y, vjp


def check_linear(x: Array, weight: Array, bias: Array | None = None) -> None:
    if x.shape[-1:] != weight.shape[1:]:
        raise ValueError(
            f"linear: x has shape {x.shape}, but its last axis must be {weight.shape[1]}, the second axis of weight "
            f"{weight.shape}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"linear: bias must have shape {weight.shape[:1]}, one number per output, got {bias.shape}")


def lora_linear(
    x: Array, lora_a: Array, lora_b: Array, bias: Array | None = None, *, weight: Array, scale: float = 1.0
) -> tuple[Array, Back]:
    """y = x W^T + b + scale (x A^T) B^T: a constant linear map, and a learned update of low rank.

    W is a constant, so the product for its gradient, a third of the cost of training a linear map, is saved.

    Args:
        x: (..., I).
        lora_a: A (r, I).
        lora_b: B (O, r).
        bias: (O,) or None.
        weight: W (O, I).
        scale: alpha / r.

    Returns:
        y (..., O), and vjp(dy) -> (dx, dlora_a, dlora_b, dbias).

    Raises:
        ValueError: if the last axis of x is not I, or A, B, W and the bias do not fit.

    Source: Hu et al. 2021, equation 3 and section 4.1.
    """
    reduced, back_a = linear(x, lora_a)  # (..., r): x A^T
    scaled_b = (scale * lora_b).astype(lora_b.dtype, copy=False)  # half precision stays half
    update, back_b = linear(reduced, scaled_b)  # (..., O)
    y = linear(x, weight, bias)[0] + update

    @once
    def vjp(dy: Array) -> tuple[Array, Array, Array, Array | None]:
        dreduced, dscaled, _ = back_b(dy)
        dx, dlora_a, _ = back_a(dreduced)
        dbias = None if bias is None else rows(dy).sum(axis=0)  # (O,)
        # x enters through the constant map too: y = x W^T, so dx = dy W
        dlora_b = (scale * dscaled).astype(dscaled.dtype, copy=False)
        return dx + linear(dy, weight.T)[0], dlora_a, dlora_b, dbias

    return y, vjp


def check_lora_linear(
    x: Array, lora_a: Array, lora_b: Array, bias: Array | None = None, *, weight: Array, scale: float = 1.0
) -> None:
    check_linear(x, weight, bias)
    outputs, inputs = weight.shape
    if lora_a.shape[1:] != (inputs,) or lora_b.shape != (outputs, len(lora_a)):
        raise ValueError(
            f"lora_linear: lora_a and lora_b must have shapes (r, {inputs}) and ({outputs}, r) for weight "
            f"{weight.shape}, got {lora_a.shape} and {lora_b.shape}"
        )


def rows(x: Array) -> Array:
    """(..., D) -> (R, D): all leading axes merged. R is computed, because -1 is ambiguous for empty x."""
    return x.reshape(prod(x.shape[:-1]), x.shape[-1])


def embedding(index: Array, table: Array) -> tuple[Array, Back]:
    """y = table[index]: row `index` of the table, equal to one_hot(index) @ table.

    Args:
        index: integers in [0, R), any shape (...).
        table: (R, D).

    Returns:
        y (..., D), and vjp(dy) -> dtable (R, D).

    Raises:
        ValueError: if an index lies outside the table (a GPU would wrap it around silently).
    """
    y = array_module(table).take(table, index, axis=0)  # (..., D)

    @once
    def vjp(dy: Array) -> Array:
        return scatter_add(index.reshape(-1), rows(dy), len(table))

    return y, vjp


def check_embedding(index: Array, table: Array) -> None:
    if index.dtype.kind not in "iu":
        raise ValueError(f"embedding: index must be integers, got {index.dtype}: convert it with astype('int64')")
    if index.size:
        low, high = int(index.min()), int(index.max())
        if low < 0 or high >= len(table):
            bad = low if low < 0 else high
            raise ValueError(f"embedding: index {bad} is outside the table of {len(table)} rows")


def scatter_add(index: Array, values: Array, count: int) -> Array:
    """Backward of a look-up: out[index[i]] += values[i] for values (M, D) -> out (count, D); equal indices add up."""
    xp = array_module(values)
    out = xp.zeros((count, values.shape[1]), values.dtype)
    xp.add.at(out, index, values)
    return out
