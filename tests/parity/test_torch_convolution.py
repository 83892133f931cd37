"""Convolution, pooling and the norms of maps against PyTorch, for every option that they have.

In float64 they agree to rounding, in float32 as closely as two float32 programs can.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from parity_tools import DTYPES, compare_function, compare_layer, tensor, torch

from minivit import functional as F, nn

TF = torch.nn.functional
dtypes = pytest.mark.parametrize("dtype", DTYPES)

# name: (x, weight), options of both sides; maps of odd and even sides, kernels of odd, even and unequal ones
CONVOLUTIONS: dict[str, tuple[tuple[Any, Any], dict[str, Any]]] = {
    "3x3": (((2, 3, 7, 6), (5, 3, 3, 3)), {}),
    "3x3_same": (((2, 6, 7, 6), (4, 6, 3, 3)), {"padding": 1}),
    "1x1": (((2, 6, 5, 4), (7, 6, 1, 1)), {}),
    "1x1_strided": (((2, 6, 5, 4), (7, 6, 1, 1)), {"stride": 2}),
    "1x1_padded": (((2, 6, 5, 4), (3, 6, 1, 1)), {"padding": 1}),
    "stem": (((2, 3, 17, 18), (8, 3, 7, 7)), {"stride": 2, "padding": 3}),
    "even_kernel": (((2, 3, 8, 9), (2, 3, 2, 4)), {"padding": (1, 2)}),
    "patches": (((2, 3, 8, 12), (5, 3, 4, 3)), {"stride": (4, 3)}),
    "pixels_left_over": (((2, 3, 10, 11), (5, 3, 3, 2)), {"stride": (4, 3)}),
    "stride_beyond_kernel": (((2, 3, 9, 9), (5, 3, 2, 2)), {"stride": 3, "padding": 1}),
    "pairs": (((2, 3, 9, 8), (5, 3, 3, 2)), {"stride": (2, 1), "padding": (0, 2), "dilation": (1, 3)}),
    "dilated": (((2, 4, 9, 9), (4, 4, 3, 3)), {"padding": 2, "dilation": 2}),
    "dilated_strided": (((2, 3, 11, 10), (5, 3, 3, 3)), {"stride": 2, "padding": 2, "dilation": (2, 3)}),
    "padding_beyond_kernel": (((2, 4, 4, 5), (3, 4, 2, 3)), {"padding": (3, 4)}),
    "groups": (((2, 6, 6, 5), (4, 3, 3, 3)), {"padding": 1, "groups": 2}),
    "groups_widening": (((2, 4, 6, 5), (8, 2, 3, 3)), {"stride": 2, "groups": 2}),
    "depthwise": (((2, 4, 6, 7), (4, 1, 3, 3)), {"padding": 1, "groups": 4}),
    "depthwise_multiplier": (((2, 3, 6, 7), (6, 1, 3, 3)), {"padding": 1, "groups": 3, "dilation": (2, 1)}),
    "whole_map": (((3, 4, 5, 6), (7, 4, 5, 6)), {}),
    "one_image": (((1, 2, 5, 5), (3, 2, 3, 3)), {"padding": 1}),
    "many_blocks": (((3, 16, 40, 37), (8, 16, 5, 5)), {"padding": 2}),  # more than one block of each kind
    "many_blocks_strided": (((3, 16, 40, 37), (24, 16, 5, 5)), {"stride": (1, 2), "padding": 2}),
}


@dtypes
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_conv2d(name: str, bias: bool, dtype: str) -> None:
    rng = np.random.default_rng(0)
    (x_shape, w_shape), options = CONVOLUTIONS[name]
    arrays = [rng.standard_normal(shape).astype(dtype) for shape in (x_shape, w_shape, w_shape[:1])]
    arrays = arrays if bias else [*arrays[:2], None]
    compare_function(
        lambda x, w, b: F.conv2d(x, w, b, **options),
        lambda x, w, b: TF.conv2d(x, w, b, **options),
        arrays,
        rng,
        slack=2.0 if dtype == "float32" else 1.0,  # sums of up to 400 products, in another order
    )


@dtypes
def test_standardize_weight(dtype: str) -> None:
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((5, 3, 3, 2)).astype(dtype)
    weight[1] *= 1.5e-3  # a variance near eps

    def theirs(w: Any) -> Any:  # as timm writes it
        rows = w.reshape(1, len(w), -1)
        return TF.batch_norm(rows, None, None, training=True, momentum=0.0, eps=1e-6).reshape_as(w)

    compare_function(F.standardize_weight, theirs, [weight], rng)


MAPS = {"maps": (4, 6, 5, 3), "rows": (4, 6, 7), "one_place": (8, 6)}


@dtypes
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
@pytest.mark.parametrize(  # no groups of 2 numbers: they become (+1, -1), and their gradient rounding noise
    ("shape", "groups"),
    [(shape, groups) for shape in MAPS for groups in (1, 2, 3) if (shape, groups) != ("one_place", 3)],
)
def test_group_norm(shape: str, groups: int, affine: bool, dtype: str) -> None:
    rng = np.random.default_rng(2)
    compare_function(
        lambda x, w, b: F.group_norm(x, groups, w, b),
        lambda x, w, b: TF.group_norm(x, groups, w, b),
        norm_arguments(MAPS[shape], affine, rng, dtype),
        rng,
        slack=2.0 if dtype == "float32" else 1.0,
    )


@dtypes
@pytest.mark.parametrize("eps", [1e-5, 1e-3])
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
@pytest.mark.parametrize("shape", MAPS)
def test_batch_norm(shape: str, affine: bool, eps: float, dtype: str) -> None:
    rng = np.random.default_rng(3)
    arrays = norm_arguments(MAPS[shape], affine, rng, dtype)
    slack = 2.0 if dtype == "float32" else 1.0
    compare_function(
        lambda x, w, b: without_statistics(F.batch_norm(x, None, None, w, b, eps)),
        lambda x, w, b: TF.batch_norm(x, None, None, w, b, training=True, eps=eps),
        arrays,
        rng,
        slack,
    )
    mean, variance = rng.standard_normal(6).astype(dtype), rng.uniform(0.5, 2, 6).astype(dtype)
    compare_function(
        lambda x, w, b: without_statistics(F.batch_norm(x, mean, variance, w, b, eps)),
        lambda x, w, b: TF.batch_norm(x, torch.tensor(mean), torch.tensor(variance), w, b, eps=eps),
        arrays,
        rng,
        slack,
    )


@dtypes
def test_the_gradients_of_given_statistics(dtype: str) -> None:
    """PyTorch's function gives them none, so its side is the formula."""
    rng = np.random.default_rng(4)

    def theirs(x: Any, mean: Any, variance: Any, w: Any, b: Any) -> Any:
        x = x.transpose(1, -1)
        return ((x - mean) / (variance + 1e-5).sqrt() * w + b).transpose(1, -1)

    x, w, b = norm_arguments((4, 6, 5, 3), True, rng, dtype)
    arrays = [x, rng.standard_normal(6).astype(dtype), rng.uniform(0.5, 2, 6).astype(dtype), w, b]
    compare_function(F.batch_norm, theirs, arrays, rng, slack=2.0 if dtype == "float32" else 1.0)


