"""Which pixels of a shifted window attend to each other, against the pixels' coordinates before the shift."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from minivit import functional as F, nn


def test_regions_of_a_small_map() -> None:
    regions = F.shift_regions((4, 4), 2, (1, 1))
    assert regions.tolist() == [[0, 0, 1, 2], [0, 0, 1, 2], [3, 3, 4, 5], [6, 6, 7, 8]]
    mask = F.shift_mask((4, 4), (2, 2), (1, 1))
    assert (~mask).sum(axis=(1, 2)).tolist() == [0, 8, 8, 12]
    assert F.shift_regions((4, 4), 2, (0, 1)).tolist() == [[0, 0, 1, 2]] * 4
    assert not F.shift_regions((4, 4), 2, (0, 0)).any()


def mask_by_coordinates(size: Any, window: Any, shift: Any, real: Any = None) -> Any:
    """Shifted windows tile the plane from (shift - window) on; two pixels of the map share one, or do not attend.

    A place on the map before the roll is (y, x); its shifted window is number floor((y - shift) / window), which is -1
    above the first whole one. With `real` given, padded pixels and real ones do not attend to each other either.
    """

    def home(y: int, x: int) -> Any:
        padded = real is not None and (y >= real[0] or x >= real[1])
        return (y - shift[0]) // window[0], (x - shift[1]) // window[1], padded

    masks = []
    for top in range(0, size[0], window[0]):
        for left in range(0, size[1], window[1]):
            inside = [
                home((top + row + shift[0]) % size[0], (left + column + shift[1]) % size[1])
                for row in range(window[0])
                for column in range(window[1])
            ]
            masks.append([[query == key for key in inside] for query in inside])
    return np.array(masks)


@pytest.mark.parametrize(
    ("size", "window", "shift"),
    [
        ((4, 4), (2, 2), (1, 1)),
        ((8, 8), (4, 4), (2, 2)),
        ((7, 7), (7, 7), (3, 3)),
        ((14, 14), (7, 7), (3, 3)),
        ((6, 9), (3, 3), (1, 1)),
        ((6, 8), (3, 4), (2, 1)),
        ((4, 6), (4, 2), (0, 1)),
        ((4, 6), (2, 3), (1, 0)),
        ((5, 5), (5, 5), (4, 1)),
        ((2, 2), (1, 1), (0, 0)),
    ],
)
def test_the_mask_equals_the_coordinates_by_loops(size: Any, window: Any, shift: Any) -> None:
    mask = F.shift_mask(size, window, shift)
    expected = mask_by_coordinates(size, window, shift)
    assert expected.all() if mask is None else np.array_equal(mask, expected)
    for real in (size, (size[0] - 1, size[1]), (size[0], size[1] - window[1] + 1), (1, 1)):
        mask = F.shift_mask(size, window, shift, real)
        expected = mask_by_coordinates(size, window, shift, real)
        assert expected.all() if mask is None else np.array_equal(mask, expected)
        assert expected.diagonal(axis1=1, axis2=2).all(), "a place may always look at itself"


@pytest.mark.parametrize(
    ("side", "windows", "masked", "fraction"), [(56, 64, 15, 0.1187), (28, 16, 7, 0.2299), (14, 4, 3, 0.4298)]
)
def test_masks_of_the_tiny_swin_at_224(side: int, windows: int, masked: int, fraction: float) -> None:
    mask = F.shift_mask((side, side), (7, 7), (3, 3))
    assert mask.shape == (windows, 49, 49) and mask.dtype == bool and not mask.flags.writeable
    assert (~mask).any(axis=(1, 2)).sum() == masked
    assert round(float((~mask).mean()), 4) == fraction


def test_without_a_shift_or_padding_there_is_no_mask() -> None:
    assert F.shift_mask((14, 14), (7, 7), (0, 0)) is None
    assert F.shift_mask((14, 14), (7, 7), (0, 0), (14, 14)) is None
    assert F.shift_mask((14, 14), (7, 7), (0, 0), (13, 14)) is not None


def test_a_map_within_one_window_is_not_shifted() -> None:
    attention = nn.WindowAttention(4, 2, (7, 7), dtype="float64", seed=1)
    layer, plain = (nn.ShiftedWindows(attention, (7, 7), shift) for shift in ((3, 3), (0, 0)))
    assert layer.plan(7, 7) == ((7, 7), (0, 0), (7, 7))
    assert layer.plan(5, 3) == ((5, 3), (0, 0), (5, 3))
    assert layer.plan(8, 7) == ((7, 7), (3, 0), (14, 7))
    assert layer.plan(56, 50) == ((7, 7), (3, 3), (56, 56))
    # what would come of rolling it all the same: most pairs torn apart
    assert round(float((~F.shift_mask((7, 7), (7, 7), (3, 3))).mean()), 4) == 0.7397
    for size in ((7, 7), (7, 5)):
        x = np.random.default_rng(0).standard_normal((2, *size, 4))
        assert np.array_equal(layer(x)[0], plain(x)[0])
    x = np.random.default_rng(0).standard_normal((2, 14, 7, 4))
    assert not np.allclose(layer(x)[0], plain(x)[0])
