"""The gradient checks can fail: each bug measured in published from-scratch code is planted here and must be caught.

Beside each stands the special setting that would have hidden it, where there is one, and that it does hide it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from table import EVERYTHING, MODEL_ELEMENTS

import minivit
from minivit import functional as F, nn
from minivit.fast.numpy import norm as fast_norm
from minivit.gradcheck import GradientError
from minivit.protocol import once

CASES = {case.name: case for case in EVERYTHING}


def checks(name: str) -> None:
    """Both checks on one line of the table."""
    case = CASES[name]
    args = case.arguments(seed=2)
    noise = 3 if case.noise else None
    minivit.check_vjp(case.callable(args), *args, rng_seed=noise)
    minivit.check_complex_step(case.callable(args), *args, rng_seed=noise, elements=MODEL_ELEMENTS)


# --- the bugs: each takes monkeypatch and plants itself -------------------------------------------------------------


def gain_outside_the_sums(patch: Any) -> None:
    """LayerNorm's backward multiplies by the gain after the two means instead of before."""
    plain = F.layer_norm

    def layer_norm(x: Any, weight: Any, bias: Any, eps: float = 1e-6) -> Any:
        y, vjp = plain(x, weight, bias, eps)
        _, vjp_plain = plain(x, None, None, eps)

        @once
        def buggy(dy: Any) -> Any:
            _, dweight, dbias = vjp(dy)
            return vjp_plain(dy)[0] * weight, dweight, dbias

        return y, buggy

    patch.setattr(F, "layer_norm", layer_norm)


def mean_term_forgotten(patch: Any) -> None:
    """LayerNorm's backward forgets that x also moves the mean."""

    def backward(dxhat: Any, xhat: Any, rstd: Any) -> Any:
        return rstd * (dxhat - xhat * (dxhat * xhat).mean(axis=1, keepdims=True))

    patch.setattr(fast_norm, "normalize_rows_backward", backward)


def softmax_divided_by_the_batch(patch: Any) -> None:
    """Every layer averages, instead of the loss alone."""
    _replace(patch, "softmax", lambda y, vjp: once(lambda dy: vjp(dy) / len(dy)))


def softmax_backward_is_zero(patch: Any) -> None:
    """What dy of ones cannot see: the true gradient is then 0 as well."""
    _replace(patch, "softmax", lambda y, vjp: once(lambda dy: np.zeros_like(dy)))


def softmax_backward_is_missing(patch: Any) -> None:
    """softmax's backward passes dy through, because the loss is trusted to have done it."""
    _replace(patch, "softmax", lambda y, vjp: once(lambda dy: dy))


def softmax_writes_into_dy(patch: Any) -> None:
    """In-place arithmetic on an array that belongs to the caller."""

    def buggy(y: Any, vjp: Any) -> Any:
        def back(dy: Any) -> Any:
            dy *= y
            return dy - y * dy.sum(axis=-1, keepdims=True)

        return once(back)

    _replace(patch, "softmax", buggy)


def _replace(patch: Any, name: str, make: Callable[[Any, Any], Any]) -> None:
    """Give one line of the table a vjp made from y and the true vjp."""
    plain = CASES[name].build

    def build(*args: Any) -> Any:
        y, vjp = plain(*args)
        return y, make(y, vjp)

    object.__setattr__(CASES[name], "build", build)
    patch.callback = lambda: object.__setattr__(CASES[name], "build", plain)


