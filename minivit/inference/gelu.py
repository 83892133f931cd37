"""GELU of hidden units in inference, in few passes over memory.

    gelu(x) = x / (1 + exp(-2 h(x))),    -2 h(x) = -2 c x (u + e + a0 / (u + b0 + a1 / (u + b1))),    u = x^2

For the exact GELU, tanh h(x) = 2 Phi(x) - 1 is fitted: the largest error of gelu(x) is 1.2e-7, as large as the spacing
of float32 at 1. For its tanh approximation there are no fractions, and e = 1 / 0.044715, c = 0.044715 sqrt(2/pi).

With s^3 = -2 c and x' = s x the factor disappears, -2 h = x' (u' + s^2 e + s^4 a0 / (u' + ...)): s is folded into the
weights and the bias before GELU, and 1/s into the weights behind it.
"""

from __future__ import annotations

from math import pi
from typing import NamedTuple

import numpy as np

from minivit.inference.memory import Memory
from minivit.protocol import Array

_CHUNK = 1 << 16  # elements at a time: 256 KiB of each of three arrays, which stay in a core's cache


class Scaled(NamedTuple):
    """GELU of x' = `scale` x, which gives `scale` gelu(x).

    Attributes:
        start: s^2 e.
        terms: (s^4 a, s^2 b) of each fraction.
    """

    scale: float
    start: float
    terms: tuple[tuple[float, float], ...] = ()

    @classmethod
    def of(cls, rate: float, start: float, *terms: tuple[float, float]) -> Scaled:
        scale = -((2 * rate) ** (1 / 3))
        return cls(scale, scale**2 * start, tuple((scale**4 * a, scale**2 * b) for a, b in terms))

    def __call__(self, memory: Memory, x: Array, bias: Array) -> None:
        """Add the bias to x' (R, U), and apply GELU in place, some rows at a time."""
        few = max(1, _CHUNK // max(1, x.shape[1]))
        with np.errstate(over="ignore"):  # an infinite square or exponential gives 0 or x, as it should
            for start in range(0, len(x), few):
                part = x[start : start + few]
                part += bias
                self._in_place(part, memory.buffer("squares", *part.shape), memory.buffer("exponent", *part.shape))

    def _in_place(self, x: Array, squares: Array, exponent: Array) -> None:
        np.multiply(x, x, out=squares)
        fraction = squares
        for a, b in reversed(self.terms):
            if fraction is squares:
                np.add(squares, b, out=exponent)
            else:
                exponent += squares
                exponent += b
            fraction = np.divide(a, exponent, out=exponent)
        if fraction is squares:
            np.add(squares, self.start, out=exponent)
        else:
            exponent += squares
            exponent += self.start
        exponent *= x
        np.exp(exponent, out=exponent)
        exponent += 1
        x /= exponent


# fitted by weighted least squares, reweighted until the largest error of x Phi(x) was least
EXACT = Scaled.of(
    0.017255359858992625,
    72.12699011409741,
    (-267.31832141579207, -6.8033905727848625),
    (524.7585282166777, 30.634350137902423),
)
TANH = Scaled.of(0.044715 * (2 / pi) ** 0.5, 1 / 0.044715)
