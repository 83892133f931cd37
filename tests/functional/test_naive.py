"""The hard operations against loops that a beginner would write, for formulas and fast functions alike.

The loops are slow and obvious; nothing in them is shared with the library.
"""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from minivit import functional as F, nn
from minivit.fast.numpy import linear as fast
from minivit.functional.erf import erf
from minivit.strategies import arrays


def naive_attention(q: Any, k: Any, v: Any) -> Any:
    """q (N, d), k (M, d), v (M, e) -> (N, e), one number at a time."""
    y = np.zeros((len(q), v.shape[1]))
    for i in range(len(q)):
        scores = [sum(q[i, c] * k[j, c] for c in range(q.shape[1])) / math.sqrt(q.shape[1]) for j in range(len(k))]
        weights = [math.exp(score) for score in scores]
        for j in range(len(k)):
            for c in range(v.shape[1]):
                y[i, c] += weights[j] / sum(weights) * v[j, c]
    return y


def naive_layer_norm(x: Any, weight: Any, bias: Any, eps: float) -> Any:
    y = np.zeros_like(x)
    for r in range(len(x)):
        mean = sum(x[r]) / len(x[r])
        variance = sum((value - mean) ** 2 for value in x[r]) / len(x[r])
        for c in range(len(x[r])):
            y[r, c] = (x[r, c] - mean) / math.sqrt(variance + eps) * weight[c] + bias[c]
    return y


def naive_layer_norm_gradient(x: Any, weight: Any, eps: float, dy: Any) -> Any:
    """dx through the full Jacobian of each row, element by element."""
    dx = np.zeros_like(x)
    channels = x.shape[1]
    for r in range(len(x)):
        mean = sum(x[r]) / channels
        std = math.sqrt(sum((value - mean) ** 2 for value in x[r]) / channels + eps)
        hat = [(value - mean) / std for value in x[r]]
        for j in range(channels):
            for i in range(channels):
                jacobian = ((i == j) - 1 / channels - hat[i] * hat[j] / channels) / std
                dx[r, j] += dy[r, i] * weight[i] * jacobian
    return dx


@given(arrays("BHNd BHMd BHMd"))
def test_attention_equals_its_loop(args: Any) -> None:
    q, k, v = args
    fast, formula = F.scaled_dot_product_attention(q, k, v)[0], F.scaled_dot_product_attention.plain(q, k, v)[0]
    for b, h in np.ndindex(*q.shape[:2]):
        expected = naive_attention(q[b, h], k[b, h], v[b, h])
        for y in (fast, formula):
            np.testing.assert_allclose(y[b, h], expected, rtol=1e-12, atol=1e-13)


