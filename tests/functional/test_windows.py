"""Windows of a map: the moves and their adjoints, where each pixel goes, and the offsets between pixels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from minivit import functional as F, nn
from minivit.strategies import arrays, seeds


def whole(x: Any) -> Any:
    """Random numbers rounded to whole ones, whose sums and products are exact."""
    return np.rint(8 * x)


# --- each backward pass is the transpose of its move, to the last bit -----------------------------------------------

SIDES = st.sampled_from([1, 2, 3, 4])
# name: (letters, lengths, function); all are linear, so <f(v), u> == <v, vjp(u)> for all u and v is the whole proof
MOVES: dict[str, Any] = {
    "window_partition": (
        "BabD",
        {"a": st.sampled_from([2, 4, 6]), "b": st.sampled_from([3, 6])},
        lambda x: F.window_partition(x, (2, 3)),
    ),
    "window_partition by one number": ("BabD", {"a": 4, "b": 2}, lambda x: F.window_partition(x, 2)),
    "window_reverse": (
        "WabD",
        {"W": st.sampled_from([6, 12]), "a": 2, "b": 3},
        lambda x: F.window_reverse(x, (2, 3), 6, 6),
    ),
    "roll up and left": ("BabD", {}, lambda x: F.roll(x, (-1, -2))),
    "roll on one axis": ("BabD", {}, lambda x: F.roll(x, (0, 5))),
    "roll nothing": ("BabD", {}, lambda x: F.roll(x, (0, 0))),
    "roll other axes": ("abD", {}, lambda x: F.roll(x, (1, -1), (0, 1))),
    "pad": ("BabD", {"a": SIDES, "b": SIDES}, lambda x: F.pad(x, (5, 4))),
    "pad other axes": ("BCab", {}, lambda x: F.pad(x, (3, 4), (2, 3))),
    "crop": ("BabD", {"a": st.sampled_from([2, 3]), "b": SIDES}, lambda x: F.crop(x, (2, 1))),
    "crop other axes": ("abD", {}, lambda x: F.crop(x, (1, 1), (0, 1))),
    "shifted_windows": (
        "BabD",
        {"a": SIDES, "b": SIDES},
        lambda x: F.shifted_windows(x, (2, 3), (1, 2), (4, 6)),
    ),
    "shifted_windows, rolled before it is padded": (
        "BabD",
        {"a": st.sampled_from([3, 4]), "b": st.sampled_from([4, 5, 6])},
        lambda x: F.shifted_windows(x, (2, 3), (1, 2), (4, 6), pad_first=False),
    ),
    "shifted_windows_reverse": (
        "WabD",
        {"W": st.sampled_from([4, 8]), "a": 2, "b": 3},
        lambda x: F.shifted_windows_reverse(x, (2, 3), (1, 2), (4, 6), (3, 5)),
    ),
    "patch_merging": ("BabD", {"a": SIDES, "b": SIDES}, F.patch_merging),
    "relative_position_bias": (
        "RH",
        {"R": 15},
        lambda table: F.relative_position_bias(table, F.relative_position_index((2, 3))),
    ),
    "relative_position_bias of a smaller window": (
        "RH",
        {"R": 45},
        lambda table: F.relative_position_bias(table, F.relative_position_index((2, 3), (3, 5))),
    ),
    "relative_position_bias of the first queries": (
        "RH",
        {"R": 15},
        lambda table: F.relative_position_bias(table, F.relative_position_index((2, 3))[:2]),
    ),
}


@pytest.mark.parametrize("name", MOVES)
@settings(max_examples=50)  # there are few shapes
@given(data=st.data(), seed=seeds())
def test_the_backward_of_a_move_is_its_transpose(name: str, data: Any, seed: int) -> None:
    letters, lengths, f = MOVES[name]
    v = whole(data.draw(arrays(letters, **lengths))[0])
    y, vjp = f(v)
    u = whole(np.random.default_rng(seed).standard_normal(y.shape))
    before = v.copy(), u.copy()
    assert np.vdot(y, u) == np.vdot(v, vjp(u))
    assert np.array_equal(v, before[0]) and np.array_equal(u, before[1]), "an argument was written into"


RESIZES: dict[str, Any] = {
    "grid up": ("abD", lambda x: F.resize_grid(x, (5, 4))),
    "grid down": ("abD", lambda x: F.resize_grid(x, (1, 2))),
    "grid plain": ("abD", lambda x: F.resize_grid(x, (4, 2), antialias=False)),
    "images up": ("BCab", lambda x: F.resize_images(x, (4, 7), "bilinear")),
    "images down": ("BCab", lambda x: F.resize_images(x, (2, 1))),
}


@pytest.mark.parametrize("name", RESIZES)
@settings(max_examples=50)  # there are few shapes
@given(data=st.data(), seed=seeds())
def test_the_backward_of_resizing_is_its_transpose(name: str, data: Any, seed: int) -> None:
    letters, f = RESIZES[name]
    (v,) = data.draw(arrays(letters, a=SIDES, b=SIDES))
    y, vjp = f(v)
    u = np.random.default_rng(seed).standard_normal(y.shape)
    size = np.abs(y).sum() * np.abs(u).max() + np.abs(v).sum()
    assert abs(np.vdot(y, u) - np.vdot(v, vjp(u))) <= 1e-13 * size


@pytest.mark.parametrize("name", [name for name in MOVES if name.startswith(("window", "roll"))])
@settings(max_examples=50)  # there are few shapes
@given(data=st.data())
def test_a_permutation_keeps_every_element_and_is_undone_by_its_backward(name: str, data: Any) -> None:
    letters, lengths, f = MOVES[name]
    (x,) = data.draw(arrays(letters, **lengths))
    y, undo = f(x)
    assert np.array_equal(np.sort(y, axis=None), np.sort(x, axis=None))
    assert np.array_equal(undo(y), x)


@given(arrays("BabD", a=SIDES, b=SIDES))
def test_what_was_padded_crops_back_and_the_rest_is_zero(args: Any) -> None:
    (x,) = args
    for f in (lambda x: F.pad(x, (5, 6)), F.patch_merging):
        y, undo = f(x)
        assert np.count_nonzero(y) == np.count_nonzero(x) and y.sum() == pytest.approx(x.sum(), abs=1e-12)
        assert np.array_equal(undo(y), x)
    padded = F.pad(x, (5, 6))[0]
    assert padded.shape[1:3] == (5, 6) and np.array_equal(padded[:, : x.shape[1], : x.shape[2]], x)
    assert np.array_equal(F.crop(padded, x.shape[1:3])[0], x)


# --- where each place goes ------------------------------------------------------------------------------------------


def places(height: int, width: int) -> Any:
    """A map (1, H, W, 1) whose elements are their numbers in reading order."""
    return np.arange(height * width, dtype=float).reshape(1, height, width, 1)


def test_windows_come_in_reading_order_sample_after_sample() -> None:
    y, _ = F.window_partition(np.concatenate((places(4, 6), 100 + places(4, 6))), (2, 3))
    assert y.shape == (8, 2, 3, 1)
    assert y[:4].reshape(4, 6).tolist() == [
        [0, 1, 2, 6, 7, 8],
        [3, 4, 5, 9, 10, 11],
        [12, 13, 14, 18, 19, 20],
        [15, 16, 17, 21, 22, 23],
    ]
    assert np.array_equal(y[4:], 100 + y[:4])
    assert np.array_equal(F.window_reverse(y, (2, 3), 4, 6)[0][:1], places(4, 6))


def test_the_cyclic_shift_brings_here_what_was_further_right_and_down() -> None:
    y, _ = F.roll(places(3, 4), (-1, -2))
    assert y[0, :, :, 0].tolist() == [[6, 7, 4, 5], [10, 11, 8, 9], [2, 3, 0, 1]]


@given(arrays("BabD", a=st.sampled_from([2, 4]), b=st.sampled_from([2, 6])))
def test_merging_joins_down_before_right(args: Any) -> None:
    (x,) = args
    corners = [x[:, row::2, column::2] for row, column in ((0, 0), (1, 0), (0, 1), (1, 1))]
    assert np.array_equal(F.patch_merging(x)[0], np.concatenate(corners, axis=-1))


def test_merging_an_odd_map_pads_it_at_the_right_and_bottom() -> None:
    y, _ = F.patch_merging(1 + places(3, 3))
    assert y[0].tolist() == [[[1, 4, 2, 5], [3, 6, 0, 0]], [[7, 0, 8, 0], [9, 0, 0, 0]]]


# --- the offsets between two pixels of a window ---------------------------------------------------------------------


def test_the_index_of_small_windows() -> None:
    index = F.relative_position_index((2, 2))
    assert index.tolist() == [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]
    assert F.relative_position_index((2, 3))[0].tolist() == [7, 6, 5, 2, 1, 0]
    assert F.relative_position_index((1, 1)).tolist() == [[0]]


@pytest.mark.parametrize(
    ("side", "largest", "total"), [(7, 168, 201_684), (8, 224, 458_752), (12, 528, 5_474_304)]
)  # as in the published checkpoints
def test_the_index_of_the_published_windows(side: int, largest: int, total: int) -> None:
    index = F.relative_position_index((side, side))
    assert index.shape == (side**2, side**2) and index.sum() == total
    assert index.min() == 0 and index.max() == largest == (2 * side - 1) ** 2 - 1
    assert (np.diag(index) == largest // 2).all()
    assert index[0, -1] == 0 and index[-1, 0] == largest
    assert not index.flags.writeable


@pytest.mark.parametrize(("window", "made"), [((2, 3), (2, 3)), ((2, 3), (4, 3)), ((1, 2), (3, 5))])
def test_the_index_is_the_offset_by_loops(window: Any, made: Any) -> None:
    index = F.relative_position_index(window, made)
    spots = [(y, x) for y in range(window[0]) for x in range(window[1])]
    rows = [(dy, dx) for dy in range(1 - made[0], made[0]) for dx in range(1 - made[1], made[1])]
    for i, query in enumerate(spots):
        for j, key in enumerate(spots):
            assert rows[index[i, j]] == (query[0] - key[0], query[1] - key[1])


@pytest.mark.parametrize("window", [(2, 2), (2, 3), (7, 7), (4, 1)])
def test_a_table_row_collects_the_gradient_of_every_pair_with_its_offset(window: Any) -> None:
    mh, mw = window
    y, vjp = F.relative_position_bias(np.zeros(((2 * mh - 1) * (2 * mw - 1), 2)), F.relative_position_index(window))
    expected = [(mh - abs(dy)) * (mw - abs(dx)) for dy in range(1 - mh, mh) for dx in range(1 - mw, mw)]
    assert np.array_equal(vjp(np.ones_like(y)), np.array([expected, expected]).T)


NINE, FIVE = math.log2(9) / 3, math.log2(5) / 3


def test_log_spaced_offsets() -> None:
    offsets = F.log_spaced_offsets((2, 3))
    assert offsets.shape == (15, 2)
    assert np.allclose(offsets.reshape(3, 5, 2)[:, 0, 0], [-NINE, 0, NINE], rtol=1e-15, atol=0)
    assert np.allclose(offsets.reshape(3, 5, 2)[0, :, 1], [-NINE, -FIVE, 0, FIVE, NINE], rtol=1e-15, atol=0)
    assert pytest.approx(1.0566416671474375, rel=1e-15) == NINE
    for (dy, dx), row in zip(((dy, dx) for dy in range(-1, 2) for dx in range(-2, 3)), offsets):
        for offset, reach, value in ((dy, 1, row[0]), (dx, 2, row[1])):
            assert value == pytest.approx(math.copysign(math.log2(8 * abs(offset) / reach + 1) / 3, offset), rel=1e-15)


def test_log_spaced_offsets_of_a_window_of_one_are_zero() -> None:
    assert F.log_spaced_offsets((1, 1)).tolist() == [[0, 0]]
    assert not F.log_spaced_offsets((1, 3))[:, 0].any()
    assert not F.log_spaced_offsets((1, 1), (1, 1)).any()


def test_the_pretrained_window_is_the_unit() -> None:
    own, trained = F.log_spaced_offsets((4, 4)), F.log_spaced_offsets((6, 6), (4, 4))
    inside = trained.reshape(11, 11, 2)[2:-2, 2:-2].reshape(-1, 2)
    assert np.array_equal(inside, own), "the same offset must mean the same in a larger window"
    assert trained.max() == pytest.approx(math.log2(8 * 5 / 3 + 1) / 3)
    assert F.log_spaced_offsets((6, 6)).max() == pytest.approx(NINE)
    assert np.array_equal(F.log_spaced_offsets((6, 6), (6, 0)), F.log_spaced_offsets((6, 6)))
    mixed = F.log_spaced_offsets((6, 6), (0, 4))
    assert np.array_equal(mixed[:, 0], F.log_spaced_offsets((6, 6))[:, 0])
    assert np.array_equal(mixed[:, 1], trained[:, 1])


# --- errors say what was given and what to do -----------------------------------------------------------------------

MAP = np.zeros((2, 4, 6, 1))
ERRORS: dict[str, Any] = {
    "window": (lambda: F.window_partition(MAP, 4), ["4x6", "4x4", "pad it to a multiple"]),
    "one side": (lambda: F.window_partition(MAP, (2, 4)), ["4x6", "2x4", "pad it"]),
    "window 0": (lambda: F.window_partition(MAP, 0), ["0x0", "4x6"]),
    "negative window": (lambda: F.window_partition(MAP, (-2, 3)), ["-2x3", "4x6"]),
    "no channels": (lambda: F.window_partition(MAP[..., 0], 2), ["(B, H, W, C)", "(2, 4, 6)"]),
    "five axes": (lambda: F.window_partition(MAP[None], 2), ["(B, H, W, C)", "(1, 2, 4, 6, 1)"]),
    "windows of another size": (
        lambda: F.window_reverse(np.zeros((8, 2, 2, 1)), (2, 3), 4, 6),
        ["(8, 2, 2, 1)", "(B * 4, 2, 3, C)", "4x6"],
    ),
    "too few windows": (lambda: F.window_reverse(np.zeros((3, 2, 3, 1)), (2, 3), 4, 6), ["(3, 2, 3, 1)", "B * 4"]),
    "flat windows": (lambda: F.window_reverse(np.zeros((4, 2, 3)), (2, 3), 4, 6), ["(4, 2, 3)", "(B * 4, 2, 3, C)"]),
    "reverse to a wrong map": (lambda: F.window_reverse(np.zeros((4, 2, 3, 1)), (2, 3), 5, 6), ["5x6", "2x3", "pad"]),
    "a shift of a window": (
        lambda: F.shifted_windows(MAP, 2, (2, 0), (4, 6)),
        ["shifted_windows", "(2, 0)", "below the window (2, 2)"],
    ),
    "shifted windows of a map that does not fit": (
        lambda: F.shifted_windows_reverse(np.zeros((4, 2, 3, 1)), (2, 3), (1, 0), (4, 6), (5, 6)),
        ["(5, 6)", "the padded (4, 6)"],
    ),
    "pad smaller": (lambda: F.pad(MAP, (3, 6)), ["(3, 6)", "smaller", "(4, 6)"]),
    "pad smaller on one axis": (lambda: F.pad(MAP, (8, 5)), ["(8, 5)", "smaller", "(4, 6)"]),
    "crop larger": (lambda: F.crop(MAP, (4, 7)), ["(4, 7)", "between 0 and", "(4, 6)"]),
    "crop to less than nothing": (lambda: F.crop(MAP, (-1, 2)), ["(-1, 2)", "between 0 and"]),
    "pad without axes": (lambda: F.pad(np.zeros((2, 3)), (4, 4)), ["pad", "(2, 3)", "no axes (1, 2)"]),
    "roll without axes": (lambda: F.roll(np.zeros((2, 3)), (1, 1)), ["roll", "(2, 3)", "no axes (1, 2)"]),
    "merging one map": (lambda: F.patch_merging(np.zeros((4, 4, 2))), ["patch_merging", "(B, H, W, C)", "(4, 4, 2)"]),
    "an empty map": (lambda: F.window_reverse(np.zeros((0, 2, 2, 1)), 2, 0, 4), ["0x4", "2x2"]),
    "half a window": (lambda: F.window_partition(MAP, 2.5), ["2.5", "integer"]),
    "three sides": (lambda: F.window_partition(MAP, (2, 2, 2)), ["(2, 2, 2)", "or two"]),
    "regions": (lambda: F.shift_regions((4, 6), 4, (1, 1)), ["window 4", "6"]),
    "shift too large": (lambda: F.shift_regions((4, 6), 2, (1, 2)), ["shift 2", "below the window"]),
    "negative shift": (lambda: F.shift_mask((4, 4), (2, 2), (-1, 0)), ["shift -1", "below the window"]),
    "small table": (lambda: F.relative_position_index((2, 3), (4, 2)), ["4x2", "2x3", "window_size=(2, 3)"]),
    "layer's shift": (
        lambda: nn.ShiftedWindows(nn.WindowAttention(4, 2, (2, 3), seed=0), (2, 3), (1, 3)),
        ["shift_size=(1, 3)", "window_size=(2, 3)", "between 0 and"],
    ),
    "layer's heads": (lambda: nn.WindowAttention(4, 3, (2, 2), seed=0), ["embed_dim=4", "num_heads=3", "divides it"]),
    "cosine layer's heads": (lambda: nn.CosineWindowAttention(4, 3, (2, 2), seed=0), ["embed_dim=4", "num_heads=3"]),
    "layer's map": (
        lambda: nn.ShiftedWindows(nn.WindowAttention(4, 2, (2, 2), dtype="float64", seed=0), (2, 2))(
            np.zeros((2, 4, 4))
        ),
        ["(B, H, W, C)", "(2, 4, 4)"],
    ),
    "layer's window": (
        lambda: nn.WindowAttention(4, 2, (2, 2), dtype="float64", seed=0)(np.zeros((2, 3, 2, 4))),
        ["2x2", "3x2", "window_size=(3, 2)"],
    ),
    "layer's flat windows": (
        lambda: nn.WindowAttention(4, 2, 2, dtype="float64", seed=0)(np.zeros((2, 4, 4))),
        ["(B nW, Mh, Mw, D)", "(2, 4, 4)"],
    ),
    "layer's mask": (
        lambda: nn.WindowAttention(4, 2, 2, dtype="float64", seed=0)(
            np.zeros((3, 2, 2, 4)), mask=np.ones((2, 4, 4), bool)
        ),
        ["(2, 4, 4)", "3 windows of 2x2", "(nW, N, N)"],
    ),
    "negative pretrained window": (lambda: F.log_spaced_offsets(2, -3), ["-3", "negative"]),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_name_the_value_and_the_remedy(case: str) -> None:
    call, fragments = ERRORS[case]
    with pytest.raises(ValueError) as error:
        call()
    assert all(fragment in str(error.value) for fragment in fragments), error.value
