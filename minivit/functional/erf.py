"""The error function erf(x) = 2/sqrt(pi) * integral of exp(-t^2) from 0 to x, which NumPy lacks, to about 1e-15.

It uses two classical expansions. Both are analytic, so they also hold for a complex argument with a tiny imaginary
part, as in the complex-step gradient check.

Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.6 (series) and 7.1.14 (continued fraction).
"""

from __future__ import annotations

from math import pi
from typing import Any

from minivit.device import array_module
from minivit.protocol import Array

_SPLIT = 2.5  # series below, continued fraction above: both then converge to 1e-16 in the numbers of terms given
_SERIES_TERMS = 44
_FRACTION_TERMS = 34


def erf(x: Array) -> Array:
    """The error function of every element of a real or complex array, in its own dtype."""
    xp = array_module(x)
    small = xp.abs(x.real) < _SPLIT
    sign = xp.where(x.real < 0, -1, 1).astype(x.dtype)  # erf is odd, and the fraction holds for Re x > 0
    # each expansion gets only numbers for which it converges; erf is 1 to the last bit long before 30
    near = xp.where(small, x, xp.zeros_like(x))
    far = xp.where(small | (x.real * sign.real > 30), xp.full_like(x, 30), x * sign)
    return xp.where(small, _series(near, xp), sign * _fraction(far, xp))


def _series(x: Array, xp: Any) -> Array:
    """erf(x) = 2/sqrt(pi) exp(-x^2) sum over n of 2^n x^(2n+1) / (1*3*...*(2n+1)); no term cancels another."""
    term = total = x
    for n in range(1, _SERIES_TERMS):
        term = term * (2 * x * x) / (2 * n + 1)
        total = total + term
    return total * xp.exp(-x * x) * (2 / pi**0.5)


def _fraction(x: Array, xp: Any) -> Array:
    """erf(x) = 1 - exp(-x^2)/sqrt(pi) * 1/(x + (1/2)/(x + (2/2)/(x + (3/2)/(x + ...)))) for Re x > 0."""
    below = x
    for n in range(_FRACTION_TERMS, 0, -1):
        below = x + (n / 2) / below
    return 1 - xp.exp(-x * x) / (below * pi**0.5)
