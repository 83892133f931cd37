"""Every gradient is proven twice: by 5-point differences and by the complex step, over shapes that hypothesis draws.

Operations and layers: at least 200 examples each of the fast functions and 25 of the formulas, along a random direction
and for every element; where inputs and parameters together are more than 120 numbers, every element of each tenth
example. Whole models: every element once, and 50 examples along random directions. The profile `quick` draws 10
examples of each, and 4 elements of each array of a model.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from table import MODEL_ELEMENTS, MODELS, PARTS, PROFILE, Case, name_of

import minivit
from minivit import check_complex_step, check_vjp
from minivit.fast import dispatch
from minivit.strategies import arrays, seeds

FEW = 120  # numbers; the complex step runs the forward pass once for each
MODEL_EXAMPLES = {"long": 5000, "ci": 50}.get(PROFILE, 10)
FORMULA_EXAMPLES = {"long": 5000, "ci": 25}.get(PROFILE, 10)


def drawn(data: Any, case: Case) -> tuple[Any, ...]:
    """Arguments of drawn shapes; away from kinks where the case has one."""
    args = data.draw(arrays(case.letters, **case.fixed))
    return tuple(arg + 0.1 * np.sign(arg) for arg in args) if case.kink else args


@pytest.mark.parametrize("case", PARTS, ids=name_of)
@given(data=st.data(), seed=seeds())
def test_both_checks_hold(case: Case, data: Any, seed: int) -> None:
    both_checks(case, data, seed)


@pytest.mark.parametrize("case", PARTS, ids=name_of)
@settings(max_examples=FORMULA_EXAMPLES)
@given(data=st.data(), seed=seeds())
def test_both_checks_hold_for_the_formula(case: Case, data: Any, seed: int) -> None:
    with minivit.plain():
        both_checks(case, data, seed)


def both_checks(case: Case, data: Any, seed: int) -> None:
    args = drawn(data, case)
    function, noise = case.callable(args), seed if case.noise else None
    check_vjp(function, *args, seed=seed, rng_seed=noise)
    parameters = function.parameters().values() if case.layer else ()
    numbers = sum(each.size for each in (*args, *parameters))
    if case.analytic and (numbers <= FEW or seed % 10 == 0):
        check_complex_step(function, *args, seed=seed, rng_seed=noise)


@pytest.mark.parametrize("mode", dispatch.MODES)
@pytest.mark.parametrize("case", MODELS, ids=name_of)
def test_every_element_of_a_model(case: Case, mode: str) -> None:
    args, noise = case.arguments(), 7 if case.noise else None
    with dispatch.use(mode):
        check_complex_step(case.callable(args), *args, seed=1, rng_seed=noise, elements=MODEL_ELEMENTS)


@pytest.mark.parametrize("case", MODELS, ids=name_of)
@settings(max_examples=MODEL_EXAMPLES)
@given(data=st.data(), seed=seeds())
def test_a_model_along_random_directions(case: Case, data: Any, seed: int) -> None:
    args = data.draw(arrays(case.letters, **case.fixed))
    check_vjp(case.callable(args), *args, seed=seed, rng_seed=seed if case.noise else None)
