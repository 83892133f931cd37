"""Bugs that hand-written convolutions and norms have, planted here: the checks of the table must find each.

Beside them stand the settings that would have hidden them, where there are some.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import pytest
from test_bugs_in_fast_functions import plant
from test_bugs_in_layers import checks

import minivit
from minivit import functional as F, nn
from minivit.fast import dispatch
from minivit.fast.numpy import convolution, pooling
from minivit.functional import sliding
from minivit.functional.convolution import divide_by_deviation
from minivit.gradcheck import GradientError
from minivit.protocol import once


def kernel_not_flipped(patch: Any) -> None:
    """The backward convolution exchanges inputs and outputs, but leaves the kernel as it was."""
    plain = convolution._gradient_by_flipped_filters
    patch.setattr(
        convolution,
        "_gradient_by_flipped_filters",
        lambda dmaps, filters, how, size: plain(dmaps, filters[..., ::-1, ::-1], how, size),
    )


def overlaps_overwritten(patch: Any) -> None:
    """Folding assigns where windows overlap, as is right for patches only."""
    plant(patch, convolution._fold, "+= dtaps", "= dtaps")
    plant(patch, sliding.unfold, "+= dy[..., number, :, :]", "= dy[..., number, :, :]")


def padding_not_cut_off(patch: Any) -> None:
    """The gradient is read from the corner of the padded map; right without padding."""
    corner = "[..., : size[0], : size[1]]"
    plant(patch, convolution._gradient_by_folding, "inner(padded, how, size)", f"padded{corner}")
    plant(patch, sliding.unfold, "inner(dpadded, how, size)", f"dpadded{corner}")


def weight_gradient_of_the_last_part(patch: Any) -> None:
    """The weight's gradient is that of the last block of the map, or of the last image; right where there is one."""
    patch.setattr(convolution, "_MOST_BYTES", 600)
    plant(patch, convolution._filter_gradient, "dmatrices += ", "dmatrices = ")
    plant(patch, F.conv2d.plain, ".sum(axis=0)  # (G, O/G, F)", "[-1]")


def batch_statistics_held_constant(patch: Any) -> None:
    """BatchNorm's backward forgets that x moves the mean and the variance of its batch; right in inference."""

    def by_own(maps: Any, eps: float) -> Any:
        mean = maps.mean(axis=(0, 2), keepdims=True)
        rstd = (((maps - mean) ** 2).mean(axis=(0, 2), keepdims=True) + eps) ** -0.5
        return (maps - mean) * rstd, once(lambda dxhat: (dxhat * rstd, None, None))

    patch.setattr(import_module("minivit.functional.batch_norm"), "_by_own_statistics", by_own)


def standardization_forgotten(patch: Any) -> None:
    """The gradient of the standardized weight is taken for that of the parameter."""
    plain = F.standardize_weight
    patch.setattr(F, "standardize_weight", lambda w, **options: (plain(w, **options)[0], once(lambda dw: dw)))


def deviation_held_constant(patch: Any) -> None:
    """With epsilon outside of the root, the backward forgets that a filter moves its standard deviation."""
    plant(patch, divide_by_deviation, "dy - y * (dy * unit).mean(axis=1, keepdims=True)", "dy")


def deviation_taken_with_epsilon(patch: Any) -> None:
    """With epsilon outside of the root, the slope of the deviation is taken at the deviation plus epsilon."""
    plant(patch, divide_by_deviation, "(dy * unit).mean", "(dy * y).mean")


def pooled_gradient_doubled(patch: Any) -> None:
    """Every tap is folded twice."""
    plant(patch, pooling.max_pool2d, "+= np.where(", "+= 2 * np.where(")
    plant(patch, sliding.unfold, "+= dy[..., number, :, :]", "+= 2 * dy[..., number, :, :]")


def slope_of_relu_forgotten(patch: Any) -> None:
    """What arrives passes also where the output is 0."""
    plain = F.relu
    patch.setattr(F, "relu", lambda x: (plain(x)[0], once(lambda dy: dy)))


def shortcut_forgotten_in_the_backward(patch: Any) -> None:
    """x went both ways, but its gradient comes from the branch alone."""
    patch.setattr(nn.Identity, "forward", lambda layer, x, rng=None: (x, once(lambda dy: 0 * dy)))