def without_statistics(result: Any) -> Any:
    y, vjp = result
    return y, lambda dy: tuple(gradient for place, gradient in enumerate(vjp(dy)) if place not in (1, 2))


def norm_arguments(shape: Any, affine: bool, rng: Any, dtype: str) -> list[Any]:
    x = rng.standard_normal(shape) * (0.5 + np.arange(6)).reshape(6, *[1] * (len(shape) - 2)) + 0.3
    gain, offset = 1 + 0.5 * rng.standard_normal(6), rng.standard_normal(6)
    arrays = [x, gain, offset] if affine else [x, None, None]
    return [None if array is None else array.astype(dtype) for array in arrays]


POOLS = [((2, 2), None, 0), ((3, 3), 2, 1), ((2, 3), (1, 2), (1, 0)), (3, 1, 1), (1, 2, 0), ((4, 2), (3, 3), (2, 1))]


@dtypes
@pytest.mark.parametrize("pool", POOLS)
def test_pooling(pool: Any, dtype: str) -> None:
    rng = np.random.default_rng(5)
    kernel, stride, padding = pool
    x = rng.standard_normal((2, 3, 7, 8)).astype(dtype)
    ties = rng.integers(0, 3, x.shape).astype(dtype)  # PyTorch on a CPU takes the first of equal numbers, too
    for values in (x, ties):
        compare_function(
            lambda x: F.max_pool2d(x, kernel, stride, padding),
            lambda x: TF.max_pool2d(x, kernel, stride, padding),
            [values],
            rng,
        )
    for inside in (True, False):
        compare_function(
            lambda x, inside=inside: F.avg_pool2d(x, kernel, stride, padding, inside),
            lambda x, inside=inside: TF.avg_pool2d(x, kernel, stride, padding, count_include_pad=inside),
            [x],
            rng,
        )


