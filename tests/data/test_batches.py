"""Batches: pure functions of seed, epoch and position; splits in proportion to the classes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from minivit.data import (
    MNIST_MEAN,
    MNIST_STD,
    batch_indices,
    batches,
    epoch_order,
    holdout,
    normalize,
    num_batches,
)

N = 23
IMAGES = np.random.default_rng(0).integers(256, size=(N, 6, 5), dtype=np.uint8)
LABELS = np.random.default_rng(1).integers(10, size=N)
IMAGES.flags.writeable = LABELS.flags.writeable = False


def noise(x, y, rng):
    """An augmentation that uses its generator and writes into what it was given."""
    x += rng.normal(size=x.shape).astype(x.dtype)
    return x, y


def one_epoch(**options):
    options = {"seed": 3, "epoch": 2, **options}
    return list(batches(IMAGES, LABELS, 4, **options))


@given(st.integers(1, 200), st.integers(0, 2**40), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_order_is_a_permutation_and_pure(n, seed, epoch):
    order = epoch_order(n, seed, epoch)
    assert order.dtype == np.int64
    assert sorted(order) == list(range(n))
    assert np.array_equal(order, epoch_order(n, seed, epoch))


def test_order_depends_on_seed_and_epoch():
    orders = {tuple(epoch_order(50, seed, epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_order_and_augmentation_have_streams_of_their_own():
    # NumPy gives (s, e) and (s, e, 0) the same stream; ours must not be that one.
    assert not np.array_equal(epoch_order(50, 7, 3), np.random.default_rng((7, 3, 0)).permutation(50))


@given(
    n=st.integers(1, 60),
    batch_size=st.integers(1, 70),
    drop_last=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=80, deadline=None)
def test_batches_cut_the_order_into_pieces(n, batch_size, drop_last, seed):
    if drop_last and batch_size > n:
        with pytest.raises(ValueError, match="leaves no full batch"):
            num_batches(n, batch_size)
        return
    count = num_batches(n, batch_size, drop_last)
    pieces = [batch_indices(n, batch_size, seed, 1, k, drop_last) for k in range(count)]
    assert all(len(piece) == batch_size for piece in pieces[: None if drop_last else -1])
    kept = n - n % batch_size if drop_last else n
    assert np.array_equal(np.concatenate(pieces), epoch_order(n, seed, 1)[:kept])
    assert all(len(piece) > 0 for piece in pieces)


@pytest.mark.parametrize("drop_last", [True, False])
def test_contents(drop_last):
    found = one_epoch(drop_last=drop_last)
    assert [len(y) for _, y in found] == [4] * 5 + [3] * (not drop_last)
    for position, (x, y) in enumerate(found):
        chosen = batch_indices(N, 4, 3, 2, position, drop_last)
        assert x.shape == (len(chosen), 1, 6, 5)
        assert x.dtype == np.float32
        assert y.dtype == np.int64
        assert np.array_equal(y, LABELS[chosen])
        assert np.array_equal(x, normalize(IMAGES[chosen]))


@pytest.mark.parametrize("augment", [None, noise])
@pytest.mark.parametrize("start", [0, 1, 4, 5])
def test_resuming_gives_the_same_batches_bit_for_bit(augment, start):
    whole = one_epoch(augment=augment)[start:]
    resumed = one_epoch(augment=augment, start=start)
    assert len(resumed) == 5 - start
    for (x, y), (x2, y2) in zip(whole, resumed, strict=True):
        assert x.tobytes() == x2.tobytes()
        assert np.array_equal(y, y2)


def test_each_position_has_the_documented_generator_and_unit_images():
    seen = []

    def spy(x, y, rng):
        assert x.dtype == np.float32
        assert 0 <= x.min() <= x.max() <= 1
        seen.append(rng.integers(1 << 60))
        return x, y

    one_epoch(augment=spy)
    assert seen == [np.random.default_rng((3, 2, k)).integers(1 << 60) for k in range(5)]
    plain, spied = one_epoch(), one_epoch(augment=spy)
    assert all(a[0].tobytes() == b[0].tobytes() for a, b in zip(plain, spied, strict=True))


def test_what_augment_returns_is_never_written_and_its_targets_pass():
    constant = np.full((4, 3, 2, 2), 0.5)
    constant.flags.writeable = False
    targets = np.full((4, 10), 0.1, np.float32)
    found = one_epoch(augment=lambda x, y, rng: (constant, targets), mean=0.25, std=0.5)
    assert all(y is targets for _, y in found)
    assert all(x.dtype == np.float32 and (x == 0.5).all() for x, _ in found)


def test_arrays_that_are_written_do_not_change_the_next_epoch():
    first = [x.copy() for x, _ in one_epoch()]
    for x, y in one_epoch():
        x[...] = 0
        y[...] = 0
    assert all(np.array_equal(a, b) for a, (b, _) in zip(first, one_epoch(), strict=True))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_normalize(dtype):
    x = normalize(IMAGES, dtype=dtype)
    assert x.dtype == dtype
    assert x.shape == (N, 1, 6, 5)
    expected = (IMAGES[:, None] / 255.0 - MNIST_MEAN) / MNIST_STD
    assert np.abs(x - expected).max() <= 8 * np.finfo(dtype).eps


def test_normalize_per_channel():
    images = np.stack([IMAGES] * 3, axis=1)  # (N, 3, 6, 5)
    x = normalize(images, mean=[0.1, 0.2, 0.3], std=[1.0, 2.0, 4.0], dtype="float64")
    for channel, (mean, std) in enumerate([(0.1, 1), (0.2, 2), (0.3, 4)]):
        assert np.allclose(x[:, channel], (IMAGES / 255 - mean) / std, rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((IMAGES.astype("f4"),), r"shape \(23, 6, 5\) and dtype float32, expected \(n, H, W\)"),
        ((IMAGES[0],), r"shape \(6, 5\)"),
        ((IMAGES, [0.1, 0.2]), r"mean=\[0.1.*does not fit images of 1 channels"),
        ((IMAGES, np.nan), "mean=nan does not fit"),
        ((IMAGES, [[0.1]]), "mean=.*does not fit"),
        ((IMAGES, 0.0, [1.0, 2.0]), "std=.*does not fit"),
        ((IMAGES, 0.0, 0.0), "std=0.0 must be above 0"),
        ((IMAGES, 0.0, -1.0), "std=-1.0 must be above 0"),
        ((IMAGES, 0.0, 1.0, "int32"), "dtype=int32 is not floating"),
    ],
)
def test_normalize_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        normalize(*arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size=0, expected an integer of at least 1"),
        ({"batch_size": 2.0}, r"batch_size=2\.0"),
        ({"batch_size": True}, "batch_size=True"),
        ({"batch_size": 24}, "batch_size=24 leaves no full batch of 23 images: choose at most 23"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, "n=0.*the data set is empty"),
        ({"labels": LABELS[:-1]}, r"labels have shape \(22,\)"),
        ({"labels": LABELS.astype("f4")}, "dtype float32, expected"),
        ({"labels": LABELS[:, None]}, r"shape \(23, 1\)"),
        ({"images": IMAGES.astype("f8")}, "dtype float64, expected"),
        ({"seed": -1}, "seed=-1"),
        ({"epoch": -1}, "epoch=-1"),
        ({"start": -1}, "start=-1"),
        ({"start": 6}, "start=6 is past the end of the epoch's 5 batches"),
        ({"std": 0.0}, "must be above 0"),
    ],
)
def test_batches_refuses_before_the_first_batch(changes, message):
    arguments = {"images": IMAGES, "labels": LABELS, "batch_size": 4, "seed": 0, "epoch": 0}
    with pytest.raises(ValueError, match=message):
        batches(**{**arguments, **changes})


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        (lambda x, y, rng: x, r"returned ndarray, expected a pair.*chain\(\.\.\.\)"),
        (lambda x, y, rng: (x, y, 1), "returned tuple"),
        (lambda x, y, rng: (x[1:], y), "returned 3 images and 4 targets for a batch of 4"),
        (lambda x, y, rng: (x, y[1:]), "returned 4 images and 3 targets"),
    ],
)
def test_augment_of_another_protocol_is_refused(augment, message):
    with pytest.raises(ValueError, match=message):
        one_epoch(augment=augment)


@pytest.mark.parametrize("position", [-1, 5, 1.0])
def test_positions_out_of_range(position):
    with pytest.raises(ValueError, match=f"position={position}"):
        batch_indices(23, 4, 0, 0, position)


@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    share=st.floats(0.05, 0.95),
    as_count=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=100, deadline=None)
def test_holdout_is_a_stratified_split(sizes, share, as_count, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)) * 3, sizes))
    n = len(labels)
    count = round(share * n)
    room = sum(size - 1 for size in sizes if size)  # one image of each class stays
    if not 0 < count <= room:
        with pytest.raises(ValueError, match="cannot hold out"):
            holdout(labels, count if as_count else share, seed)
        return
    kept, held = holdout(labels, count if as_count else share, seed)
    assert len(held) == count
    assert sorted([*kept, *held]) == list(range(n))
    for number, size in enumerate(sizes):
        taken = (labels[held] == number * 3).sum()
        assert taken < max(size, 1), "one image of each class stays"
        if all(size * count / n + 1 <= size - 1 for size in sizes if size):  # nothing had to move between classes
            assert abs(taken - size * count / n) < 1
    again = holdout(labels, count, seed)
    assert np.array_equal(again[0], kept)
    assert np.array_equal(again[1], held)


def test_holdout_is_random_in_choice_and_order():
    labels = np.repeat(np.arange(10), 50)
    _, held = holdout(labels, 100, 0)
    _, other = holdout(labels, 100, 1)
    assert set(held) != set(other)
    assert (np.diff(labels[held]) < 0).any()
    assert held.tolist() != sorted(held)


@pytest.mark.parametrize("part", [0, 23, -1, 0.0, 1.0, 0.001, 0.999, 1.5, np.nan, np.inf, True])
def test_holdout_refuses_empty_parts(part):
    with pytest.raises(ValueError, match="cannot hold out"):
        holdout(LABELS, part, 0)


def test_holdout_never_takes_a_class_s_only_image():
    with pytest.raises(ValueError, match=r"cannot hold out 3 of 5 images: one of each of the 3 classes .* most 2"):
        holdout(np.array([0, 1, 1, 1, 2]), 3, 0)


@pytest.mark.parametrize("labels", [LABELS / 2, LABELS[:, None]])
def test_holdout_refuses_other_labels(labels):
    with pytest.raises(ValueError, match=r"expected \(n,\) integers"):
        holdout(labels, 5, 0)