def heads_merged_by_a_bare_reshape(patch: Any) -> None:
    """(B, H, N, d) reshaped to (B, N, H d) without the transpose; right for one token only."""
    plain = F.self_attention

    def self_attention(qkv: Any, num_heads: int, *more: Any, **options: Any) -> Any:
        y, vjp = plain(qkv, num_heads, *more, **options)
        batch, tokens, channels = y.shape
        heads = y.reshape(batch, tokens, num_heads, channels // num_heads).swapaxes(1, 2)
        return heads.reshape(batch, tokens, channels), vjp

    patch.setattr(F, "self_attention", self_attention)


def mask_kept_on_the_layer(patch: Any) -> None:
    """Dropout stores its mask on self, so that a second use overwrites the first one's."""

    def forward(self: Any, x: Any, rng: Any = None) -> Any:
        self.mask = 1.0 if rng is None else (rng.random(x.shape) < 0.6) / 0.6
        return x * self.mask, once(lambda dy: dy * self.mask)

    patch.setattr(nn.Dropout, "forward", forward)


def input_kept_on_the_layer(patch: Any) -> None:
    """Linear stores its input on self; used twice, the first use's gradient is taken at the second's input."""

    def forward(self: Any, x: Any, rng: Any = None) -> Any:
        self.x = x

        @once
        def back(dy: Any) -> Any:
            flat = self.x.reshape(-1, self.x.shape[-1])
            self.weight.accumulate(dy.reshape(-1, dy.shape[-1]).T @ flat)
            self.bias.accumulate(dy.reshape(-1, dy.shape[-1]).sum(axis=0))
            return dy @ self.weight.data

        return x @ self.weight.data.T + self.bias.data, back

    patch.setattr(nn.Linear, "forward", forward)


def gradients_overwritten(patch: Any) -> None:
    """`=` instead of `+=`: a layer used twice keeps only one use's gradient."""
    patch.setattr(nn.Parameter, "accumulate", lambda self, grad, fresh=False: setattr(self, "grad", grad.copy()))


def dropout_stays_on(patch: Any) -> None:
    """A train flag that does not reach nested layers: dropout draws although no generator was given."""
    plain = F.dropout
    secret = np.random.default_rng(0)
    patch.setattr(F, "dropout", lambda x, rate, rng=None: plain(x, 0.3, rng or secret))


def wo_forgotten(patch: Any) -> None:
    """The output projection's gradient is dropped on its way to the heads."""
    plain = nn.Attention.forward

    def forward(self: Any, x: Any, rng: Any = None) -> Any:
        y, back = plain(self, x, rng)
        return y, once(lambda dy: back(dy) * 0.5)

    patch.setattr(nn.Attention, "forward", forward)


CAUGHT_BY_THE_TABLE = [
    (gain_outside_the_sums, "LayerNorm"),
    (gain_outside_the_sums, "Block"),
    (mean_term_forgotten, "LayerNorm"),
    (softmax_divided_by_the_batch, "softmax"),
    (softmax_backward_is_zero, "softmax"),
    (softmax_backward_is_missing, "softmax"),
    (softmax_writes_into_dy, "softmax"),
    (heads_merged_by_a_bare_reshape, "Attention"),
    (dropout_stays_on, "ViT"),
    (wo_forgotten, "Block"),
]


class Plant:
    """monkeypatch, and one thing to undo that it cannot."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.setattr = monkeypatch.setattr
        self.callback: Callable[[], None] = lambda: None


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Any:
    plant = Plant(monkeypatch)
    yield plant
    plant.callback()


@pytest.mark.parametrize(("bug", "name"), CAUGHT_BY_THE_TABLE)
def test_a_planted_bug_is_caught(bug: Any, name: str, plant: Plant) -> None:
    checks(name)  # healthy before
    bug(plant)
    with pytest.raises((GradientError, ValueError)):
        checks(name)


class Sites(nn.Layer):
    """Two uses of one dropout around one linear layer, as in Microsoft's Swin, which uses one drop_path twice."""

    def __init__(self) -> None:
        self.drop = nn.Dropout(0.4)
        self.linear = nn.Linear(3, 3, dtype="float64", seed=0)

    def forward(self, x: Any, rng: Any = None) -> Any:
        a, back_first = self.drop(x, rng)
        b, back_linear1 = self.linear(a)
        c, back_second = self.drop(b, rng)
        y, back_linear2 = self.linear(c)

        @once
        def back(dy: Any) -> Any:
            return back_first(back_linear1(back_second(back_linear2(dy))))

        return y, back


@pytest.mark.parametrize("bug", [mask_kept_on_the_layer, input_kept_on_the_layer, gradients_overwritten])
def test_state_on_a_layer_is_caught_when_it_is_used_twice(bug: Any, plant: Plant) -> None:
    x = np.random.default_rng(1).standard_normal((4, 3))
    minivit.check_vjp(Sites(), x, rng_seed=2)
    bug(plant)
    with pytest.raises(GradientError):
        minivit.check_vjp(Sites(), x, rng_seed=2)


def test_float64_creeping_in_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dropout mask in float64 turns the whole network to float64; the table's dtype test compares dtypes."""
    layer = nn.Dropout(0.4)
    x = np.ones((2, 3), np.float32)
    assert layer(x, np.random.default_rng(0))[0].dtype == np.float32
    monkeypatch.setattr(nn.Dropout, "forward", lambda self, x, rng=None: (x * (rng.random(x.shape) < 0.6), None))
    assert layer(x, np.random.default_rng(0))[0].dtype == np.float32  # a bool mask is harmless
    monkeypatch.setattr(nn.Dropout, "forward", lambda self, x, rng=None: (x * rng.random(x.shape), None))
    assert layer(x, np.random.default_rng(0))[0].dtype == np.float64


# --- the settings that hide them ------------------------------------------------------------------------------------


def weak_check(f: Any, x: Any, dy: Any) -> float:
    """A check as often found: one random direction, and whatever dy one is given."""
    rng = np.random.default_rng(0)
    v = rng.standard_normal(x.shape)
    _, back = f(x)
    step = 1e-6
    slope = (np.sum(f(x + step * v)[0] * dy) - np.sum(f(x - step * v)[0] * dy)) / (2 * step)
    return abs(float(np.sum(back(dy) * v)) - slope)


def test_dy_of_ones_hides_a_missing_softmax_gradient() -> None:
    x = np.random.default_rng(2).standard_normal((2, 3))

    def zero_gradient(x: Any) -> Any:
        return F.softmax(x)[0], lambda dy: np.zeros_like(dy)

    assert weak_check(zero_gradient, x, np.ones((2, 3))) < 1e-9
    assert weak_check(zero_gradient, x, np.random.default_rng(3).standard_normal((2, 3))) > 1e-3


def test_a_gain_of_one_hides_where_the_gain_belongs(plant: Plant) -> None:
    gain_outside_the_sums(plant)
    layer = nn.LayerNorm(5, dtype="float64")
    x, dy = np.random.default_rng(4).standard_normal((2, 2, 5))
    assert weak_check(layer, x, dy) < 1e-8
    layer.weight.data = np.linspace(0.5, 2, 5)
    assert weak_check(layer, x, dy) > 1e-3


def test_a_batch_of_one_hides_a_division_by_the_batch() -> None:
    def divided(x: Any) -> Any:
        y, vjp = F.softmax(x)
        return y, lambda dy: vjp(dy) / len(dy)

    rng = np.random.default_rng(5)
    assert weak_check(divided, rng.standard_normal((1, 3)), rng.standard_normal((1, 3))) < 1e-9
    assert weak_check(divided, rng.standard_normal((2, 3)), rng.standard_normal((2, 3))) > 1e-3


def test_one_token_hides_a_wrong_merge_of_heads(plant: Plant) -> None:
    heads_merged_by_a_bare_reshape(plant)
    layer = nn.Attention(4, 2, dtype="float64", seed=0)
    rng = np.random.default_rng(6)
    one, many = rng.standard_normal((2, 1, 4)), rng.standard_normal((2, 3, 4))
    minivit.check_vjp(layer, one)
    with pytest.raises(GradientError):
        minivit.check_vjp(layer, many)


# --- the message ----------------------------------------------------------------------------------------------------


def test_the_message_names_layer_tensor_index_expected_and_got() -> None:
    class Scale(nn.Layer):
        def __init__(self) -> None:
            self.gain = nn.Parameter(np.ones(3))

        def forward(self, x: Any, rng: Any = None) -> Any:
            @once
            def back(dy: Any) -> Any:
                dgain = (dy * x).sum(axis=0)
                dgain[2] += 0.25  # wrong in one element
                self.gain.accumulate(dgain)
                return dy * self.gain.data

            return x * self.gain.data, back

    x = np.random.default_rng(7).standard_normal((2, 3))
    for check in (minivit.check_vjp, minivit.check_complex_step):
        with pytest.raises(GradientError, match=r"Scale: the gradient of gain .* 1 of 3 .*gain\[2\]: expected .* got "):
            check(Scale(), x)


def test_a_wrong_shape_and_a_missing_gradient_are_named() -> None:
    x = np.ones((2, 3))
    with pytest.raises(GradientError, match=r"argument 0 has shape \(3,\), but argument 0 has \(2, 3\)"):
        minivit.check_vjp(lambda x: (x * 2, lambda dy: dy[0]), x)

    class Forgetful(nn.Linear):
        def forward(self, x: Any, rng: Any = None) -> Any:
            return x @ self.weight.data.T, once(lambda dy: dy @ self.weight.data)

    with pytest.raises(ValueError, match="no gradient in parameter weight"):
        minivit.check_vjp(Forgetful(3, 2, False, dtype="float64"), x)
    with pytest.raises(ValueError, match="float32.*dtype='float64'"):
        minivit.check_vjp(nn.Linear(3, 2), x)


def test_assigning_a_gradient_instead_of_adding_it_is_caught_in_a_single_layer(plant: Plant) -> None:
    gradients_overwritten(plant)
    with pytest.raises(GradientError, match="second backward pass.*weight.*param.accumulate"):
        minivit.check_vjp(nn.Linear(3, 2, dtype="float64"), np.ones((2, 3)))


def test_gradients_without_an_argument_are_refused() -> None:
    x = np.random.default_rng(0).standard_normal((2, 3))
    double = 2 * x

    def forgets_to_return(x: Any) -> Any:
        return double, lambda dy: None

    with pytest.raises(GradientError, match="no gradient at position 0"):
        minivit.check_vjp(forgets_to_return, x)
    with pytest.raises(GradientError, match="one gradient for 2 floating arguments"):
        minivit.check_vjp(lambda a, b: (a + b, lambda dy: dy), x, x)
    with pytest.raises(GradientError, match="a gradient at position 1 of 2"):
        minivit.check_vjp(lambda a: (a * 2, lambda dy: (dy * 2, dy)), x)


def test_a_gradient_of_zeros_for_a_tiny_function_is_caught() -> None:
    x = np.random.default_rng(0).standard_normal((2, 3))
    for check in (minivit.check_vjp, minivit.check_complex_step):
        with pytest.raises(GradientError):
            check(lambda x: (1e-8 * x * x, lambda dy: np.zeros_like(dy)), x)
        check(lambda x: (0 * x + 1, lambda dy: np.zeros_like(dy)), x)  # a constant: the gradient is zero


def test_fortran_ordered_inputs_are_checked_rightly() -> None:
    x = np.asfortranarray(np.random.default_rng(0).standard_normal((3, 4)))
    minivit.check_complex_step(lambda x: (x * x, lambda dy: 2 * dy * x), x)


def test_as_many_elements_are_checked_as_are_asked_for() -> None:
    x = np.random.default_rng(0).standard_normal((4, 25))
    calls: list[int] = []

    def square(x: Any) -> Any:
        calls.append(1)
        return x * x, lambda dy: 2 * dy * x

    def wrong_once(x: Any) -> Any:
        return x * x, lambda dy: 2 * dy * x + np.eye(1, 100, 42).reshape(4, 25)

    minivit.check_complex_step(square, x, elements=7)
    assert len(calls) == 1 + 7
    calls.clear()
    minivit.check_complex_step(square, x, elements=1000)
    assert len(calls) == 1 + 100
    with pytest.raises(ValueError, match="elements=0 would check nothing"):
        minivit.check_complex_step(wrong_once, x, elements=0)
    found = []
    for seed in range(20):  # another draw for each seed
        try:
            minivit.check_complex_step(wrong_once, x, seed=seed, elements=50)
        except GradientError as error:
            found.append(str(error))
    assert 0 < len(found) < 20 and all("Worst at argument 0[1, 17]" in each for each in found)
