"""The matrices of resizing against rows worked out by hand."""

from __future__ import annotations

import numpy as np

from minivit.functional.resize import resize_matrix


def test_bicubic_kernels_have_the_parameter_of_pytorch() -> None:
    """Halfway between two points Keys' kernel is (4 - a) / 8 at the near two and a / 8 at the far two."""
    plain = resize_matrix(4, 5, antialias=False)[2]
    np.testing.assert_allclose(plain, [-0.09375, 0.59375, 0.59375, -0.09375], rtol=0, atol=1e-15)
    antialiased = resize_matrix(4, 5)[2]
    np.testing.assert_allclose(antialiased, [-0.0625, 0.5625, 0.5625, -0.0625], rtol=0, atol=1e-15)
