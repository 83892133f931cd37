"""Mistakes that are easily made in Swin's backward passes, planted here: the gradient checks must catch each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from table import MODELS
from test_bugs_in_fast_functions import plant
from test_bugs_in_layers import CASES, checks

import minivit
import minivit.models.embedding
from minivit import functional as F, models
from minivit.fast.numpy import linear as fast_linear, norm as fast_norm
from minivit.functional import windows as moves  # the formula of a block calls them
from minivit.functional.attention import sum_to
from minivit.functional.linear import scatter_add
from minivit.gradcheck import GradientError
from minivit.protocol import once

# --- the bugs: each takes monkeypatch and plants itself -------------------------------------------------------------


def roll_not_undone(patch: Any) -> None:
    """The gradient of the cyclic shift is passed on where it stands."""
    plain = moves.roll
    for module in (F, moves):
        patch.setattr(module, "roll", lambda x, shift, axis=(1, 2): (plain(x, shift, axis)[0], once(lambda dy: dy)))


def roll_repeated(patch: Any) -> None:
    """The gradient of the cyclic shift is shifted once more in the same direction."""
    plain = moves.roll
    patch.setattr(
        moves,
        "roll",
        lambda x, shift, axis=(1, 2): (plain(x, shift, axis)[0], once(lambda dy: plain(dy, shift, axis)[0])),
    )


def columns_of_windows_first(windows: Any, size: Any, height: int, width: int) -> Any:
    mh, mw = (size, size) if isinstance(size, int) else size
    cut = windows.reshape(-1, width // mw, height // mh, mh, mw, windows.shape[-1])
    return cut.transpose(0, 2, 3, 1, 4, 5).reshape(-1, height, width, windows.shape[-1])


def windows_joined_in_another_order(patch: Any) -> None:
    """window_reverse lays the windows column by column; its backward cuts them row by row."""
    plain = moves.window_reverse
    patch.setattr(
        moves,
        "window_reverse",
        lambda y, size, h, w: (columns_of_windows_first(y, size, h, w), plain(y, size, h, w)[1]),
    )


def padding_keeps_its_gradient(patch: Any) -> None:
    """The crop's backward fills what it had cut off with ones instead of zeros."""
    plain = moves.crop

    def crop(x: Any, size: Any, axis: Any = (1, 2)) -> Any:
        y, vjp = plain(x, size, axis)
        cut_off = 1 - vjp(np.ones_like(y))
        return y, once(lambda dy: plain(x, size, axis)[1](dy) + cut_off)

    patch.setattr(moves, "crop", crop)


def merging_split_right_before_down(patch: Any) -> None:
    """The backward of patch merging takes the four vectors in a convolution's order."""
    plain = F.patch_merging

    def patch_merging(x: Any) -> Any:
        y, vjp = plain(x)
        return y, once(lambda dy: vjp(right_before_down(dy)))

    patch.setattr(F, "patch_merging", patch_merging)


def right_before_down(y: Any) -> Any:
    first, second, third, fourth = np.split(y, 4, axis=-1)
    return np.concatenate((first, third, second, fourth), axis=-1)


def bias_gradient_of_one_window(patch: Any) -> None:
    """The bias was broadcast over the windows, and its gradient is read off the first instead of summed."""

    def first_of_all(array: Any, shape: Any) -> Any:
        return array[(0,) * (array.ndim - len(shape))]

    patch.setattr(sum_to, "__code__", first_of_all.__code__)


def bias_gradient_averaged(patch: Any) -> None:
    """The bias gradient is the mean over the windows instead of the sum."""

    def mean(array: Any, shape: Any) -> Any:
        return array.mean(axis=tuple(range(array.ndim - len(shape)))).reshape(shape)

    patch.setattr(sum_to, "__code__", mean.__code__)


def bias_gradient_assigned(patch: Any) -> None:
    """`table_gradient[index] += rows` keeps one of the pairs that share an offset, and loses the others."""

    def scatter(index: Any, values: Any, count: int) -> Any:
        out = 0 * values[:1].repeat(count, axis=0)
        out[index] += values
        return out

    for function in (scatter_add, fast_linear.scatter_add):
        patch.setattr(function, "__code__", scatter.__code__)


def mask_missing_in_the_backward(patch: Any) -> None:
    """The backward pass is that of attention without the mask."""
    plain, plain_self = F.scaled_dot_product_attention, F.self_attention

    def attention(q: Any, k: Any, v: Any, mask: Any = None, bias: Any = None, **options: Any) -> Any:
        y, _ = plain(q, k, v, mask, bias, **options)
        return y, plain(q, k, v, None, bias, **options)[1]

    def self_attention(qkv: Any, heads: int, mask: Any = None, bias: Any = None, **options: Any) -> Any:
        y, _ = plain_self(qkv, heads, mask, bias, **options)
        return y, plain_self(qkv, heads, None, bias, **options)[1]

    patch.setattr(F, "scaled_dot_product_attention", attention)
    patch.setattr(F, "self_attention", self_attention)


def normalize_without_projection(patch: Any) -> None:
    """x / |x| is differentiated as if |x| were a constant."""
    for normalize in (F.normalize.plain, fast_norm.normalize):
        plant(patch, normalize, "(dy - y * along) / length", "dy / length")