@pytest.mark.parametrize(
    ("bug", "name"),
    [
        (kernel_not_flipped, "conv2d_same"),
        (overlaps_overwritten, "conv2d_groups"),
        (overlaps_overwritten, "conv2d_strided"),
        (padding_not_cut_off, "conv2d_strided"),
        (weight_gradient_of_the_last_part, "conv2d"),
        (batch_statistics_held_constant, "batch_norm"),
        (batch_statistics_held_constant, "BatchNorm2d_training"),
        (standardization_forgotten, "StdConv2d"),
        (standardization_forgotten, "StdConv2d_outside"),
        (deviation_held_constant, "standardize_weight_outside"),
        (deviation_taken_with_epsilon, "StdConv2d_outside"),
        (standardization_forgotten, "ViT_hybrid"),
        (padding_not_cut_off, "conv2d_same_strided"),
        (slope_of_relu_forgotten, "Bottleneck_projection"),
        (shortcut_forgotten_in_the_backward, "Bottleneck"),
        (pooled_gradient_doubled, "max_pool2d_same"),
        (pooled_gradient_doubled, "avg_pool2d_inside"),
        (pooled_gradient_doubled, "MaxPool2d"),
    ],
)
def test_a_planted_bug_is_caught(bug: Callable[[Any], None], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    checks(name)  # healthy before
    bug(monkeypatch)
    with pytest.raises(GradientError):
        checks(name)


@pytest.mark.parametrize(
    ("bug", "name"),
    [
        (overlaps_overwritten, "conv2d_groups"),
        (padding_not_cut_off, "conv2d_same_strided"),
        (weight_gradient_of_the_last_part, "conv2d"),
        (batch_statistics_held_constant, "batch_norm"),
        (pooled_gradient_doubled, "max_pool2d_same"),
    ],
)
def test_a_planted_bug_is_caught_where_formulas_run(
    bug: Callable[[Any], None], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a formula and its fast function do apart; all else above is the same code for both."""
    with minivit.plain():
        checks(name)  # healthy before
        bug(monkeypatch)
        with pytest.raises(GradientError):
            checks(name)


@pytest.mark.parametrize(
    ("bug", "shape", "weight", "options"),
    [
        (kernel_not_flipped, (2, 4, 5, 5), (3, 4, 1, 1), {}),  # a kernel of 1x1 cannot be flipped
        (overlaps_overwritten, (2, 3, 6, 6), (4, 3, 2, 2), {"stride": 2}),  # patches do not overlap
        (padding_not_cut_off, (2, 3, 6, 6), (4, 3, 3, 3), {"stride": 2}),
        (weight_gradient_of_the_last_part, (1, 1, 3, 3), (2, 1, 2, 2), {}),  # one block
    ],
)
def test_a_setting_that_hides_it(
    bug: Any, shape: Any, weight: Any, options: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    bug(monkeypatch)
    x, w = rng.standard_normal(shape), rng.standard_normal(weight)
    for mode in dispatch.MODES:
        with dispatch.use(mode):
            minivit.check_vjp(lambda x, w: F.conv2d(x, w, **options), x, w)


def test_statistics_written_by_the_forward_pass_are_caught_by_recomputation() -> None:
    """What PyTorch's habit would do here: a running mean that moves in every forward pass moves twice."""

    class Careless(nn.BatchNorm2d):
        def forward(self, x: Any, rng: Any = None) -> Any:
            if rng is not None:
                self.running_mean.data += 0.1 * (x.mean(axis=(0, 2, 3)) - self.running_mean.data)
            return super().forward(x, rng)

    x = 1 + np.random.default_rng(1).standard_normal((2, 3, 4, 4))
    layers = [kind(3, dtype="float64") for kind in (nn.BatchNorm2d, Careless)]
    for layer in layers:
        nn.Recompute(layer)(x, np.random.default_rng(0))[1](x)
    nn.update_statistics(layers[0])
    wanted = 0.1 * x.mean(axis=(0, 2, 3))
    np.testing.assert_allclose(layers[0].running_mean.data, wanted, rtol=1e-12)
    assert not np.allclose(layers[1].running_mean.data, wanted, rtol=1e-2)


def test_windows_that_step_wrongly_are_caught_by_the_loop_and_not_by_the_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A wrong but linear forward pass has a right derivative: only the naive loop, or PyTorch, can see it."""
    plain = sliding.Slide

    def swapped(kernel: Any, stride: Any, *others: Any) -> Any:
        return plain(kernel, stride[::-1], *others)

    monkeypatch.setattr(sliding, "Slide", swapped)
    rng = np.random.default_rng(2)
    x, w = rng.standard_normal((2, 3, 9, 9)), rng.standard_normal((2, 3, 3, 3))
    minivit.check_vjp(lambda x, w: F.conv2d(x, w, stride=(2, 3)), x, w)
    assert F.conv2d(x, w, stride=(2, 3))[0].shape != (2, 2, 4, 3)
