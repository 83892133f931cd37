"""GELU through a fitted distribution function, and softmax in place."""

from __future__ import annotations

from math import pi

import numpy as np

from minivit.functional import activation
from minivit.protocol import Array, Back, once

# The normal distribution function as Phi(x) = (1 + tanh h(x)) / 2, with u = x^2 and h(x) / x =
#     _FIT_RATE (u + _FIT_START + a0 / (u + b0 + a1 / (u + b1 + a2 / (u + b2)))),  (a, b) in _FIT_TERMS,
# fitted by weighted least squares, reweighted until the largest error of x Phi(x) was least: 1.1e-9; float32 resolves
# 6e-8. The margin is for the gradient checks: the slope of the fit is off by 7.7e-9 from the true one below.
# docs/derivations/gelu.md explains the fit.
_FIT_RATE = 0.006799366470464714
_FIT_START = 416.97510161553714
_FIT_TERMS = (
    (-23285.462096640742, 82.13933516974537),
    (-36.047128500545966, -9.07699938847844),
    (386.9066669921588, 22.463776141571817),
)
_CHUNK = 1 << 18  # elements: smaller ones stay in the cache, but make more calls, whose threads then wait for Python
_NORMAL_DENSITY_AT_0 = (2 * pi) ** -0.5


def gelu(x: Array, approximate: str = "none") -> tuple[Array, Back]:
    """GELU with the fitted Phi: 6 times faster than through erf in float32, and as exact as float32 is.

    Kept for the backward pass are x and y, which the next linear layer keeps anyway: Phi(x) is y / x, so that the
    slope costs one exponential there and nothing here.
    """
    if approximate == "tanh":
        return _gelu_tanh(x)
    x = np.asarray(x, order="C")
    y = np.empty_like(x)
    flat_x, flat_y = x.reshape(-1), y.reshape(-1)
    with np.errstate(over="ignore"):  # x^2 may overflow far out, where Phi is 0 or 1 all the same
        for part in _chunks(x.size):
            _fitted_phi(flat_x[part], flat_y[part])
            flat_y[part] *= flat_x[part]

    @once
    def vjp(dy: Array) -> Array:
        dx = np.empty_like(x)
        flat_dy, flat_dx = dy.reshape(-1), dx.reshape(-1)
        for part in _chunks(x.size):
            _slope(flat_x[part], flat_y[part], flat_dx[part])
            flat_dx[part] *= flat_dy[part]
        return dx

    return y, vjp


def _fitted_phi(x: Array, phi: Array) -> None:
    """phi gets Phi(x)."""
    squares = x * x
    *outer, (a, b) = _FIT_TERMS
    np.add(squares, b, out=phi)
    np.divide(a, phi, out=phi)
    for a, b in reversed(outer):
        phi += squares
        phi += b
        np.divide(a, phi, out=phi)
    phi += squares
    phi += _FIT_START
    phi *= _FIT_RATE
    phi *= x  # h(x)
    np.tanh(phi, out=phi)
    phi *= 0.5
    phi += 0.5


def _slope(x: Array, y: Array, slope: Array) -> None:
    """slope gets Phi(x) + x phi(x), from y = x Phi(x)."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        np.multiply(x, x, out=slope)
        tiny = None if slope.size and slope.real.min() > 0 else slope == 0  # x so small that y / x says nothing
        slope *= -0.5
        np.exp(slope, out=slope)
        slope *= x
        slope *= _NORMAL_DENSITY_AT_0
        phi = y / x
    if tiny is not None:
        phi[tiny] = 0.5
    slope += phi


def _chunks(size: int) -> list[slice]:
    return [slice(start, min(start + _CHUNK, size)) for start in range(0, size, _CHUNK)]


def _gelu_tanh(x: Array) -> tuple[Array, Back]:
    """With u = sqrt(2/pi) (x + 0.044715 x^3), y = x (1 + tanh u) / 2; the slope uses 1 - tanh^2, never cosh."""
    root = (2 / pi) ** 0.5
    square = x * x
    u = square * (0.044715 * root)
    u += root
    u *= x
    tanh = np.tanh(u, out=u)
    square *= 3 * 0.044715 * root
    square += root  # du/dx
    slope = 1 - tanh * tanh
    slope *= square
    slope *= x
    slope += tanh
    slope += 1
    slope *= 0.5
    y = tanh
    y += 1
    y *= x
    y *= 0.5
    return y, once(lambda dy: np.multiply(dy, slope, out=slope))  # in place: the slope is this pass's own


def softmax(x: Array) -> tuple[Array, Back]:
    """In one new array: half of the formula's passes over memory."""
    y = x.copy()
    y *= exponentials(y)

    @once
    def vjp(dy: Array) -> Array:
        weighted = dy * y
        return weighted - y * weighted.sum(axis=-1, keepdims=True)

    return y, vjp


_SAFE_SCORE = 30.0  # exp(+-30) = 1e+-13: sums and products of such weights stay far inside float32


def exponentials(scores: Array, mask: Array | None = None, mask_value: float = -np.inf) -> Array:
    """Overwrites scores (..., N, M) by exp(scores), shifted where needed; returns 1 / row sums (..., N, 1).

    Softmax is the product of the two; attention multiplies its narrower output by the factor instead of the weights.
    The row maximum, half as expensive as the exponential, is subtracted only when some score lies outside +-30.

    Args:
        mask: broadcasts to scores; where it is False, mask_value is added. A row in which nothing takes part, or all
            of whose scores are -inf, gets weights 0 and the factor 0.
    """
    total = np.zeros((*scores.shape[:-1], 1), scores.dtype)
    if scores.size == 0:
        return total
    real = scores.real
    if real.max() <= _SAFE_SCORE and real.min() >= -_SAFE_SCORE and _masks_fully(mask, mask_value):
        np.exp(scores, out=scores)
        if mask is not None:
            scores *= mask.astype(scores.dtype)
    else:
        if mask is not None:
            scores += np.where(mask, scores.dtype.type(0), scores.dtype.type(mask_value))
        top = activation.row_maximum(scores)
        with np.errstate(over="ignore"):  # a difference beyond the range becomes -inf, and its weight 0, as it should
            scores -= top
        np.exp(scores, out=scores)
    ones = np.ones((scores.shape[-1], 1), scores.dtype)
    # one product for all rows, 5 times faster than sum
    np.matmul(scores.reshape(-1, scores.shape[-1]), ones, out=total.reshape(-1, 1))
    empty = total == 0
    total[empty] = 1
    np.reciprocal(total, out=total)
    total[empty] = 0
    return total


def _masks_fully(mask: Array | None, value: float) -> bool:
    """Whether masked scores within +-30 get weight 0 to the last digit.

    With -100 their weights are at most exp(30 - 100), beside at least one of exp(-30): a share of exp(-40) = 4e-18.
    """
    return mask is None or value == -np.inf or (value <= -100 and bool(mask.any(axis=-1).all()))
