"""What the residual block takes from timm's hybrids."""

from __future__ import annotations

import numpy as np
import pytest

from minivit import nn


def test_the_variance_of_a_filter_gets_the_epsilon_of_timm() -> None:
    """1e-8: a filter of (+s, -s) becomes +-s / sqrt(s^2 + 1e-8), so with s = 1e-4 it is 0.7071, not 1."""
    layer = nn.Bottleneck(2, 4, groups=1, dtype="float64", seed=0)
    convolution = layer.conv1  # 1x1
    assert convolution.weight.shape == (1, 2, 1, 1)
    convolution.weight.data = np.array([1e-4, -1e-4]).reshape(1, 2, 1, 1)
    y, _ = convolution(np.array([1.0, 0.0]).reshape(1, 2, 1, 1))
    assert y.item() == pytest.approx(0.5**0.5, rel=1e-12)
    projection = layer.downsample.conv
    projection.weight.data = np.tile([[1e-4, -1e-4]], (4, 1)).reshape(4, 2, 1, 1)
    np.testing.assert_allclose(projection(np.array([0.0, 1.0]).reshape(1, 2, 1, 1))[0], -(0.5**0.5), rtol=1e-12)


@pytest.mark.parametrize(
    ("channels", "stride", "projected"), [((4, 4), 1, False), ((4, 4), 2, True), ((2, 4), 1, True)]
)
def test_a_new_block_is_its_shortcut(channels: tuple[int, int], stride: int, projected: bool) -> None:
    """The last gain is 0; the shortcut is a projection where channels or size change."""
    layer = nn.Bottleneck(*channels, stride, 1, dtype="float64", seed=0)
    assert isinstance(layer.downsample, nn.Identity) != projected
    x = np.random.default_rng(0).standard_normal((2, channels[0], 5, 3))
    y, _ = layer(x)
    assert y.shape == ((2, 4, 3, 2) if stride == 2 else (2, 4, 5, 3))
    np.testing.assert_array_equal(y, np.maximum(layer.downsample(x)[0], 0))


def test_channels_that_groups_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="a quarter of out_channels=12 must be a multiple of groups=2"):
        nn.Bottleneck(4, 12, groups=2)
