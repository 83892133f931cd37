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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, 4, "nearest"), "mode='nearest': choose 'bicubic' or 'bilinear'"),
        ((0, 4), "cannot resample 0 points to 4"),
        ((3, 0), "cannot resample 3 points to 0"),
        ((3, 4, "bicubic", True, True), "align_corners=True needs antialias=False"),
    ],
)
def test_what_cannot_be_resampled_is_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resize_matrix(*arguments)