@given(arrays("RD D D RD", D=4))
def test_layer_norm_and_its_gradient_equal_their_loops(args: Any) -> None:
    x, weight, bias, dy = args
    expected, expected_dx = naive_layer_norm(x, weight, bias, 1e-5), naive_layer_norm_gradient(x, weight, 1e-5, dy)
    for layer_norm in (F.layer_norm, F.layer_norm.plain):
        y, vjp = layer_norm(x, weight, bias, 1e-5)
        np.testing.assert_allclose(y, expected, rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(vjp(dy)[0], expected_dx, rtol=1e-8, atol=1e-10 * (1 + np.abs(expected_dx).max()))


@given(arrays("RD RD"))
def test_vectors_shorter_than_eps_are_divided_by_it(args: Any) -> None:
    x, dy = args
    long = np.linalg.norm(x, axis=1, keepdims=True).max()
    for normalize in (F.normalize, F.normalize.plain):
        y, vjp = normalize(x, 2 * long + 1)
        np.testing.assert_allclose(y, x / (2 * long + 1), rtol=1e-13)
        np.testing.assert_allclose(vjp(dy), dy / (2 * long + 1), rtol=1e-13)  # a constant: nothing is taken out


def test_multi_head_attention_equals_one_head_at_a_time() -> None:
    layer = nn.Attention(6, 3, dtype="float64", seed=0)
    x = np.random.default_rng(1).standard_normal((2, 4, 6))
    wq, wk, wv = np.split(layer.qkv.weight.data, 3)
    heads = []
    for head in range(3):
        rows = slice(2 * head, 2 * head + 2)
        heads.append([naive_attention(image @ wq[rows].T, image @ wk[rows].T, image @ wv[rows].T) for image in x])
    joined = np.concatenate([np.array(head) for head in heads], axis=2)
    expected = joined @ layer.proj.weight.data.T + layer.proj.bias.data
    np.testing.assert_allclose(layer(x)[0], expected, rtol=1e-12)


@given(arrays("RD", R=5, D=3))
def test_embedding_equals_one_hot_times_table(args: Any) -> None:
    (table,) = args
    index = np.array([[0, 4, 4], [2, 0, 4]])
    one_hot = np.eye(5)[index]
    dy = np.random.default_rng(0).standard_normal((2, 3, 3))
    z, vjp_product = F.linear(one_hot, table.T)
    dtable = vjp_product(dy)[1].T
    for embedding in (F.embedding, F.embedding.plain):
        y, vjp = embedding(index, table)
        np.testing.assert_allclose(y, z, rtol=1e-13)
        np.testing.assert_allclose(vjp(dy), dtable, rtol=1e-12, atol=1e-14)


@given(arrays("BChw DCpp D", C=2, h=4, w=6, p=2))
def test_patch_embed_equals_a_convolution_loop_and_unfold_times_linear(args: Any) -> None:
    images, weight, bias = args
    y, vjp = F.patch_embed(images, weight, bias)
    for b, row, column in np.ndindex(len(images), 2, 3):
        window = images[b, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        for out in range(len(weight)):
            assert y[b, 3 * row + column, out] == pytest.approx((window * weight[out]).sum() + bias[out], rel=1e-11)
    rows, back_unfold = F.patchify(images, (2, 2))
    z, back_linear = F.linear(rows, weight.reshape(len(weight), -1), bias)
    np.testing.assert_allclose(y, z, rtol=1e-13)
    dy = np.random.default_rng(1).standard_normal(y.shape)
    drows, dweight, dbias = back_linear(dy)
    for ours, theirs in zip(vjp(dy), (back_unfold(drows), dweight.reshape(weight.shape), dbias)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-13)


@pytest.mark.parametrize("name", ["patchify", "unpatchify", "split_heads", "merge_heads"])
def test_permutations_are_undone_by_their_backward(name: str) -> None:
    rng = np.random.default_rng(0)
    x, f = {
        "patchify": (rng.standard_normal((2, 3, 4, 6)), lambda x: F.patchify(x, (2, 3))),
        "unpatchify": (rng.standard_normal((2, 4, 12)), lambda x: F.unpatchify(x, (2, 2), (2, 2))),
        "split_heads": (rng.standard_normal((2, 3, 6)), lambda x: F.split_heads(x, 3)),
        "merge_heads": (rng.standard_normal((2, 3, 4, 2)), F.merge_heads),
    }[name]
    y, undo = f(x)
    assert sorted(y.ravel()) == sorted(x.ravel())
    np.testing.assert_array_equal(undo(y), x)


@given(arrays("abD"))
def test_resizing_to_the_same_size_is_the_identity_and_keeps_constants(args: Any) -> None:
    (x,) = args
    for antialias in (True, False):
        np.testing.assert_allclose(F.resize_grid(x, x.shape[:2], antialias=antialias)[0], x, rtol=1e-12, atol=1e-13)
        ones = F.resize_grid(np.ones((3, 2, 1)), (5, 7), antialias=antialias)[0]
        np.testing.assert_allclose(ones, 1, rtol=1e-12)


# --- single functions -----------------------------------------------------------------------------------------------


def test_erf_has_double_precision() -> None:
    x = np.concatenate((np.linspace(-7, 7, 20_001), [0.0, 1e-300, 2.5, -2.5, 30, -100, 1e300]))
    expected = np.array([math.erf(value) for value in x])
    assert np.abs(erf(x) - expected).max() < 2e-15
    slope = erf(x[:20_001] + 1e-30j).imag / 1e-30
    assert np.abs(slope - 2 / math.sqrt(math.pi) * np.exp(-(x[:20_001] ** 2))).max() < 2e-14


def test_gelu_has_its_published_minimum() -> None:
    x = np.linspace(-0.76, -0.74, 20_001)
    y, _ = F.gelu(x)
    assert y.min() == pytest.approx(-0.16997, abs=1e-5)
    assert x[y.argmin()] == pytest.approx(-0.7518, abs=1e-4)
    grid = np.linspace(-6, 6, 100_001)
    gap = np.abs(F.gelu(grid)[0] - F.gelu(grid, "tanh")[0])
    assert gap.max() == pytest.approx(4.73e-4, rel=1e-2)
    assert abs(grid[gap.argmax()]) == pytest.approx(2.70, abs=0.02)


def test_scatter_add_equals_its_loop() -> None:
    rng = np.random.default_rng(0)
    index, rows = rng.integers(0, 4, 50), rng.standard_normal((50, 3))
    expected = np.zeros((6, 3))
    for place, row in zip(index, rows):
        expected[place] += row
    formula = import_module("minivit.functional.linear")
    for scatter_add in (formula.scatter_add, fast.scatter_add):
        np.testing.assert_allclose(scatter_add(index, rows, 6), expected, rtol=1e-12)
        assert scatter_add(index[:0], rows[:0], 6).shape == (6, 3)


def test_row_sums_and_float32_softmax_equal_plain_float64() -> None:
    rng = np.random.default_rng(1)
    x = (8 * rng.standard_normal((200, 50))).astype(np.float32)  # inside and outside +-30, both routes
    for scale in (1, 10):
        scaled = x * np.float32(scale)
        y, vjp = F.softmax(scaled)
        plain = np.exp(scaled.astype(np.float64) - scaled.max(axis=1, keepdims=True))
        plain /= plain.sum(axis=1, keepdims=True)
        assert np.abs(y - plain).max() <= 1e-6
        dy = rng.standard_normal(y.shape).astype(np.float32)
        expected = plain * (dy - (plain * dy).sum(axis=1, keepdims=True))
        assert np.abs(vjp(dy) - expected).max() <= 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(fast.sum_rows(x), x.sum(axis=0), rtol=1e-4, atol=1e-4)
