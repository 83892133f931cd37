"""Position bias: a number for each head and each offset between query and key, from a table or an MLP.

In a window of Mh x Mw there are (2Mh-1)(2Mw-1) offsets, far fewer than pairs of pixels, so many pairs share a row of
the table, and the row's gradient is the sum over them: offset (dy, dx) has (Mh-|dy|)(Mw-|dx|) pairs.

Notation: Mh x Mw the window, N = Mh Mw its pixels, R rows of the table, H heads, U hidden units.
Sources: Liu et al. 2021 (Swin, table), Liu et al. 2022 (Swin v2, continuous).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from minivit.device import array_module, constant
from minivit.functional.activation import relu, sigmoid
from minivit.functional.linear import linear, scatter_add
from minivit.protocol import Array, Back, once
from minivit.sizes import Size, pair


def relative_position_index(window_size: int | Size, table: int | Size | None = None) -> Array:
    """(N, N) integers, read-only: the row of the table for (query i, key j).

    With dy = y_i - y_j and dx = x_i - x_j the row is (dy + Mh - 1)(2Mw - 1) + dx + Mw - 1; so a 2x2 window gives
    [[4,3,1,0],[5,4,2,1],[7,6,4,3],[8,7,5,4]].

    Args:
        window_size: Mh x Mw.
        table: the window that the table was made for; None is `window_size` itself. A smaller window, as on
            a small map, reads the rows of its offsets from the larger window's table.
    """
    return _relative_position_index(pair(window_size), pair(window_size if table is None else table))


@lru_cache(maxsize=32)  # read at every step
def _relative_position_index(window: Size, made: Size) -> Array:
    if made[0] < window[0] or made[1] < window[1]:
        raise ValueError(
            f"windows of {window[0]}x{window[1]} have offsets that a table made for {made[0]}x{made[1]} lacks: build "
            f"it with window_size={window}"
        )
    y, x = np.divmod(np.arange(window[0] * window[1]), window[1])
    dy = y[:, None] - y[None, :] + made[0] - 1  # (N, N)
    dx = x[:, None] - x[None, :] + made[1] - 1
    index = dy * (2 * made[1] - 1) + dx
    index.setflags(write=False)
    return index


def relative_position_bias(table: Array, index: Array) -> tuple[Array, Back]:
    """(R, H) read at (N, M) indices -> the bias (H, N, M) of the scores.

    Returns:
        y, and vjp(dy) -> dtable: pairs with the same offset read the same row, whose gradient is the sum of theirs.

    Derivation: docs/derivations/position_bias.md.
    """
    rows, heads = table.shape
    xp = array_module(table)
    index = constant(index, table)
    y = xp.take(table.T, index, axis=1)  # (H, N, M), contiguous, as the scores that it is added to

    @once
    def vjp(dy: Array) -> Array:
        return scatter_add(index.reshape(-1), dy.reshape(heads, index.size).T, rows)

    return y, vjp


def log_spaced_offsets(window_size: int | Size, pretrained: int | Size = 0) -> Array:
    """(R, 2) float64: the offsets (dy, dx) on a logarithmic scale, sign(o) log2(8 |o| / (M-1) + 1) / 3.

    8 and 3 = log2(8) are those of Swin v2 (equation 4 and its code): the largest offset of the window becomes
    log2(9)/3 = 1.06, and a window 1.5 times as large reaches only 1.24, so the MLP hardly has to extrapolate.

    Args:
        window_size: Mh x Mw.
        pretrained: the window that the weights were trained with, whose M-1 is the unit; 0: `window_size` itself.
    """
    axes = []
    for size, trained in zip(pair(window_size), pair(pretrained)):
        if trained < 0:
            raise ValueError(f"pretrained window {pretrained} must not be negative")
        reach = max((trained or size) - 1, 1)  # a window of 1 has only the offset 0
        offset = np.arange(1 - size, size) * (8 / reach)
        axes.append(np.sign(offset) * np.log2(np.abs(offset) + 1) / 3)
    dy, dx = np.meshgrid(*axes, indexing="ij")
    return np.stack((dy, dx), axis=-1).reshape(-1, 2)


def continuous_position_table(offsets: Array, weight1: Array, bias1: Array, weight2: Array) -> tuple[Array, Back]:
    """16 sigmoid(W2 relu(W1 o + b1)): the table (R, H) of Swin v2, computed from the offsets instead of learned.

    Args:
        offsets: (R, 2), see `log_spaced_offsets`.
        weight1: (U, 2).
        bias1: (U,).
        weight2: (H, U).

    Returns:
        table (R, H), each element in (0, 16), and vjp(dtable) -> (doffsets, dweight1, dbias1, dweight2).

    Source: Liu et al. 2022, section 3.3; the sigmoid and the 16 are in its code.
    """
    hidden, back_first = linear(offsets, weight1, bias1)  # (R, U)
    active, back_relu = relu(hidden)
    raw, back_second = linear(active, weight2)  # (R, H)
    squashed, back_sigmoid = sigmoid(raw)

    @once
    def vjp(dy: Array) -> tuple[Array, Array, Array, Array]:
        dactive, dweight2, _ = back_second(back_sigmoid(dy * 16))
        doffsets, dweight1, dbias1 = back_first(back_relu(dactive))
        return doffsets, dweight1, dbias1, dweight2

    return squashed * 16, vjp
