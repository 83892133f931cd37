"""The error function erf(x) = 2/sqrt(pi) * integral of exp(-t^2) from 0 to x, which NumPy lacks, to about 1e-15.

Two classical expansions, no table of fitted constants. Next: `threads.py`.

Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.6 (series) and 7.1.14 (continued fraction).
Both are analytic, so a complex argument with a tiny imaginary part (the complex-step gradient check) comes out right.
"""

from __future__ import annotations

import numpy as np

from minivit.protocol import Array

_SPLIT = 2.5  # series below, continued fraction above: both then converge to 1e-16 in the numbers of terms given
_SERIES_TERMS = 44
_FRACTION_TERMS = 34


def erf(x: Array) -> Array:
    """The error function of every element of a real or complex NumPy array, in its own dtype."""
    flat = np.ravel(x)
    y = np.empty_like(flat)
    small = np.abs(flat.real) < _SPLIT
    y[small] = _series(flat[small])
    y[~small] = _fraction(flat[~small])
    return y.reshape(np.shape(x))


def _series(x: Array) -> Array:
    """erf(x) = 2/sqrt(pi) exp(-x^2) sum over n of 2^n x^(2n+1) / (1*3*...*(2n+1)); no term cancels another."""
    square = 2 * x * x
    term = x.copy()
    total = x.copy()
    for n in range(1, _SERIES_TERMS):
        term *= square
        term /= 2 * n + 1
        total += term
    return total * np.exp(-x * x) * (2 / np.pi**0.5)


def _fraction(x: Array) -> Array:
    """erf(x) = 1 - exp(-x^2)/sqrt(pi) * 1/(x + (1/2)/(x + (2/2)/(x + (3/2)/(x + ...)))) for Re x > 0; erf is odd."""
    sign = np.where(x.real < 0, -1, 1).astype(x.dtype)
    x = x * sign
    x = np.where(x.real > 30, 30, x).astype(x.dtype)  # erf is 1 to the last bit long before, and exp(-x^2) stays tame
    below = x.copy()
    for n in range(_FRACTION_TERMS, 0, -1):
        below = x + (n / 2) / below
    return sign * (1 - np.exp(-x * x) / (below * np.pi**0.5))
