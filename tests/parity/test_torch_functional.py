"""Every function of `minivit.functional` that PyTorch has too: the same outputs and the same gradients.

In float64 they agree to rounding, in float32 as closely as two float32 programs can.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from parity_tools import DTYPES, check_forward, check_gradients, compare_function, tensor, torch

from minivit import functional as F

TF = torch.nn.functional
Draw = Callable[[Any], list[Any]]


@dataclass(frozen=True)
class Case:
    """A function, its counterpart, and what draws their arguments from a generator."""

    name: str
    ours: Callable[..., Any]
    theirs: Callable[..., Any]
    draw: Draw


def normal(*shapes: tuple[int, ...], scale: float = 1.0) -> Draw:
    """Normal draws of the given shapes."""
    return lambda rng: [scale * rng.standard_normal(shape) for shape in shapes]


def without_bias(*shapes: tuple[int, ...]) -> Draw:
    """Normal draws, and None for the bias."""
    return lambda rng: [*normal(*shapes)(rng), None]


def rows_for_norm(rng: Any) -> Any:
    """Tokens of which every other has a variance near eps, where a wrong eps shows immediately."""
    x = rng.standard_normal((3, 4, 6)) + 0.2
    x[:, ::2] *= 1.5e-3
    return x


def norm_arguments(weight: bool, bias: bool, low: bool = True) -> Draw:
    def draw(rng: Any) -> list[Any]:
        x = rows_for_norm(rng) if low else rng.standard_normal((3, 4, 6)) + 0.5
        gain, offset = 1 + 0.5 * rng.standard_normal(6), rng.standard_normal(6)
        return [x, gain if weight else None, offset if bias else None]

    return draw


def wide(rng: Any) -> list[Any]:
    """From -9 to 9 and 0 itself, so that both tails are there."""
    x = 3 * rng.standard_normal((2, 5, 7))
    x[0, 0] = [-9, -4, -0.5, 0, 0.5, 4, 9]
    return [x]


def far_apart(rng: Any) -> list[Any]:
    """One row that overflows exp without the shift, one that underflows, and ordinary ones."""
    x = rng.standard_normal((2, 3, 5))
    x[0, 0] += 900
    x[0, 1] -= 900
    x[1, 0] *= 40
    return [x]


def torch_norm(eps: float) -> Callable[..., Any]:
    return lambda x, weight, bias: TF.layer_norm(x, x.shape[-1:], weight, bias, eps)


def convolution(images: Any, weight: Any, bias: Any) -> Any:
    return TF.conv2d(images, weight, bias, stride=weight.shape[2:]).flatten(2).transpose(1, 2)


ELEMENTWISE = [
    Case("linear", F.linear, TF.linear, normal((2, 3, 5), (4, 5), (4,))),
    Case("linear_no_bias", F.linear, TF.linear, without_bias((2, 3, 5), (4, 5))),
    Case("linear_rows", F.linear, TF.linear, normal((6, 5), (4, 5), (4,))),
    Case("gelu", F.gelu, TF.gelu, wide),
    Case("gelu_tanh", lambda x: F.gelu(x, "tanh"), lambda x: TF.gelu(x, approximate="tanh"), wide),
    Case("relu", F.relu, TF.relu, wide),
    Case("tanh", F.tanh, torch.tanh, wide),
    Case("softmax", F.softmax, lambda x: TF.softmax(x, -1), normal((2, 3, 5))),
    Case("softmax_far_apart", F.softmax, lambda x: TF.softmax(x, -1), far_apart),
    Case("log_softmax", F.log_softmax, lambda x: TF.log_softmax(x, -1), normal((2, 3, 5))),
    Case("log_softmax_far_apart", F.log_softmax, lambda x: TF.log_softmax(x, -1), far_apart),
    Case("mean_pool", F.mean_pool, lambda x: x.mean(1), normal((2, 5, 3))),
    Case("mean_pool_axis_2", lambda x: F.mean_pool(x, axis=2), lambda x: x.mean(2), normal((2, 5, 3, 4))),
    Case("patch_embed", F.patch_embed, convolution, normal((2, 3, 6, 9), (4, 3, 3, 3), (4,))),
    Case("patch_embed_wide", F.patch_embed, convolution, normal((2, 3, 4, 15), (4, 3, 2, 5), (4,))),
    Case("patch_embed_tall", F.patch_embed, convolution, normal((2, 2, 12, 4), (5, 2, 4, 1), (5,))),
    Case("patch_embed_no_bias", F.patch_embed, convolution, without_bias((2, 1, 4, 6), (5, 1, 2, 3))),
]

NORMS = [
    Case(
        f"layer_norm_{eps}_{'weight' if weight else ''}{'bias' if bias else ''}{'low' if low else ''}",
        lambda x, weight, bias, eps=eps: F.layer_norm(x, weight, bias, eps),
        torch_norm(eps),
        norm_arguments(weight, bias, low),
    )
    for eps in (1e-5, 1e-6)
    for weight, bias in ((True, True), (True, False), (False, True), (False, False))
    for low in (True, False)
]

QKV = ((2, 3, 4, 5), (2, 3, 6, 5), (2, 3, 6, 7))  # B, H, N or M, d: the values may have another width


def look(rng: Any) -> Any:
    """Who may look at whom, everybody at something: (B, 1, N, M), the same for all heads."""
    mask = rng.random((2, 1, 4, 6)) < 0.5
    mask[..., 2] = True
    return mask


MASK = look(np.random.default_rng(11))
ATTENTION = [
    Case("plain", F.scaled_dot_product_attention, TF.scaled_dot_product_attention, normal(*QKV)),
    Case("three_axes", F.scaled_dot_product_attention, TF.scaled_dot_product_attention, normal(*[s[1:] for s in QKV])),
    Case("large_scores", F.scaled_dot_product_attention, TF.scaled_dot_product_attention, normal(*QKV, scale=4.0)),
    Case(
        "scale",
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=0.3),
        lambda q, k, v: TF.scaled_dot_product_attention(q, k, v, scale=0.3),
        normal(*QKV),
    ),
    Case(
        "mask",
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, MASK),
        lambda q, k, v: TF.scaled_dot_product_attention(q, k, v, torch.tensor(MASK)),
        normal(*QKV),
    ),
    *(
        Case(
            f"bias_{'x'.join(map(str, shape))}",
            lambda q, k, v, bias: F.scaled_dot_product_attention(q, k, v, None, bias),
            lambda q, k, v, bias: TF.scaled_dot_product_attention(q, k, v, bias.expand(2, 3, 4, 6)),
            normal(*QKV, shape),
        )
        for shape in ((2, 3, 4, 6), (3, 4, 6), (2, 1, 1, 6), (3, 4, 1), (4, 6), (6,))
    ),
    Case(
        "mask_and_bias",
        lambda q, k, v, bias: F.scaled_dot_product_attention(q, k, v, MASK, bias),
        lambda q, k, v, bias: TF.scaled_dot_product_attention(
            q, k, v, bias.expand(2, 3, 4, 6).masked_fill(~torch.tensor(MASK), -torch.inf)
        ),
        normal(*QKV, (3, 4, 6)),
    ),
]


def run(case: Case, dtype: str, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    arrays = [None if array is None else array.astype(dtype) for array in case.draw(rng)]
    compare_function(case.ours, case.theirs, arrays, rng)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", ELEMENTWISE, ids=lambda case: case.name)
def test_simple_functions(case: Case, dtype: str) -> None:
    run(case, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", NORMS, ids=lambda case: case.name)
def test_layer_norm(case: Case, dtype: str) -> None:
    run(case, dtype)


def test_layer_norm_of_rows_far_from_zero() -> None:
    # with a mean 1,000 times the spread, E[x^2] - mean^2 would have lost 6 of 16 digits; both programs keep them
    rng = np.random.default_rng(0)
    x, gain, offset = rng.standard_normal((3, 4, 6)) + 1e3, 1 + rng.standard_normal(6), rng.standard_normal(6)
    compare_function(lambda *args: F.layer_norm(*args, 1e-6), torch_norm(1e-6), [x, gain, offset], rng)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", ATTENTION, ids=lambda case: case.name)
def test_attention(case: Case, dtype: str) -> None:
    run(case, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_fully_masked_query_gets_zero_and_changes_no_other(dtype: str) -> None:
    # by PyTorch's documented formula such a row is 0/0, so PyTorch computes the others without this query
    rng = np.random.default_rng(2)
    q, k, v = (rng.standard_normal(shape).astype(dtype) for shape in QKV)
    blind, mask = 1, MASK.copy()
    mask[:, :, blind] = False
    others = [0, 2, 3]
    tq, tk, tv = tensor(q[:, :, others]), tensor(k), tensor(v)
    expected = TF.scaled_dot_product_attention(tq, tk, tv, torch.tensor(mask[:, :, others]))
    y, vjp = F.scaled_dot_product_attention(q, k, v, mask)
    dy = rng.standard_normal(y.shape).astype(dtype)
    expected.backward(torch.tensor(dy[:, :, others]))
    dq, dk, dv, dbias = vjp(dy)
    check_forward(y[:, :, others], expected)
    check_gradients({"q": dq[:, :, others], "k": dk, "v": dv}, {"q": tq.grad, "k": tk.grad, "v": tv.grad})
    assert not y[:, :, blind].any()
    assert not dq[:, :, blind].any()
    assert dbias is None


@pytest.mark.parametrize("dtype", DTYPES)
def test_embedding(dtype: str) -> None:
    rng = np.random.default_rng(0)
    index = rng.integers(0, 6, (3, 5))  # 15 look-ups in 6 rows: some rows come several times
    table = rng.standard_normal((7, 4)).astype(dtype)
    compare_function(
        lambda table: F.embedding(index, table), lambda table: TF.embedding(torch.tensor(index), table), [table], rng
    )


LABELS = np.array([2, 0, 4, 2])


def soft(sums_to_one: bool) -> Any:
    targets = np.random.default_rng(3).random((4, 5))
    return targets / targets.sum(axis=1, keepdims=True) if sums_to_one else targets


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.0, 300.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("labels", [LABELS, soft(True), soft(False)], ids=["classes", "soft", "soft_any_sum"])
def test_softmax_cross_entropy(labels: Any, smoothing: float, scale: float, dtype: str) -> None:
    rng = np.random.default_rng(0)
    labels = labels if labels.dtype.kind == "i" else labels.astype(dtype)
    compare_function(
        lambda logits: F.softmax_cross_entropy(logits, labels, smoothing),
        lambda logits: TF.cross_entropy(logits, torch.tensor(labels), label_smoothing=smoothing),
        [(scale * rng.standard_normal((4, 5))).astype(dtype)],
        rng,
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_mean_squared_error(dtype: str) -> None:
    rng = np.random.default_rng(0)
    prediction, target = (rng.standard_normal((4, 3, 2)).astype(dtype) for _ in range(2))
    compare_function(
        lambda x: F.mean_squared_error(x, target), lambda x: TF.mse_loss(x, torch.tensor(target)), [prediction], rng
    )


# no target is one column wide: there PyTorch's antialiased resize (2.13 on a CPU) fills the column with its first value
SIZES = {
    "up": ((4, 6), (7, 13)),
    "down": ((9, 14), (4, 3)),
    "up_and_down": ((5, 8), (11, 3)),
    "one_axis": ((6, 4), (6, 9)),
    "far_down": ((17, 12), (1, 2)),
    "from_one": ((1, 5), (4, 2)),
    "vit": ((14, 14), (24, 24)),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize("name", SIZES)
def test_resize_grid(name: str, mode: str, antialias: bool, dtype: str) -> None:
    source, target = SIZES[name]
    rng = np.random.default_rng(0)
    grid = rng.standard_normal((*source, 3)).astype(dtype)
    compare_function(
        lambda x: F.resize_grid(x, target, mode, antialias),
        lambda x: interpolate(x, target, mode, antialias),
        [grid],
        rng,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
def test_resize_grid_to_one_column(mode: str, dtype: str) -> None:
    rng = np.random.default_rng(0)

    def theirs(x: Any) -> Any:
        column = interpolate(x, (17, 1), mode, True)
        return interpolate(column.transpose(0, 1), (1, 3), mode, True).transpose(0, 1)  # along the axis that works

    grid = rng.standard_normal((17, 12, 3)).astype(dtype)
    compare_function(lambda x: F.resize_grid(x, (3, 1), mode), theirs, [grid], rng)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize("target", [(7, 3), (2, 9), (4, 5), (1, 6)])
def test_resize_grid_with_corners_on_corners(mode: str, target: Any, dtype: str) -> None:
    rng = np.random.default_rng(0)
    compare_function(
        lambda x: F.resize_grid(x, target, mode, False, True),
        lambda x: interpolate(x, target, mode, False, corners=True),
        [rng.standard_normal((4, 5, 3)).astype(dtype)],
        rng,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("target", [(7, 3), (2, 9), (1, 6)])  # the size itself has the identity as PyTorch's gradient
def test_resize_grid_by_a_factor_with_an_offset(target: Any, dtype: str) -> None:
    rng = np.random.default_rng(0)

    def theirs(x: Any) -> Any:  # as in DINO's interpolate_pos_encoding
        factors = tuple((side + 0.1) / source for side, source in zip(target, x.shape))
        resized = TF.interpolate(x.permute(2, 0, 1)[None], scale_factor=factors, mode="bicubic")
        return resized[0].permute(1, 2, 0)

    grid = rng.standard_normal((4, 5, 3)).astype(dtype)
    compare_function(lambda x: F.resize_grid(x, target, antialias=False, offset=0.1), theirs, [grid], rng)


def interpolate(x: Any, size: tuple[int, int], mode: str, antialias: bool, corners: bool = False) -> Any:
    images = x.permute(2, 0, 1)[None]  # (1, D, h, w)
    resized = TF.interpolate(images, size, mode=mode, antialias=antialias, align_corners=corners)
    return resized[0].permute(1, 2, 0)