def logit_scale_without_its_exponential(patch: Any) -> None:
    """The gradient is that of the factor, not of its logarithm."""
    plain = F.cosine_attention

    def attention(q: Any, k: Any, v: Any, logit_scale: Any, *more: Any, **options: Any) -> Any:
        y, vjp = plain(q, k, v, logit_scale, *more, **options)

        @once
        def buggy(dy: Any) -> Any:
            dq, dk, dv, dlogit_scale, dbias = vjp(dy)
            return dq, dk, dv, dlogit_scale / np.exp(logit_scale), dbias

        return y, buggy

    patch.setattr(F, "cosine_attention", attention)


def key_bias_trained(patch: Any) -> None:
    """Version 2's fused bias is q's, zeros and v's; v's gradient is read off the zeros' place."""
    plain = F.linear

    def linear(x: Any, weight: Any, bias: Any = None) -> Any:
        y, vjp = plain(x, weight, bias)

        @once
        def buggy(dy: Any) -> Any:
            dx, dweight, dbias = vjp(dy)
            if dbias is not None and len(dbias) == 3 * x.shape[-1]:
                q, k, _ = np.split(dbias, 3)
                dbias = np.concatenate((q, k, k))
            return dx, dweight, dbias

        return y, buggy

    patch.setattr(F, "linear", linear)


def factor_16_forgotten(patch: Any) -> None:
    """The continuous bias' table is differentiated without the factor 16."""
    plain = F.continuous_position_table

    def table(*args: Any) -> Any:
        y, vjp = plain(*args)
        return y, once(lambda dy: vjp(dy / 16))

    patch.setattr(F, "continuous_position_table", table)


def map_positions_of_the_first_image(patch: Any) -> None:
    """The positions' table was added to every image, and its gradient is the first one's."""
    plain = models.embedding.add_positions

    def add_positions(tokens: Any, positions: Any, grid: Any) -> Any:
        y, _ = plain(tokens, positions, grid)
        _, back_table = positions.table(grid)
        return y, once(lambda dy: back_table(dy[0]) or dy)

    patch.setattr(models.embedding, "add_positions", add_positions)


def quick(name: str) -> None:
    """Both checks on one line of the table, for a whole model only the one along a random direction."""
    if CASES[name] in MODELS:
        (x,) = CASES[name].arguments(seed=2)
        minivit.check_vjp(CASES[name].build(x), x)
    else:
        checks(name)


CAUGHT_BY_THE_TABLE = [
    (roll_not_undone, "roll"),
    (roll_not_undone, "ShiftedWindows"),
    (roll_repeated, "ShiftedWindows"),
    (roll_not_undone, "SwinV2"),
    (windows_joined_in_another_order, "ShiftedWindows"),
    (padding_keeps_its_gradient, "ShiftedWindows"),
    (padding_keeps_its_gradient, "Swin"),
    (merging_split_right_before_down, "PatchMerging"),
    (merging_split_right_before_down, "PatchMerging_post_norm"),
    (bias_gradient_of_one_window, "attention_biased"),
    (bias_gradient_of_one_window, "ShiftedWindows"),
    (bias_gradient_averaged, "WindowAttention"),
    (bias_gradient_assigned, "relative_position_bias"),
    (bias_gradient_assigned, "CosineWindowAttention"),
    (bias_gradient_assigned, "Swin"),
    (mask_missing_in_the_backward, "attention_masked"),
    (mask_missing_in_the_backward, "ShiftedWindows"),
    (mask_missing_in_the_backward, "ShiftedWindows_padding_masked"),
    (normalize_without_projection, "cosine_attention"),
    (normalize_without_projection, "SwinV2"),
    (logit_scale_without_its_exponential, "CosineWindowAttention"),
    (key_bias_trained, "CosineWindowAttention"),
    (factor_16_forgotten, "CosineWindowAttention_no_bias"),
    (map_positions_of_the_first_image, "Swin_absolute_positions"),
]


@pytest.mark.parametrize(("bug", "name"), CAUGHT_BY_THE_TABLE)
def test_a_planted_bug_is_caught_by_the_gradient_checks(
    bug: Callable[[Any], None], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(name)  # healthy before
    bug(monkeypatch)
    with pytest.raises(GradientError):
        quick(name)


@pytest.mark.parametrize(
    ("bug", "name"),
    [
        (bias_gradient_of_one_window, "attention_biased"),
        (bias_gradient_of_one_window, "ShiftedWindows"),
        (bias_gradient_averaged, "WindowAttention"),
        (bias_gradient_assigned, "relative_position_bias"),
        (bias_gradient_assigned, "CosineWindowAttention"),
        (mask_missing_in_the_backward, "attention_masked"),
        (normalize_without_projection, "cosine_attention"),
    ],
)
def test_a_planted_bug_is_caught_where_formulas_run(
    bug: Callable[[Any], None], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a formula and its fast function do apart; all else above is the same code for both."""
    with minivit.plain():
        quick(name)  # healthy before
        bug(monkeypatch)
        with pytest.raises(GradientError):
            quick(name)