def test_max_pooling_of_what_is_not_finite() -> None:
    """At most one NaN in a window: of several PyTorch takes the last, and minivit the first as NumPy's argmax does."""
    x = np.random.default_rng(6).standard_normal((2, 2, 6, 6))
    x[0, 0], x[0, 1, :3], x[1, 0, 2, 2], x[1, 1, 0, 0] = -np.inf, -np.inf, np.nan, np.inf
    tx = tensor(x)
    expected = TF.max_pool2d(tx, 3, 2, 1)
    y, vjp = F.max_pool2d(x, 3, 2, 1)
    np.testing.assert_array_equal(y, expected.detach().numpy())
    dy = np.random.default_rng(7).standard_normal(y.shape)
    expected.backward(torch.tensor(dy))
    np.testing.assert_allclose(vjp(dy), tx.grad.numpy(), rtol=1e-14)


@dtypes
@pytest.mark.parametrize("size", [1, (2, 3), (7, 8), (3, 1), (9, 10)])
def test_adaptive_pooling(size: Any, dtype: str) -> None:
    rng = np.random.default_rng(8)
    x = rng.standard_normal((2, 3, 7, 8)).astype(dtype)
    compare_function(lambda x: F.adaptive_avg_pool2d(x, size), lambda x: TF.adaptive_avg_pool2d(x, size), [x], rng)


# --- layers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (
            nn.Conv2d(4, 6, (3, 2), 2, 1, (1, 2), 2, dtype="float64", seed=0),
            torch.nn.Conv2d(4, 6, (3, 2), 2, 1, (1, 2), 2),
        ),
        (nn.Conv2d(4, 6, 3, bias=False, dtype="float64", seed=0), torch.nn.Conv2d(4, 6, 3, bias=False)),
        (nn.GroupNorm(2, 4, dtype="float64"), torch.nn.GroupNorm(2, 4)),
        (nn.BatchNorm2d(4, dtype="float64"), torch.nn.BatchNorm2d(4).eval()),
        (nn.MaxPool2d(3, 2, 1), torch.nn.MaxPool2d(3, 2, 1)),
        (nn.AvgPool2d(3, None, 1, False), torch.nn.AvgPool2d(3, None, 1, count_include_pad=False)),
        (nn.AdaptiveAvgPool2d((2, 1)), torch.nn.AdaptiveAvgPool2d((2, 1))),
    ],
    ids=lambda layer: type(layer).__name__ if isinstance(layer, nn.Layer) else "",
)
def test_layers_have_pytorchs_names_and_numbers(ours: nn.Layer, theirs: Any) -> None:
    rng = np.random.default_rng(9)
    for param in ours.parameters().values():
        param.data = 1 + 0.3 * rng.standard_normal(param.shape)
    names = {name: name for name in ours.parameters()}
    compare_layer(ours, theirs.double(), rng.standard_normal((2, 4, 7, 8)), rng, names)


def test_batch_norm_learns_the_statistics_that_pytorch_learns() -> None:
    rng = np.random.default_rng(10)
    ours, theirs = nn.BatchNorm2d(3, momentum=0.3, dtype="float64"), torch.nn.BatchNorm2d(3, momentum=0.3).double()
    for _ in range(4):
        x = 2 * rng.standard_normal((3, 3, 4, 5)) + 1
        theirs(torch.tensor(x))
        y, back = ours(x, rng)
        back(y)
        nn.update_statistics(ours)
    np.testing.assert_allclose(ours.running_mean.data, theirs.running_mean.numpy(), rtol=1e-12)
    np.testing.assert_allclose(ours.running_var.data, theirs.running_var.numpy(), rtol=1e-12)


def test_default_initialization_has_pytorchs_distribution() -> None:
    ours, theirs = nn.Conv2d(32, 64, 5, groups=4, seed=0), torch.nn.Conv2d(32, 64, 5, groups=4)
    for name, param in ours.parameters().items():
        other = dict(theirs.named_parameters())[name].detach().numpy()
        assert np.abs(param.data).max() == pytest.approx(np.abs(other).max(), rel=0.1)
        assert param.data.std() == pytest.approx(other.std(), rel=0.3 if name == "bias" else 0.03)
