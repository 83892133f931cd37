"""GroupNorm and BatchNorm: what they normalize over, and running statistics that nothing can corrupt.

The gradients are proven by the table; here stands what it cannot say.
"""

from __future__ import annotations

import copy
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minivit
from minivit import functional as F, nn, optim, train
from minivit.protocol import once


def images(seed: int = 0, count: int = 4, dtype: str = "float64") -> Any:
    """(count, 3, 4, 5): channels with means and scales of their own."""
    x = np.random.default_rng(seed).standard_normal((count, 3, 4, 5))
    return (x * np.array([1, 2, 0.5])[:, None, None] + np.array([0, 3, -1])[:, None, None]).astype(dtype)


def training() -> Any:
    return np.random.default_rng(0)


# --- what they normalize over ---------------------------------------------------------------------------------------


def test_group_norm_equals_its_loop() -> None:
    x = np.random.default_rng(0).standard_normal((2, 6, 3, 2))
    weight, bias = np.random.default_rng(1).standard_normal((2, 6))
    y, _ = F.group_norm(x, 3, weight, bias, 1e-3)
    for b in range(2):
        for group in range(3):
            values = [x[b, c, i, j] for c in (2 * group, 2 * group + 1) for i in range(3) for j in range(2)]
            mean = sum(values) / 12
            variance = sum((value - mean) ** 2 for value in values) / 12
            for c in (2 * group, 2 * group + 1):
                expected = (x[b, c] - mean) / (variance + 1e-3) ** 0.5 * weight[c] + bias[c]
                np.testing.assert_allclose(y[b, c], expected, rtol=1e-12, atol=1e-14)


def test_one_group_of_a_map_of_one_position_is_layer_norm() -> None:
    x, weight, bias = np.random.default_rng(2).standard_normal((3, 4, 6))[:, :3].swapaxes(0, 1)
    y, vjp = F.group_norm(x, 1, weight[0], bias[0])
    z, vjp_layer_norm = F.layer_norm(x, weight[0], bias[0], 1e-5)
    np.testing.assert_allclose(y, z, rtol=1e-13)
    for ours, theirs in zip(vjp(x), vjp_layer_norm(x)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-14)


def test_batch_norm_gives_every_channel_mean_0_and_variance_1() -> None:
    x = images()
    y, _ = F.batch_norm(x, None, None)
    np.testing.assert_allclose(y.mean(axis=(0, 2, 3)), 0, atol=1e-15)
    np.testing.assert_allclose(y.var(axis=(0, 2, 3)), 1, rtol=1e-3)
    mean, variance = F.batch_statistics(x)
    np.testing.assert_allclose(mean, x.mean(axis=(0, 2, 3)), rtol=1e-13)
    np.testing.assert_allclose(variance, x.var(axis=(0, 2, 3)), rtol=1e-13)
    np.testing.assert_allclose(F.batch_norm(x, mean, variance)[0], y, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: F.group_norm(x, 2, None, None), "groups=2 must divide the 3 channels"),
        (lambda x: F.group_norm(x, 0, None, None), "groups=0 must divide"),
        (lambda x: F.group_norm(x, 1, np.ones(4), None), r"x .* has 3 channels, so gain, .* shape \(3,\), got \(4,\)"),
        (lambda x: F.group_norm(x[0, 0, 0], 1, None, None), r"x must be \(B, C, ...\)"),
        (lambda x: F.group_norm(x[:, :, :0], 1, None, None), "nothing to normalize over"),
        (lambda x: F.batch_norm(x, weight=np.ones(2)), "has 3 channels"),
        (lambda x: F.batch_norm(x[0, 0, 0], None, None), r"x must be \(B, C, ...\)"),
        (lambda x: F.batch_norm(x, np.ones(3)), "give both running_mean and running_var, or neither"),
        (lambda x: F.batch_norm(x[:1, :, :1, :1], None, None), "one number for each channel .*: give more images"),
        (lambda x: F.batch_statistics(x[:0]), "no numbers to average"),
        (lambda x: nn.GroupNorm(2, 3), "num_groups=2 must divide num_channels=3"),
        (lambda x: nn.BatchNorm2d(3, momentum=2), r"momentum must lie in \[0, 1\], got 2"),
        (lambda x: nn.BatchNorm2d(3, dtype="float64")(x[0]), r"BatchNorm2d: x must be \(B, C, H, W\)"),
    ],
)
def test_what_does_not_fit_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(images())


