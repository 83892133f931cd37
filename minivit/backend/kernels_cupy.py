"""The kernels of `kernels_numpy.py` for CuPy: the same names and signatures, as plain array expressions.

On a GPU the launches overlap and memory comes from CuPy's pool, so what pays on a CPU (reused buffers, products with
ones) does not pay here, and the formulas can stand as they are. Next: `devices.py`.
"""

from __future__ import annotations

import cupy
from cupyx.scipy.special import erf

from minivit.protocol import Array

_SQRT_HALF = 0.5**0.5
ADAMW_PIECE = 1 << 62  # elements: everything at once, because launches cost more than gathering
_NORMAL_DENSITY_AT_0 = (2 * cupy.pi) ** -0.5


def gelu(x: Array) -> tuple[Array, Array]:
    """The exact GELU, y = x Phi(x), and its slope Phi(x) + x phi(x)."""
    phi = 0.5 * (1 + erf(x * _SQRT_HALF))
    return x * phi, phi + x * cupy.exp(-0.5 * x * x) * _NORMAL_DENSITY_AT_0


def inplace_gelu(x: Array) -> Array:
    """Overwrites x by GELU(x), without the slope."""
    x *= 0.5 * (1 + erf(x * _SQRT_HALF))
    return x


def gelu_tanh(x: Array) -> tuple[Array, Array]:
    """The tanh approximation of GELU and its slope."""
    root = (2 / cupy.pi) ** 0.5
    tanh = cupy.tanh(root * (x + 0.044715 * x * x * x))
    inner_slope = root * (1 + 3 * 0.044715 * x * x)
    return 0.5 * x * (1 + tanh), 0.5 * (1 + tanh + x * (1 - tanh * tanh) * inner_slope)


def inplace_exp(scores: Array, mask: Array | None = None, mask_value: float = -cupy.inf) -> Array:
    """Overwrites scores (..., N, M) by exp(scores - row maximum); returns 1 / row sums (..., N, 1), 0 if all -inf.

    Where `mask` is False, mask_value is added to the scores first.
    """
    if scores.size == 0:
        return cupy.zeros((*scores.shape[:-1], 1), scores.dtype)
    if mask is not None:
        scores += cupy.where(mask, scores.dtype.type(0), scores.dtype.type(mask_value))
    top = scores.real.max(axis=-1, keepdims=True)
    scores -= cupy.where(cupy.isneginf(top), cupy.zeros_like(top), top)
    cupy.exp(scores, out=scores)
    total = scores.sum(axis=-1, keepdims=True)
    return cupy.where(total == 0, cupy.zeros_like(total), 1 / cupy.where(total == 0, cupy.ones_like(total), total))


def matmul_by_token(weights: Array, v: Array) -> Array:
    """weights (..., H, N, M) @ v (..., H, M, d) -> (..., H, N, d)."""
    return weights @ v


def room_like(*arrays: Array) -> list[Array | None]:
    """No room: on a GPU stacking costs little."""
    return [None] * len(arrays)


def stack_parts(parts: list[Array]) -> Array:
    """cupy.stack(parts, axis=-3) for parts (..., N, H, d)."""
    return cupy.stack(parts, axis=-3)


def normalise_rows(x: Array, eps: float) -> tuple[Array, Array]:
    """Rows of x (R, D) shifted to mean 0 and scaled to variance 1: xhat (R, D) and 1/std (R, 1).

    Rows too large to square are scaled first, and the first element is subtracted before the mean, for all rows alike:
    a test for hard rows would make the host wait for the device.
    """
    size = cupy.abs(x).max(axis=1, keepdims=True)
    limit = float(cupy.finfo(x.dtype).max) ** 0.5 / (4 * x.shape[1])
    shrink = cupy.minimum(limit / cupy.maximum(size, limit), 1).astype(size.dtype)
    centred = x * shrink
    centred = centred - centred[:, :1]
    centred = centred - centred.mean(axis=1, keepdims=True)
    rstd = 1 / cupy.sqrt((centred * centred).mean(axis=1, keepdims=True) + eps)
    return centred * rstd, rstd * shrink


def normalise_rows_backward(dxhat: Array, xhat: Array, rstd: Array) -> Array:
    """dx = rstd (dxhat - mean(dxhat) - xhat mean(dxhat xhat)), row by row."""
    along = (dxhat * xhat).mean(axis=1, keepdims=True)
    return rstd * (dxhat - dxhat.mean(axis=1, keepdims=True) - xhat * along)


def sum_rows(x: Array) -> Array:
    """Column sums of x (R, D) -> (D,)."""
    return x.sum(axis=0)


def sum_rows_of_product(a: Array, b: Array) -> Array:
    """Column sums of a * b, both (R, D) -> (D,)."""
    return (a * b).sum(axis=0)


def scatter_add(index: Array, rows: Array, count: int) -> Array:
    """out[index[i]] += rows[i] for rows (R, D) -> out (count, D); equal indices add up."""
    out = cupy.zeros((count, rows.shape[1]), rows.dtype)
    cupy.add.at(out, index, rows)
    return out


def inplace_adamw(
    data: Array,
    grad: Array,
    first: Array,
    second: Array,
    *,
    lr: float,
    decay: Array | float,
    betas: tuple[float, float],
    eps: float,
    step: int,
) -> None:
    """One AdamW step over flat arrays; overwrites data and the first and second moments."""
    beta1, beta2 = betas
    first *= beta1
    first += (1 - beta1) * grad
    second *= beta2
    second += (1 - beta2) * grad * grad
    update = (lr / (1 - beta1**step)) * first / (cupy.sqrt(second) * (1 - beta2**step) ** -0.5 + eps)
    data -= update + lr * decay * data
