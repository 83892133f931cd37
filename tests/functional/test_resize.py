"""The matrices of resizing against rows worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from minivit.functional.resize import resize_matrix


def test_bicubic_kernels_have_the_parameter_of_pytorch() -> None:
    """Halfway between two points Keys' kernel is (4 - a) / 8 at the near two and a / 8 at the far two."""
    plain = resize_matrix(4, 5, antialias=False)[2]
    np.testing.assert_allclose(plain, [-0.09375, 0.59375, 0.59375, -0.09375], rtol=0, atol=1e-15)
    antialiased = resize_matrix(4, 5)[2]
    np.testing.assert_allclose(antialiased, [-0.0625, 0.5625, 0.5625, -0.0625], rtol=0, atol=1e-15)


def test_aligned_corners_lie_upon_each_other() -> None:
    matrix = resize_matrix(3, 5, "bilinear", antialias=False, align_corners=True)
    assert matrix.tolist() == [[1, 0, 0], [0.5, 0.5, 0], [0, 1, 0], [0, 0.5, 0.5], [0, 0, 1]]
    assert resize_matrix(5, 3, "bilinear", antialias=False, align_corners=True).tolist() == np.eye(5)[::2].tolist()


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
def test_an_offset_changes_the_spacing_and_not_the_number_of_points(mode: str) -> None:
    assert resize_matrix(3, 4, mode, False, offset=2.0).tolist() == resize_matrix(3, 6, mode, False)[:4].tolist()


def test_beyond_the_ends_the_plain_kernel_repeats_the_last_point_and_the_antialiased_one_drops_it() -> None:
    """2 points at 4 positions, -0.25, 0.25, 0.75 and 1.25."""
    plain = resize_matrix(2, 4, "bilinear", antialias=False)
    assert plain.tolist() == [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]
    assert resize_matrix(2, 4, "bilinear").tolist() == plain.tolist()  # what is left of the kernel is scaled to 1
    # 4 points at 2 positions, 0.5 and 2.5, by a kernel twice as wide: 7, 5, 3 and 1 eighths of each other's weights
    half = np.array([[0.75, 0.75, 0.25, 0], [0, 0.25, 0.75, 0.75]]) / 1.75
    np.testing.assert_allclose(resize_matrix(4, 2, "bilinear"), half, rtol=1e-15)
    assert resize_matrix(4, 2, "bilinear", antialias=False).tolist() == [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, 4, "nearest"), "mode='nearest': choose 'bicubic' or 'bilinear'"),
        ((0, 4), "cannot resample 0 points to 4"),
        ((3, 0), "cannot resample 3 points to 0"),
        ((3, 4, "bicubic", True, True), "align_corners=True needs antialias=False"),
        ((3, 4, "bicubic", True, False, 0.1), "offset needs antialias=False and align_corners=False"),
        ((3, 4, "bicubic", False, True, 0.1), "offset needs antialias=False and align_corners=False"),
    ],
)
def test_what_cannot_be_resampled_is_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resize_matrix(*arguments)
