"""The losses against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from minivit import functional as F


@pytest.mark.parametrize("total", [0.5, 1.0, 3.0])
def test_soft_targets_need_not_sum_to_1(total: float) -> None:
    """dlogits = (sum(p) softmax - p) / B; softmax - p is right for distributions alone."""
    logits = np.log([[1.0, 2.0, 5.0], [1.0, 1.0, 2.0]])
    softmax = np.array([[0.125, 0.25, 0.625], [0.25, 0.25, 0.5]])
    p = total * np.array([[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]])
    loss, back = F.softmax_cross_entropy(logits, p)
    assert loss == pytest.approx(-(p * np.log(softmax)).sum() / 2, rel=1e-14)
    np.testing.assert_allclose(back(), (total * softmax - p) / 2, rtol=0, atol=1e-15)
