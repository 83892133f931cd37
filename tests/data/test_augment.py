"""Augmentation: each function against a plain loop or a case with a known answer.
Read minivit/data/augment.py, warp.py and mix.py beside it.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from minivit.data import affine, batches, chain, crop, cutmix, erase, flip, mixup, shift
from minivit.data.augment import ERASE_TRIES
from minivit.data.warp import GROUP, warp

DTYPES = ["uint8", "float16", "float32", "float64"]
FUNCTIONS = {
    "shift": shift,
    "crop": partial(crop, padding=1),
    "crop reflected": partial(crop, padding=1, reflect=True),
    "flip": flip,
    "erase": erase,
    "erase with noise": partial(erase, p=1.0, fill=None),
    "affine": partial(affine, degrees=20, shear=10, max_shift=1),
    "cutmix": lambda x, rng: cutmix(x, np.zeros(len(x), int), rng, 3)[0],
}
MIXES = {"mixup": mixup, "cutmix": cutmix}


def make(shape, dtype="float32", seed=0):
    """Random images in [0, 1] or 0 ... 255, read-only."""
    rng = np.random.default_rng(seed)
    if dtype == "uint8":
        images = rng.integers(256, size=shape, dtype=np.uint8)
    else:
        images = rng.random(shape).astype(dtype)
    images.flags.writeable = False
    return images


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@given(
    shape=st.tuples(st.integers(0, 4), st.integers(1, 3), st.integers(2, 7), st.integers(2, 7)),
    seed=st.integers(0, 99),
)
@settings(max_examples=8, deadline=None)
def test_keeps_dtype_and_input_and_is_pure(name, dtype, shape, seed):
    images = make(shape, dtype, seed)
    before = images.copy()
    out = FUNCTIONS[name](images, rng(seed))
    assert out.dtype == images.dtype
    assert out.shape == images.shape
    assert not np.shares_memory(out, images)
    assert np.array_equal(images, before)
    assert out.tobytes() == FUNCTIONS[name](images, rng(seed)).tobytes()
    assert np.isfinite(out).all()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_does_something(name):
    images = make((16, 1, 8, 8))
    assert not np.array_equal(FUNCTIONS[name](images, rng()), images)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("images", [make((2, 5, 5)), np.zeros((2, 1, 5, 5), int)])
def test_other_images_are_refused(name, images):
    with pytest.raises(ValueError, match=r"expected \(B, C, H, W\) floating or uint8"):
        FUNCTIONS[name](images, rng())


# shift and crop


def shifted(image, dy, dx, fill):
    """One image (C, H, W) moved by (dy, dx), pixel by pixel."""
    out = np.full_like(image, fill)
    _, H, W = image.shape
    for y in range(H):
        for x in range(W):
            if 0 <= y - dy < H and 0 <= x - dx < W:
                out[:, y, x] = image[:, y - dy, x - dx]
    return out


@pytest.mark.parametrize("dtype", DTYPES)
def test_shift_gives_every_move_and_no_other(dtype):
    images = np.repeat(make((1, 2, 4, 5), dtype), 300, axis=0)
    moves = {shifted(images[0], dy, dx, 1).tobytes(): (dy, dx) for dy in (-2, -1, 0, 1, 2) for dx in (-2, -1, 0, 1, 2)}
    seen = [moves[image.tobytes()] for image in shift(images, rng(), max_shift=2, fill=1)]
    assert set(seen) == set(moves.values())


def test_shift_by_nothing_is_a_copy():
    images = make((3, 1, 4, 4))
    assert np.array_equal(shift(images, rng(), max_shift=0), images)


def test_shift_beyond_the_image_may_leave_only_fill():
    out = shift(make((200, 1, 2, 2)) + 1, rng(), max_shift=5, fill=0.5)
    assert ((out == 0.5).all(axis=(1, 2, 3))).any()


@pytest.mark.parametrize("reflect", [False, True])
@pytest.mark.parametrize("size", [None, (3, 6), (8, 9)])
def test_crop_cuts_windows_of_the_padded_image(reflect, size):
    images = np.repeat(make((1, 2, 4, 5)), 400, axis=0)
    mode = {"mode": "reflect"} if reflect else {"constant_values": np.float32(0.25)}
    padded = np.pad(images[0], ((0, 0), (2, 2), (2, 2)), **mode)  # (2, 8, 9)
    height, width = size or (4, 5)
    windows = {padded[:, y : y + height, x : x + width].tobytes() for y in range(9 - height) for x in range(10 - width)}
    out = crop(images, rng(), padding=2, size=size, fill=0.25, reflect=reflect)
    assert out.shape == (400, 2, height, width)
    assert {image.tobytes() for image in out} == windows


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: shift(x, rng(), max_shift=-1), "max_shift=-1, expected an integer"),
        (lambda x: shift(x, rng(), max_shift=1.5), r"max_shift=1\.5"),
        (lambda x: crop(x, rng(), padding=-1), "padding=-1"),
        (
            lambda x: crop(x, rng(), padding=1, size=(7, 5)),
            r"size=\(7, 5\) cannot be cropped from .*4x5",
        ),
        (lambda x: crop(x, rng(), padding=1, size=(4, 8)), "cannot be cropped"),
        (lambda x: crop(x, rng(), padding=1, size=(0, 5)), "cannot be cropped"),
        (lambda x: crop(x, rng(), padding=1, size=(4, 0)), "cannot be cropped"),
        (lambda x: crop(x, rng(), padding=4, reflect=True), "cannot be reflected.*at most 3"),
        (lambda x: flip(x, rng(), p=1.1), "p=1.1 is out of range: expected 0 to 1"),
        (lambda x: erase(x, rng(), p=-0.1), "p=-0.1"),
        (lambda x: erase(x, rng(), area=(0.5, 0.1)), r"area=\(0.5, 0.1\).*smaller bound first"),
        (lambda x: erase(x, rng(), area=(0.5, 1.1)), "area"),
        (lambda x: erase(x, rng(), aspect=(0.0, 1.0)), "aspect"),
        (lambda x: affine(x, rng(), degrees=-1), "degrees"),
        (lambda x: affine(x, rng(), scale=(0.0, 1.0)), "scale"),
        (lambda x: affine(x, rng(), shear=90.0), "shear"),
        (lambda x: affine(x, rng(), max_shift=np.nan), "max_shift"),
    ],
)
def test_arguments_out_of_range(call, message):
    with pytest.raises(ValueError, match=message):
        call(make((2, 1, 4, 5)))


@pytest.mark.parametrize("fill", [-1, 256, 0.5, np.nan])
@pytest.mark.parametrize("function", [shift, crop, partial(erase, p=1.0), affine])
def test_a_fill_that_uint8_cannot_hold_is_refused(function, fill):
    with pytest.raises(ValueError, match=f"fill={fill} is not a uint8"):
        function(make((2, 1, 6, 6), "uint8"), rng(), fill=fill)


# flip and erase


def test_flip_mirrors_about_half_of_the_images_left_to_right():
    images = make((400, 2, 3, 4))
    out = flip(images, rng())
    mirrored = (out == images[..., ::-1]).all(axis=(1, 2, 3))
    same = (out == images).all(axis=(1, 2, 3))
    assert (mirrored ^ same).all()
    assert 150 < mirrored.sum() < 250
    assert np.array_equal(flip(images, rng(), p=1.0), images[..., ::-1])
    assert np.array_equal(flip(images, rng(), p=0.0), images)


@pytest.mark.parametrize("dtype", DTYPES)
def test_erase_writes_one_rectangle_of_the_area_and_shape_asked_for(dtype):
    images = np.full((300, 2, 20, 30), 7, dtype)
    out = erase(images, rng(), p=1.0, area=(0.1, 0.3), aspect=(0.5, 2.0), fill=3)
    tall = 0
    for erased in (out == 3)[:, 0]:
        rows, columns = erased.any(axis=1).sum(), erased.any(axis=0).sum()
        assert erased.sum() == rows * columns  # a rectangle
        # Rounding moves each side by at most half a pixel.
        assert (rows - 0.5) * (columns - 0.5) <= 0.3 * 600
        assert (rows + 0.5) * (columns + 0.5) >= 0.1 * 600
        assert (rows - 0.5) / (columns + 0.5) <= 2.0
        assert (rows + 0.5) / (columns - 0.5) >= 0.5
        tall += rows > columns
    assert 100 < tall < 200
    assert np.array_equal(out[:, 0], out[:, 1])
    everywhere = (out == 3).any(axis=(0, 1))
    assert everywhere.all()  # the corners too


def test_erase_touches_the_share_asked_for():
    images = make((500, 1, 8, 8)) + 1
    touched = (erase(images, rng(), p=0.25) != images).any(axis=(1, 2, 3)).sum()
    assert 90 < touched < 160
    assert np.array_equal(erase(images, rng(), p=0.0), images)


def test_erase_leaves_an_image_whole_where_no_rectangle_fits():
    images = make((20, 1, 8, 8)) + 1
    assert ERASE_TRIES == 10
    assert np.array_equal(erase(images, rng(), p=1.0, area=(1.0, 1.0)), images)
    assert np.array_equal(erase(images, rng(), p=1.0, area=(0.0, 0.0)), images)


def test_noise_fills_the_range():
    for dtype, top in (("uint8", 255), ("float32", 1)):
        images = np.full((200, 1, 9, 9), 77, dtype)
        values = erase(images, rng(), p=1.0, fill=None)
        values = values[values != 77] / top
        assert 0 <= values.min() < 0.01
        assert 0.99 < values.max() <= 1
        assert abs(values.mean() - 0.5) < 0.05


# affine


def warped(image, matrix, move, fill):
    """One image (C, H, W) warped pixel by pixel, in float64."""
    C, H, W = image.shape
    center = np.array([(H - 1) / 2, (W - 1) / 2])
    out = np.zeros((C, H, W))
    for y in range(H):
        for x in range(W):
            sy, sx = np.linalg.solve(matrix, np.array([y, x]) - center - move) + center
            y0, x0 = int(np.floor(sy)), int(np.floor(sx))
            for yy, wy in ((y0, y0 + 1 - sy), (y0 + 1, sy - y0)):
                for xx, wx in ((x0, x0 + 1 - sx), (x0 + 1, sx - x0)):
                    inside = 0 <= yy < H and 0 <= xx < W
                    out[:, y, x] += wy * wx * (image[:, yy, xx] if inside else fill)
    return out


@pytest.mark.parametrize(("dtype", "bound"), [("float64", 1e-12), ("float32", 1e-5)])
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=25, deadline=None)
def test_warp_is_the_plain_loop(dtype, bound, shape, seed):
    draw = rng(seed)
    images = make(shape, dtype, seed)
    matrix = np.eye(2) + draw.normal(size=(shape[0], 2, 2)) * 0.2
    move = draw.normal(size=(shape[0], 2)) * 2
    out = warp(images, matrix, move, fill=0.25)
    for image, m, v, got in zip(images, matrix, move, out, strict=True):
        assert np.abs(got - warped(image.astype("f8"), m, v, 0.25)).max() < bound


def test_warp_works_in_groups_and_no_one_sees_it():
    images = make((7, 1, 60, 60))
    assert len(images) > GROUP // 3600 > 1
    matrix, move = rng().normal(size=(7, 2, 2)), rng().normal(size=(7, 2))
    together = warp(images, matrix, move)
    alone = [warp(images[i : i + 1], matrix[i : i + 1], move[i : i + 1])[0] for i in range(7)]
    assert np.array_equal(together, alone)
    large = make((2, 1, 130, 130))  # more values in one image than in a group
    assert np.array_equal(warp(large, np.stack([np.eye(2)] * 2), np.zeros((2, 2))), large)


@pytest.mark.parametrize("dtype", DTYPES)
def test_quarter_turn_counterclockwise_move_and_identity(dtype):
    images = make((1, 2, 6, 6), dtype)
    still = np.zeros((1, 2))
    quarter = np.array([[[0.0, -1.0], [1.0, 0.0]]])  # (y, x): right becomes up
    assert np.array_equal(warp(images, quarter, still), np.rot90(images, axes=(2, 3)))
    assert np.array_equal(warp(images, np.eye(2)[None], still), images)
    moved = warp(images, np.eye(2)[None], np.array([[2.0, -1.0]]), fill=1)
    assert np.array_equal(moved[0], shifted(images[0], 2, -1, 1))
    half = warp(images, np.eye(2)[None] * -1, still)
    assert np.array_equal(half, images[:, :, ::-1, ::-1])


def test_far_away_is_fill():
    images = make((2, 1, 5, 5))
    out = warp(images, np.stack([np.eye(2)] * 2), np.array([[1e6, 0], [0, -1e6]]), fill=0.5)
    assert (out == 0.5).all()


class Drawn:
    """A generator whose every draw is the upper bound (or, `low`, the lower)."""

    def __init__(self, low=False):
        self.low = low

    def uniform(self, low, high, size):
        return np.full(size, low if self.low else high, float)


@pytest.mark.parametrize("low", [False, True])
def test_affine_draws_between_its_bounds_and_turns_the_right_way(low):
    images = make((2, 1, 7, 7), "float64")
    sign = -1 if low else 1

    def draw(**options):
        options = {"degrees": 0, "scale": (1, 1), **options}
        return affine(images, Drawn(low), **options)

    assert np.abs(draw(degrees=90) - np.rot90(images, sign, axes=(2, 3))).max() < 1e-12
    assert np.abs(draw(degrees=180) - images[:, :, ::-1, ::-1]).max() < 1e-12
    expected = [shifted(image, 2 * sign, 2 * sign, 0) for image in images]
    assert np.abs(draw(max_shift=2) - expected).max() < 1e-12
    # Sheared by 45 degrees, the row k below the center moves k to the right.
    rows = [
        [np.stack([shifted(image[:, y : y + 1], 0, (y - 3) * sign, 0)[0, 0] for y in range(7)])] for image in images
    ]
    assert np.abs(draw(shear=45) - rows).max() < 1e-12
    # Doubled, the center shows each pixel at twice its distance from the middle; halved likewise.
    scaled = draw(scale=(0.5, 2.0))
    if low:
        assert np.abs(scaled[:, :, 2:5, 2:5] - images[:, :, 1:7:2, 1:7:2]).max() < 1e-12
    else:
        assert np.abs(scaled[:, :, 1:7:2, 1:7:2] - images[:, :, 2:5, 2:5]).max() < 1e-12


def test_affine_with_nothing_to_do_is_the_identity():
    for dtype in DTYPES:
        images = make((3, 2, 5, 6), dtype)
        assert np.array_equal(affine(images, rng(), degrees=0, scale=(1, 1)), images)


def test_affine_rounds_uint8_rather_than_cutting_off():
    images = np.zeros((1, 1, 1, 2), np.uint8)
    images[..., 0], images[..., 1] = 10, 11
    out = warp(images, np.eye(2)[None], np.array([[0.0, -0.75]]), fill=11)
    assert out.tolist() == [[[[11, 11]]]]  # 10.75 and 11


# mixup and cutmix


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_mixup_blends_images_and_labels_alike(dtype):
    # One-hot images: what the labels say can be read off the pixels.
    labels = np.random.default_rng(5).integers(6, size=50)
    images = np.eye(6, dtype=dtype)[labels].reshape(50, 1, 2, 3)
    mixed, targets = mixup(images, labels, rng(), num_classes=6, alpha=0.8)
    assert mixed.dtype == targets.dtype == dtype
    assert np.allclose(mixed.reshape(50, 6), targets, rtol=0, atol=1e-6)
    assert np.allclose(targets.sum(axis=1), 1, rtol=0, atol=1e-6)
    assert targets.min() >= 0
    assert len(np.unique(targets[targets > 0].round(5))) > 20  # one weight for each image
    assert (targets[np.arange(50), labels] > 0).all()


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
def test_cutmix_counts_the_pixels_it_pastes(dtype):
    labels = np.arange(40)
    images = np.broadcast_to(labels[:, None, None, None], (40, 2, 9, 7)).astype(dtype)
    mixed, targets = cutmix(images, labels, rng(), num_classes=40)
    assert mixed.dtype == dtype
    assert targets.dtype == (np.float32 if dtype == "uint8" else dtype)
    for own in range(40):
        share = np.bincount(mixed[own].astype(int).ravel(), minlength=40) / mixed[own].size
        assert np.allclose(share, targets[own], rtol=0, atol=1e-6)
        pasted = mixed[own, 0] != own
        assert pasted.sum() == pasted.any(axis=1).sum() * pasted.any(axis=0).sum()
    kept = targets[np.arange(40), labels]
    assert kept.min() < 0.4
    assert kept.max() > 0.9


class Centerd:
    """A generator that keeps three quarters, pastes in the middle and turns the batch round."""

    def beta(self, a, b, size):
        return np.full(size, 0.75)

    def permutation(self, size):
        return np.arange(size)[::-1]

    def integers(self, high, size):
        return np.full(size, high // 2)


def test_cutmix_keeps_the_share_that_was_drawn():
    images = make((2, 1, 8, 12))
    mixed, targets = cutmix(images, [0, 1], Centerd(), num_classes=2)
    assert np.array_equal(targets, [[0.75, 0.25], [0.25, 0.75]])
    expected = images.copy()
    expected[:, :, 2:6, 3:9] = images[::-1, :, 2:6, 3:9]
    assert np.array_equal(mixed, expected)


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
def test_soft_targets_can_be_mixed_again(mix):
    images = make((30, 1, 6, 6))
    soft = rng().dirichlet(np.ones(4), 30)
    soft.flags.writeable = False
    _, targets = mix(images, soft, rng(), num_classes=4)
    assert targets.dtype == np.float32
    assert np.allclose(targets.sum(axis=1), 1, rtol=0, atol=1e-6)
    hard = np.eye(4)[[0, 1, 2] * 10]
    expected = mix(images, np.array([0, 1, 2] * 10), rng(), num_classes=4)
    found = mix(images, hard, rng(), num_classes=4)
    assert np.array_equal(expected[0], found[0])
    assert np.array_equal(expected[1], found[1])


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([0, 1, 3], {}, "label 3 at index 2 is not one of num_classes=3: labels run from 0 to 2"),
        ([0, -1, 2], {}, "label -1 at index 1"),
        ([0, 1], {}, r"labels have shape \(2,\) and dtype int64, expected \(3,\) integers or"),
        ([0.0, 1.0, 2.0], {}, "dtype float64"),
        (np.ones((3, 4)), {}, r"shape \(3, 4\)"),
        ([0, 1, 2], {"alpha": 0.0}, "alpha=0.0 is not a parameter"),
        ([0, 1, 2], {"alpha": np.inf}, "alpha=inf"),
        ([0, 1, 2], {"alpha": np.nan}, "alpha=nan"),
    ],
)
def test_mixes_refuse(mix, labels, options, message):
    with pytest.raises(ValueError, match=message):
        mix(make((3, 1, 4, 4)), labels, rng(), num_classes=3, **options)


def test_mixup_refuses_to_round():
    with pytest.raises(ValueError, match="uint8 would round: pass floating images"):
        mixup(make((3, 1, 4, 4), "uint8"), [0, 1, 2], rng(), num_classes=3)


# chain


def test_chain_calls_in_order_with_one_generator():
    images, labels = make((8, 1, 6, 6)), np.arange(8)
    augment = chain(partial(shift, max_shift=1), erase, mix=partial(mixup, num_classes=8))
    draw = rng(4)
    expected = mixup(erase(shift(images, draw, 1), draw), labels, draw, num_classes=8)
    found = augment(images, labels, rng(4))
    assert np.array_equal(found[0], expected[0])
    assert np.array_equal(found[1], expected[1])
    x, y = chain()(images, labels, rng())
    assert x is images
    assert y is labels


def test_chain_is_what_batches_takes():
    images, labels = make((20, 6, 6), "uint8"), np.arange(20) % 4
    options = {"seed": 1, "epoch": 0, "mean": 0.0, "std": 1.0}
    for _, y in batches(images, labels, 5, augment=chain(affine), **options):
        assert y.dtype == np.int64
    mix = partial(cutmix, num_classes=4)
    for x, y in batches(images, labels, 5, augment=chain(affine, mix=mix), **options):
        assert x.shape == (5, 1, 6, 6)
        assert x.dtype == y.dtype == np.float32
        assert y.shape == (5, 4)
