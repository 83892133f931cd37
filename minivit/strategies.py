"""Hypothesis strategies for gradient checks: arrays whose shapes are drawn, and whose values come from a drawn seed.

    from hypothesis import given
    from minivit.strategies import arrays

    @given(arrays("BNI OI O"))
    def test_linear(args):
        minivit.check_vjp(F.linear, *args)

Values from a seed keep examples fast and let hypothesis shrink only the shapes. Needs hypothesis.
"""

from __future__ import annotations

from typing import Any

import numpy as np

try:
    from hypothesis import strategies as st
except ImportError as error:
    raise ImportError(f"minivit.strategies needs hypothesis ({error}): pip install hypothesis") from None


def seeds() -> Any:
    """Integers for generators."""
    return st.integers(0, 2**32 - 1)


def sizes(low: int = 1, high: int = 3) -> Any:
    """Axis lengths. They shrink towards 2, because a batch of 1 or a single token hides errors."""
    return st.integers(low, high).map(lambda n: {low: min(2, high), min(2, high): low}.get(n, n))


@st.composite
def arrays(draw: Any, /, letters: str, scale: float = 1.0, **fixed: Any) -> tuple[Any, ...]:
    """A tuple of float64 arrays, one for each word of `letters`; the same letter is the same length everywhere.

    Args:
        letters: such as "BNI OI O": x (B, N, I), weight (O, I), bias (O,).
        scale: standard deviation of the values.
        fixed: lengths, or strategies of lengths, by letter (`D=8`, `H=st.sampled_from([1, 2])`); others are 1 to 3.
    """
    names = sorted(set(letters) - {" "})
    lengths = {}
    for name in names:
        choice = fixed.get(name, sizes())
        lengths[name] = choice if isinstance(choice, int) else draw(choice)
    rng = np.random.default_rng(draw(seeds()))
    return tuple(scale * rng.standard_normal(tuple(lengths[letter] for letter in word)) for word in letters.split())
