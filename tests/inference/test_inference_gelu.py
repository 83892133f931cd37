"""GELU of prepared hidden units: its error, numbers at the ends of float32, and pieces of any size."""

from __future__ import annotations

from math import erfc
from typing import Any

import numpy as np
import pytest

from minivit import functional as F
from minivit.inference import gelu
from minivit.inference.gelu import EXACT, TANH, Scaled
from minivit.inference.memory import Memory


def prepared(kind: Scaled, x: Any, bias: float = 0.0) -> Any:
    """gelu(x + bias) from x' = scale x."""
    scaled = (x * kind.scale).astype(x.dtype)[None]
    kind(Memory(x.dtype), scaled, np.full(x.shape, bias * kind.scale, x.dtype))
    return scaled[0] / kind.scale


def test_the_fit_has_the_error_that_is_stated() -> None:
    x = np.linspace(-12, 12, 20001)
    exact = np.array([value * 0.5 * erfc(-value / 2**0.5) for value in x])
    assert np.abs(prepared(EXACT, x) - exact).max() <= 1.2e-7
    assert np.abs(prepared(EXACT, x - 0.5, bias=0.5) - exact).max() <= 1.2e-7


def test_the_tanh_approximation_is_exact() -> None:
    x = np.linspace(-12, 12, 2001)
    np.testing.assert_allclose(prepared(TANH, x), F.gelu(x, "tanh")[0], rtol=0, atol=1e-14)


@pytest.mark.parametrize("kind", [EXACT, TANH])
def test_the_ends_of_float32(kind: Scaled) -> None:
    x = np.array([-1e38, -1e30, -100, 0, 100, 1e30, 1e38], "float32")
    np.testing.assert_allclose(prepared(kind, x), np.maximum(x, 0), rtol=1e-6)


def test_some_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    x, bias = np.random.default_rng(0).standard_normal((7, 5)), np.arange(5.0)
    whole, parts = x.copy(), x.copy()
    EXACT(Memory("float64"), whole, bias)
    for chunk in (1, 10, 15):
        monkeypatch.setattr(gelu, "_CHUNK", chunk)
        parts = x.copy()
        EXACT(Memory("float64"), parts, bias)
        np.testing.assert_array_equal(parts, whole)
