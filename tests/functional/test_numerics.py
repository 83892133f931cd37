"""Extreme numbers: what comes out is finite and right, or an error that says what is wrong; warnings are errors here.

Run on NumPy, on the strict fake device, and on CuPy where a GPU answers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from device_tools import Device

import minivit
from minivit import functional as F
from minivit.functional.activation import row_maximum


def fast_alone(device: Device) -> None:
    """Extreme numbers that only the fast functions treat with care; docs/formulas.md lists them."""
    if device.name == "plain":
        pytest.skip("the fast function's alone")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_softmax_of_huge_differences(device: Device, dtype: str) -> None:
    if dtype == "float32":
        fast_alone(device)  # the formula gives the same numbers, and NumPy's overflow warning
    x = device.put(np.array([[1e4, -1e4, 0.0], [3e38, 3e38, -3e38]], dtype))
    y, vjp = F.softmax(x)
    np.testing.assert_allclose(device.get(y), [[1, 0, 0], [0.5, 0.5, 0]], atol=1e-6)
    assert np.isfinite(device.get(vjp(device.put(np.array([[1, 2, 3], [4, 5, 6]], dtype))))).all()


@pytest.mark.parametrize("shift", [0.0, 1e4, -1e4])
def test_log_softmax_far_out_is_that_of_the_differences(device: Device, shift: float) -> None:
    x = np.array([[0.0, 0.0, 0.0, 0.0], [np.log(3), 0.0, -np.inf, -np.inf], [0.0, -2e4, -np.inf, -3e4]]) + shift
    y, vjp = F.log_softmax(device.put(x))
    logs = [np.log([0.25] * 4), [np.log(0.75), np.log(0.25), -np.inf, -np.inf], [0, -2e4, -np.inf, -3e4]]
    np.testing.assert_allclose(device.get(y), logs, rtol=1e-12, atol=1e-12)
    dx = device.get(vjp(device.put(np.array([[1.0, 2.0, 3.0, 4.0], [4.0, 0.0, 0.0, 4.0], [1.0, 2.0, 3.0, 4.0]]))))
    expected = [[-1.5, -0.5, 0.5, 1.5], [-2, -2, 0, 4], [-9, 2, 3, 4]]  # dy - softmax sum(dy)
    np.testing.assert_allclose(dx, expected, rtol=0, atol=1e-11)


def test_softmax_of_nothing_but_minus_infinity_is_zero(device: Device) -> None:
    y, vjp = F.softmax(device.put(np.full((2, 3), -np.inf)))
    np.testing.assert_array_equal(device.get(y), 0)
    np.testing.assert_array_equal(device.get(vjp(device.put(np.ones((2, 3))))), 0)


def test_a_fully_masked_query_gives_zero_and_no_gradient(device: Device) -> None:
    rng = np.random.default_rng(0)
    q, k, v, dy = (rng.standard_normal((2, 3, 4)) for _ in range(4))
    mask = np.ones((3, 3), bool)
    mask[1] = False
    y, vjp = F.scaled_dot_product_attention(*(device.put(a) for a in (q, k, v)), device.put(mask))
    dq, dk, dv, _ = (None if g is None else device.get(g) for g in vjp(device.put(dy)))
    np.testing.assert_array_equal(device.get(y)[:, 1], 0)
    np.testing.assert_array_equal(dq[:, 1], 0)
    other = dy.copy()
    other[:, 1] = 99  # the gradient given to a masked query changes no other gradient
    _, vjp = F.scaled_dot_product_attention(*(device.put(a) for a in (q, k, v)), device.put(mask))
    _, dk2, dv2, _ = (None if g is None else device.get(g) for g in vjp(device.put(other)))
    np.testing.assert_array_equal(dk, dk2)
    np.testing.assert_array_equal(dv, dv2)


@pytest.mark.parametrize("value", [0.0, 0.1, -3.3, 1e6, 1e20])
def test_layer_norm_of_constant_rows_is_zero(device: Device, value: float) -> None:
    fast_alone(device)
    for dtype in ("float32", "float64"):
        y, vjp = F.layer_norm(device.put(np.full((2, 50), value, dtype)), None, None, 1e-6)
        np.testing.assert_array_equal(device.get(y), 0)
        assert np.isfinite(device.get(vjp(device.put(np.ones((2, 50), dtype)))[0])).all()


@pytest.mark.parametrize("size", [1e-10, 1e10, 1e20, 3e38])
def test_layer_norm_of_tiny_and_huge_rows_in_float32(device: Device, size: float) -> None:
    if size > 1e10:
        fast_alone(device)
    rng = np.random.default_rng(1)
    row = rng.uniform(-1, 1, (3, 64))
    row[0] = np.where(np.arange(64) % 2, 1, -1)
    x, dy = (row * size).astype(np.float32), rng.standard_normal((3, 64))
    y, vjp = F.layer_norm(device.put(x), None, None, 1e-6)
    exact = x.astype(np.float64)
    centered = exact - exact.mean(axis=1, keepdims=True)
    std = np.sqrt((centered**2).mean(axis=1, keepdims=True) + 1e-6)
    hat = centered / std
    np.testing.assert_allclose(device.get(y), hat, rtol=2e-5, atol=2e-6)
    expected = (dy - dy.mean(axis=1, keepdims=True) - hat * (dy * hat).mean(axis=1, keepdims=True)) / std
    dx = device.get(vjp(device.put(dy.astype(np.float32)))[0])
    atol = 1e-5 * np.abs(expected).max()
    if device.name == "cupy":  # CuPy compiles its kernels with -ftz=true: subnormal numbers count as 0
        atol = max(atol, np.finfo(np.float32).tiny)
    np.testing.assert_allclose(dx, expected, rtol=1e-4, atol=atol)


def test_layer_norm_far_from_zero_keeps_its_variance(device: Device) -> None:
    """E[x^2] - mean^2 would give a negative variance here."""
    x = np.float32(1e6) + np.arange(8, dtype=np.float32)[None]
    y, _ = F.layer_norm(device.put(x), None, None, 1e-6)
    plain = np.arange(8) - 3.5
    np.testing.assert_allclose(device.get(y)[0], plain / plain.std(), rtol=1e-4)


def test_cross_entropy_of_a_huge_gap_is_the_gap(device: Device) -> None:
    logits = device.put(np.array([[1e4, -1e4]], np.float32))
    loss, back = F.softmax_cross_entropy(logits, device.put(np.array([1])))
    assert float(loss) == pytest.approx(2e4)
    np.testing.assert_allclose(device.get(back()), [[1, -1]], atol=1e-6)


def test_the_loss_of_an_empty_batch_is_refused(device: Device) -> None:
    empty = device.put(np.zeros((0, 3)))
    with pytest.raises(ValueError, match="empty"):
        F.softmax_cross_entropy(empty, device.put(np.zeros(0, np.int64)))
    with pytest.raises(ValueError, match="empty"):
        F.mean_squared_error(empty, empty)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_cosines_of_vectors_of_zeros_are_zero(device: Device, dtype: str) -> None:
    """What a padded place asks, as its query is zero: its cosine with everything is 0, and it has a gradient."""
    rng = np.random.default_rng(0)
    q, k, v, dy = (rng.standard_normal((1, 2, 4, 3)).astype(dtype) for _ in range(4))
    q[0, 0, 1] = k[0, 1, 2] = k[0, 1, 3] = 0
    logit_scale = np.array([[[9.0]], [[1e4]]], dtype)  # both above the limit, log 100
    y, vjp = F.cosine_attention(*(device.put(a) for a in (q, k, v, logit_scale)))
    assert np.isfinite(device.get(y)).all()
    np.testing.assert_allclose(device.get(y)[0, 0, 1], v[0, 0].mean(axis=0), rtol=1e-5)
    dq, dk, dv, dlogit_scale, _ = (None if g is None else device.get(g) for g in vjp(device.put(dy)))
    assert all(np.isfinite(grad).all() for grad in (dq, dk, dv))
    assert not dlogit_scale.any() and dlogit_scale.shape == (2, 1, 1)


@pytest.mark.parametrize("value", [-100.0, -np.inf])
def test_masked_scores_of_any_size_stay_finite(device: Device, value: float) -> None:
    rng = np.random.default_rng(0)
    mask = np.tril(np.ones((4, 4), bool))
    for size in (1.0, 1e3, 1e15):
        q, k, v, dy = (rng.standard_normal((2, 4, 3)).astype(np.float32) for _ in range(4))
        y, vjp = F.scaled_dot_product_attention(
            device.put(q * np.float32(size)), device.put(k), device.put(v), device.put(mask), mask_value=value
        )
        grads = [device.get(grad) for grad in vjp(device.put(dy))[:3]]
        assert all(np.isfinite(array).all() for array in (device.get(y), *grads))
        if value == -np.inf:  # the first query sees itself alone, however low its score
            np.testing.assert_allclose(device.get(y)[:, 0], v[:, 0], rtol=1e-6)


def test_the_bias_of_version_2_far_out_is_0_or_16(device: Device) -> None:
    offsets = F.log_spaced_offsets((2, 2)).astype(np.float32)
    weight1, bias1 = np.array([[1e4, 0], [0, 0]], np.float32), np.array([0, 1], np.float32)
    weight2 = np.array([[1e3, -1e4], [-1e3, -1e4]], np.float32)
    table, vjp = F.continuous_position_table(*(device.put(a) for a in (offsets, weight1, bias1, weight2)))
    np.testing.assert_allclose(device.get(table)[:, 0], [0, 0, 0, 0, 0, 0, 16, 16, 16], atol=1e-6)
    np.testing.assert_array_equal(device.get(table)[:, 1], 0)
    assert all(np.isfinite(device.get(grad)).all() for grad in vjp(device.put(np.ones((9, 2), np.float32))))


@pytest.mark.parametrize("label", [-1, 3, 99])
@pytest.mark.parametrize("where", ["host", "device"])
def test_labels_out_of_range_are_refused_everywhere(device: Device, label: int, where: str) -> None:
    labels = np.array([0, label])
    logits = device.put(np.zeros((2, 3)))
    with pytest.raises(ValueError, match=f"label {label} is out of range.*3 classes"):
        F.softmax_cross_entropy(logits, labels if where == "host" else device.put(labels))


def test_rows_out_of_a_table_are_refused_everywhere(device: Device) -> None:
    with pytest.raises(ValueError, match="index 5 is outside the table of 5 rows"):
        F.embedding(device.put(np.array([5])), device.put(np.zeros((5, 2))))


def test_gelu_far_out(device: Device) -> None:
    for approximate in ("none", "tanh"):
        x = device.put(np.array([-1e4, -40.0, 40.0, 1e4], np.float32))
        y, vjp = F.gelu(x, approximate)
        np.testing.assert_allclose(device.get(y), [0, 0, 40, 1e4], atol=1e-6)
        np.testing.assert_allclose(device.get(vjp(device.put(np.ones(4, np.float32)))), [0, 0, 1, 1], atol=1e-6)


def test_the_slope_of_gelu_at_the_end_of_the_range(device: Device) -> None:
    for approximate in ("none", "tanh"):
        x = device.put(np.array([-1e30, -1e18, 1e18, 1e30]))  # in float32 the squares overflow
        with np.errstate(over="ignore"):
            _, vjp = F.gelu(x.astype("float32") if approximate == "tanh" else x, approximate)
        slope = device.get(vjp(device.put(np.ones(4, "float32" if approximate == "tanh" else "float64"))))
        np.testing.assert_array_equal(slope, [0, 0, 1, 1])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_class_that_cannot_be_adds_nothing_to_the_loss(device: Device, dtype: str) -> None:
    logits = np.array([[1.0, -np.inf, 2.0], [-np.inf, 0.5, -np.inf]], dtype)
    loss, back = F.softmax_cross_entropy(device.put(logits), np.array([2, 1]))
    rest = np.log1p(np.exp(-1.0)) / 2  # of the classes that can be
    assert float(loss) == pytest.approx(rest, rel=1e-6)
    gradient = device.get(back())
    share = 1 / (1 + np.e) / 2
    np.testing.assert_allclose(gradient, [[share, 0, -share], [0, 0, 0]], rtol=1e-6, atol=1e-9)
    impossible, _ = F.softmax_cross_entropy(device.put(logits), np.array([1, 1]))
    assert float(impossible) == np.inf  # the label's own class


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30, -1e30])
@pytest.mark.parametrize("kind", ["vit", "swin", "swin_v2", "hybrid"])
def test_a_bad_image_changes_no_bit_of_the_others(kind: str, bad: float) -> None:
    options: dict[str, Any] = {"img_size": 16, "patch_size": 4, "in_chans": 2, "num_classes": 5, "embed_dim": 8}
    swin = options | {"depths": (2, 2), "num_heads": (2, 2), "window_size": 2}
    models: dict[str, Any] = {
        "vit": lambda: minivit.ViT(**options, depth=2, num_heads=2),
        "swin": lambda: minivit.Swin(**swin),
        "swin_v2": lambda: minivit.SwinV2(**swin),
        "hybrid": lambda: minivit.ViT(
            **options | {"patch_size": 1}, depth=1, num_heads=2, resnet_layers=(1,), resnet_width=4, resnet_groups=2
        ),
    }
    model = models[kind]()
    rng = np.random.default_rng(0)
    for param in model.parameters().values():
        param.data = param.data + 0.3 * rng.standard_normal(param.shape)
    x = rng.standard_normal((3, 2, 16, 16)).astype("float32")
    damaged = x.copy()
    damaged[1, 0, 5, 5] = bad
    with np.errstate(all="ignore"):
        whole, with_bad = model(x)[0], model(damaged)[0]
    assert np.isfinite(whole).all() and not np.array_equal(whole[1], with_bad[1])
    np.testing.assert_array_equal(with_bad[[0, 2]], whole[[0, 2]])


def test_nan_is_not_hidden(device: Device) -> None:
    x: Any = np.ones((2, 4))
    x[0, 1] = np.nan
    for f in (F.softmax, F.gelu, lambda x: F.layer_norm(x, None, None)):
        y = device.get(f(device.put(x))[0])
        assert np.isnan(y[0]).any() and not np.isnan(y[1]).any()


def test_float32_agrees_with_float64_over_a_whole_model() -> None:
    models = [
        minivit.ViT(
            img_size=8, patch_size=2, in_chans=1, num_classes=5, embed_dim=16, depth=3, num_heads=4, dtype=dtype, seed=3
        )
        for dtype in ("float32", "float64")
    ]
    models[1].load_state_dict(models[0].state_dict())
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((8, 1, 8, 8)), np.arange(8) % 5
    logits, gradients = [], []
    for model in models:
        y, back = model(x.astype(model.dtype))
        _, back_loss = F.softmax_cross_entropy(y, labels)
        back(back_loss())
        logits.append(y)
        gradients.append(np.concatenate([param.grad.ravel() for param in model.parameters().values()]))
    assert np.abs(logits[0] - logits[1]).max() <= 2e-6 * np.abs(logits[1]).max() * 10
    assert np.linalg.norm(gradients[0] - gradients[1]) <= 1e-4 * np.linalg.norm(gradients[1])


def test_the_maximum_of_rows_without_numbers_is_zero() -> None:
    for columns in (0, 3):
        assert np.array_equal(row_maximum(np.full((2, columns), -np.inf)), np.zeros((2, 1)))


def test_dropout_in_half_precision_rounds_in_every_way_alike() -> None:
    x = np.random.default_rng(0).standard_normal((50, 50)).astype("float16")
    fast = F.dropout(x, 0.3, np.random.default_rng(1))[0]
    with minivit.plain():
        assert np.array_equal(F.dropout(x, 0.3, np.random.default_rng(1))[0], fast)
    assert np.array_equal(F.dropout.plain(x, 0.3, np.random.default_rng(1))[0], fast)


def test_another_level_of_precision_is_refused_with_the_three() -> None:
    with pytest.raises(ValueError, match="matmul_precision='low': choose one of 'highest', 'high', 'medium'"):
        minivit.matmul_precision("low")