# --- running statistics ---------------------------------------------------------------------------------------------


def seen_by(*batches: Any) -> Any:
    """Mean and variance (divided by n - 1) of all batches together."""
    together = np.concatenate(batches)
    return together.mean(axis=(0, 2, 3)), together.var(axis=(0, 2, 3), ddof=1)


def check_one_update(layer: Any, *batches: Any) -> None:
    """From their start, one update towards what the batches together were like."""
    mean, variance = seen_by(*batches)
    nn.update_statistics(layer)
    np.testing.assert_allclose(layer.running_mean.data, 0.1 * mean, rtol=1e-12)
    np.testing.assert_allclose(layer.running_var.data, 0.9 + 0.1 * variance, rtol=1e-12)
    assert not layer.sums.any()


def test_only_back_counts_and_only_the_update_changes_anything() -> None:
    layer, x = nn.BatchNorm2d(3, dtype="float64"), images()
    expected = layer(x)[0]
    layer(images(7), training())  # a forward pass whose result is discarded
    layer(x)[1](x)  # inference, and its gradient
    assert not layer.sums.any()
    _, back = layer(x, training())
    assert not layer.sums.any()
    back(x)
    np.testing.assert_array_equal(layer(x)[0], expected)  # still the old statistics
    check_one_update(layer, x)
    before = layer.running_mean.data.copy()
    nn.update_statistics(layer)  # nothing seen since
    np.testing.assert_array_equal(layer.running_mean.data, before)


def test_training_ignores_the_running_statistics_and_inference_uses_nothing_else() -> None:
    layer, x = nn.BatchNorm2d(3, dtype="float64"), images()
    np.testing.assert_allclose(layer(x, training())[0].mean(axis=(0, 2, 3)), 0, atol=1e-14)
    np.testing.assert_allclose(layer(x)[0], x / np.sqrt(1 + 1e-5), rtol=1e-13)
    for _ in range(200):
        layer(x, training())[1](x)
        nn.update_statistics(layer)
    mean, variance = seen_by(x)
    np.testing.assert_allclose(layer.running_mean.data, mean, rtol=1e-8)
    np.testing.assert_allclose(layer.running_var.data, variance, rtol=1e-8)


def test_recomputation_counts_a_batch_once() -> None:
    layer, x = nn.BatchNorm2d(3, dtype="float64"), images()
    model = nn.Recompute(nn.Sequential(nn.Recompute(layer)))  # four forward passes for one backward pass
    model(x, training())[1](x)
    nn.update_statistics(model)
    np.testing.assert_allclose(layer.running_mean.data, 0.1 * seen_by(x)[0], rtol=1e-12)
    np.testing.assert_allclose(layer.running_var.data, 0.9 + 0.1 * seen_by(x)[1], rtol=1e-12)


def test_two_uses_in_one_network_count_together() -> None:
    layer, a, b = nn.BatchNorm2d(3, dtype="float64"), images(1), images(2, count=2)
    backs = [layer(x, training())[1] for x in (a, b)]
    for back, x in zip(reversed(backs), (b, a)):
        back(x)
    check_one_update(layer, a, b)


