"""The fast functions against the formulas: equal to the precision of float32, and chosen where they should be.

How each is proven by itself: test_gradients.py.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from table import FUNCTIONS, LAYERS, MODELS, Case, name_of

import minivit
from minivit import functional as F, nn
from minivit.fast import dispatch
from minivit.fast.numpy import REPLACEMENTS
from minivit.optim import optimizers
from minivit.strategies import arrays, seeds

FORWARD, BACKWARD = 1e-6, 1e-5  # of the largest element, in float32
on_host = [case for case in FUNCTIONS if not case.host_only]


def parts(value: Any) -> list[Any]:
    return [part for part in value if part is not None] if isinstance(value, tuple) else [value]


def results(case: Case, args: tuple[Any, ...], seed: int, mode: str) -> tuple[list[Any], list[Any]]:
    """y, and the gradients of arguments and parameters, in one mode."""
    with dispatch.use(mode):
        f = case.callable(args)
        draws = np.random.default_rng((seed, 17))  # apart from what drew the arguments
        if case.layer:
            for param in f.parameters().values():
                param.data = param.data + 0.2 * draws.standard_normal(param.shape)
        noise = np.random.default_rng(9) if case.noise else None
        y, back = f(args[0], noise) if case.layer else f(*args)
        dy = [draws.standard_normal(part.shape).astype(part.dtype) if part.ndim else 0.7 for part in parts(y)]
        gradients = parts(back(*dy))
        if case.layer:
            gradients += [param.grad for param in f.parameters().values()]
    return parts(y), [gradient for gradient in gradients if gradient is not None]


def close(got: list[Any], expected: list[Any], bound: float, least: float = 0.1) -> None:
    assert len(got) == len(expected)
    # a gradient that is 0 but for rounding has no scale of its own: its tensors share the largest
    scale = max((float(np.abs(each).max()) for each in expected if each.size), default=0.0)
    for ours, theirs in zip(got, expected):
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        if theirs.size:
            assert np.abs(ours - theirs).max() <= bound * max(scale, least)


@pytest.mark.parametrize("case", on_host, ids=name_of)
@settings(max_examples=50)
@given(data=st.data(), seed=seeds())
def test_a_function_equals_its_formula(case: Case, data: Any, seed: int) -> None:
    args = data.draw(arrays(case.letters, **case.fixed))
    if case.kink:
        args = tuple(arg + 0.1 * np.sign(arg) for arg in args)
    for dtype, forward, backward in (("float32", FORWARD, BACKWARD), ("float64", 1e-13, 1e-12)):
        cast = tuple(arg.astype(dtype) for arg in args)
        fast, plain = (results(case, cast, seed, mode) for mode in dispatch.MODES)
        close(fast[0], plain[0], forward, case.scale)
        close(fast[1], plain[1], backward, case.scale)


@pytest.mark.parametrize("case", LAYERS + MODELS, ids=name_of)
@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("float64", 1e-11)])
def test_a_layer_or_model_by_formulas_is_the_same(case: Case, dtype: str, bound: float) -> None:
    args = case.arguments(dtype=dtype)
    fast, plain = (results(case, args, 3, mode) for mode in dispatch.MODES)
    close(fast[0], plain[0], bound)
    close(fast[1], plain[1], bound)


def test_gelu_over_its_whole_range() -> None:
    x = np.concatenate([np.linspace(-12, 12, 400_001), [0.0, -0.0, 1e-45, -1e-30, 1e-20, 1e19, -1e30, 3e38]])
    x32 = x.astype(np.float32)
    y, vjp = F.gelu(x32)
    exact, exact_vjp = F.gelu.plain(x32.astype(np.float64))
    slope, exact_slope = vjp(np.ones_like(x32)), exact_vjp(np.ones(len(x)))
    inside = np.abs(x32) < 1e18  # beyond, y is x or 0
    assert np.abs(y - exact)[inside].max() <= FORWARD * 12
    assert np.abs((y - exact) / np.maximum(np.abs(exact), 1))[inside].max() <= FORWARD
    assert np.abs(slope - exact_slope).max() <= BACKWARD
    np.testing.assert_array_equal(y[~inside], np.maximum(x32[~inside], 0))


# --- the choice -----------------------------------------------------------------------------------------------------


def test_every_replacement_has_the_name_of_a_public_function() -> None:
    for name, found in REPLACEMENTS.items():
        function = optimizers.update if name == "adamw_step" else getattr(F, name)
        assert found.function is not function.plain and found.function.__name__ == name


def ran(function: Any, *args: Any) -> bool:
    """Whether the replacement ran, seen from the file that the vjp was defined in."""
    _, vjp = function(*args)
    return "fast" in vjp._function.__code__.co_filename.replace("\\", "/").split("/")


def test_the_replacement_runs_where_the_dtype_has_one() -> None:
    x = np.ones((2, 3), np.float32)
    assert ran(F.gelu, x) and not ran(F.gelu, x.astype("float64")) and not ran(F.gelu.plain, x)
    assert ran(F.layer_norm, x, None, None) and ran(F.layer_norm, x.astype("float64"), None, None)
    assert ran(F.layer_norm, x.astype("float16"), None, None)  # computed in float32
    with minivit.plain():
        assert not ran(F.gelu, x) and not ran(F.layer_norm, x, None, None)
    assert ran(F.gelu, x)


def test_plain_holds_for_the_threads_of_the_process() -> None:
    found = []
    with minivit.plain():
        thread = threading.Thread(target=lambda: found.append(ran(F.gelu, np.ones((2, 3), np.float32))))
        thread.start()
        thread.join()
    assert found == [False]


def test_a_recomputed_layer_repeats_the_choice_of_its_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = []

    class Noting(nn.Identity):
        def forward(self, x: Any, rng: Any = None) -> Any:
            chosen.append(dispatch.current_mode())
            return super().forward(x, rng)

    layer, x = nn.Recompute(Noting()), np.ones((2, 3), np.float32)
    with minivit.plain():
        _, back = layer(x)
    back(x)
    _, back = layer(x)
    with minivit.plain():
        back(x)
    assert chosen == ["plain", "plain", "auto", "auto"]


def test_unknown_modes_and_parts_are_refused() -> None:
    with pytest.raises(ValueError, match="choose one of auto, plain"), dispatch.use("quick"):
        pass
    with pytest.raises(ValueError, match="patch_embed calls nothing named quick"):
        dispatch.with_parts(F.patch_embed.plain, quick=F.linear)
    with pytest.raises(TypeError, match="not a Python function"):
        dispatch.with_parts(len)  # type: ignore[arg-type]


def test_the_public_function_shows_the_formula() -> None:
    import inspect

    assert inspect.signature(F.layer_norm) == inspect.signature(F.layer_norm.plain)
    assert F.layer_norm.__doc__ == F.layer_norm.plain.__doc__ and F.layer_norm.__name__ == "layer_norm"