def test_threads_with_replicas_count_every_batch() -> None:
    layer = nn.BatchNorm2d(3, dtype="float64")
    batches = [images(seed, count=1 + seed % 3) for seed in range(120)]
    start = threading.Barrier(4)

    def work(mine: list[Any]) -> None:
        replica = layer.replica()
        start.wait()
        for x in mine:
            replica(x, training())[1](x)

    threads = [threading.Thread(target=work, args=(batches[place::4],)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    replica = layer.replica()
    check_one_update(layer, *batches)
    np.testing.assert_array_equal(
        replica.running_mean.data, layer.running_mean.data
    )  # replicas see the update, whenever made


def test_an_update_never_falls_between_the_reading_and_the_writing_of_a_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock is held while `seen` changes: a thread that wants to add waits."""
    layer, x = nn.BatchNorm2d(3, dtype="float64"), images()
    _, back = layer(x, training())
    thread = threading.Thread(target=back, args=(x,))
    with nn.map_norm._turn:
        thread.start()
        thread.join(0.05)
        assert thread.is_alive() and not layer.sums.any()
    thread.join()
    check_one_update(layer, x)


def test_data_parallel_shards_count_as_one_batch() -> None:
    x, labels = images(3, count=6), np.array([0, 1, 2, 0, 1, 2])
    model = nn.Sequential(nn.BatchNorm2d(3, dtype="float64"), nn.AdaptiveAvgPool2d(1), Flatten())
    minivit.parallel.DataParallel(model, threads=2, shards=3).loss_and_grad(x, labels, rng=training())
    check_one_update(getattr(model, "0"), x)


def test_the_training_loop_moves_the_running_statistics(tmp_path: Path) -> None:
    x, labels = images(3, count=6, dtype="float32"), np.array([0, 1, 2, 0, 1, 2])
    model = nn.Sequential(nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), Flatten())
    step = minivit.parallel.DataParallel(model, threads=1, loss=train.CountingLoss())
    run, opt = train.Run(tmp_path, {}, {"model": model}, quiet=True), optim.SGD(model.parameters(), lr=0.1)
    train.fit(run, step, opt, lambda *_: [(x, labels)], lambda: 0.5, epochs=1, batches_per_epoch=1, lr=0.1)
    np.testing.assert_allclose(getattr(model, "0").running_mean.data, 0.1 * seen_by(x)[0], rtol=1e-5)


class Flatten(nn.Layer):
    """(B, C, 1, 1) -> (B, C)."""

    def forward(self, x: Any, rng: Any = None) -> Any:
        return x.reshape(x.shape[:2]), once(lambda dy: dy.reshape(x.shape))


def test_a_copy_sees_for_itself_and_float32_statistics_keep_their_dtype() -> None:
    layer, x = nn.BatchNorm2d(3), images(dtype="float32")
    other = copy.deepcopy(layer)
    layer(x, training())[1](x)
    assert not other.sums.any()
    nn.update_statistics(layer)
    assert layer.running_mean.data.dtype == layer.running_var.data.dtype == np.float32
    np.testing.assert_allclose(layer.running_mean.data, 0.1 * seen_by(x)[0], rtol=1e-5)
    assert not other.running_mean.data.any()


def test_one_far_mean_does_not_spoil_the_variance() -> None:
    layer, x = nn.BatchNorm2d(3, momentum=1.0, dtype="float64"), images() + 1e4
    layer(x, training())[1](x)
    nn.update_statistics(layer)
    np.testing.assert_allclose(layer.running_var.data, seen_by(x)[1], rtol=1e-6)


def test_an_empty_batch_counts_for_nothing() -> None:
    layer = nn.BatchNorm2d(3, dtype="float64")
    y, back = layer(images()[:0], training())
    assert y.shape == back(y).shape == (0, 3, 4, 5)
    nn.update_statistics(layer)
    assert not layer.running_mean.data.any()


def test_running_statistics_travel_with_the_state_and_are_no_parameters() -> None:
    model, other = (nn.Sequential(nn.Conv2d(2, 3, 3, seed=seed), nn.BatchNorm2d(3)) for seed in (0, 1))
    x = np.random.default_rng(0).standard_normal((4, 2, 5, 5), dtype=np.float32)
    y, back = model(x, np.random.default_rng(0))
    back(y)
    nn.update_statistics(model)
    assert {"1.running_mean", "1.running_var"} == set(model.state()) - set(model.parameters())
    other.load_state_dict(model.state_dict())
    np.testing.assert_array_equal(other(x)[0], model(x)[0])  # with the running statistics
    replica = model.replica()
    assert replica.state()["1.running_var"] is model.state()["1.running_var"]
