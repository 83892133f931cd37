"""Mistakes in Swin made in both directions: the gradient is right, for a wrong function, and no gradient check sees it.

Each is planted here, and the test that is named beside it, a comparison with something known, must fail.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import test_swin_maps
import test_swin_options
import test_window_attention
import test_window_masks
import test_windows
from test_bugs_in_swin import columns_of_windows_first, quick, right_before_down

from minivit import functional as F, nn
from minivit.fast.numpy import REPLACEMENTS
from minivit.functional import windows as moves  # the formula of a block calls them
from minivit.models import Swin, SwinV2
from minivit.nn import window_attention
from minivit.protocol import once, permutation


def windows_joined_wrongly_both_ways(patch: Any) -> None:
    """window_reverse lays the windows column by column, and its backward cuts them so."""

    def both(y: Any, size: Any, h: int, w: int) -> Any:
        mh, mw = size

        def undo(dy: Any) -> Any:
            cut = dy.reshape(-1, h // mh, mh, w // mw, mw, dy.shape[-1]).transpose(0, 3, 1, 2, 4, 5)
            return cut.reshape(y.shape)

        return columns_of_windows_first(y, size, h, w), once(undo)

    patch.setattr(moves, "window_reverse", both)


def merging_right_before_down(patch: Any) -> None:
    """Patch merging in a convolution's order, forward and backward: published weights would not fit."""
    plain = F.patch_merging

    def patch_merging(x: Any) -> Any:
        y, vjp = plain(x)
        return right_before_down(y), once(lambda dy: vjp(right_before_down(dy)))

    patch.setattr(F, "patch_merging", patch_merging)


def no_mask(patch: Any) -> None:
    """After the shift, pixels from opposite ends of the map attend to each other."""
    patch.setattr(F, "shift_mask", lambda *_: None)


def shift_the_other_way(patch: Any) -> None:
    """The map is rolled right and down, while the mask expects the seam at the end."""
    plain = moves.roll
    patch.setattr(moves, "roll", lambda x, shift, axis=(1, 2): plain(x, (-shift[0], -shift[1]), axis))


def no_shift(patch: Any) -> None:
    """Windows never meet."""
    patch.setattr(moves, "roll", lambda x, shift, axis=(1, 2): permutation(x, lambda a: a, lambda a: a))
    patch.setattr(F, "shift_mask", lambda *_: None)


def shift_within_one_window(patch: Any) -> None:
    """A map that one window covers is rolled and masked all the same."""
    plain = window_attention._fit

    def fit(length: int, window: int, shift: int, covered: str) -> Any:
        found = plain(length, window, shift, covered)
        return found[0], min(shift, found[0] - 1), found[2]

    patch.setattr(window_attention, "_fit", fit)


def offsets_transposed(patch: Any) -> None:
    """The index counts dx in rows of Mh instead of dy in rows of Mw."""
    plain = F.relative_position_index

    def index(window: Any, table: Any = None) -> Any:
        side, other = window
        order = np.arange(side * other).reshape(other, side).T.ravel()
        return plain((other, side), None if table is None else table[::-1])[order][:, order]

    patch.setattr(F, "relative_position_index", index)


def offsets_negated(patch: Any) -> None:
    """The bias of (query, key) is looked up for (key, query)."""
    plain = F.relative_position_index
    patch.setattr(F, "relative_position_index", lambda window, table=None: plain(window, table).T)


def factor_without_a_limit(patch: Any) -> None:
    """The learned factor of cosine attention grows beyond 100."""
    for attention in (F.cosine_attention.plain, REPLACEMENTS["cosine_attention"].function):
        patch.setitem(attention.__globals__, "MAX_LOGIT_SCALE", 1e9)


def limit_ignored_in_the_backward(patch: Any) -> None:
    """Above the limit the factor's gradient goes on, as if it still had an effect."""
    plain = F.cosine_attention

    def attention(q: Any, k: Any, v: Any, logit_scale: Any, *more: Any, **options: Any) -> Any:
        just_below = np.where(logit_scale < np.log(100), logit_scale, np.log(100) - 1e-15)
        return plain(q, k, v, just_below, *more, **options)

    patch.setattr(F, "cosine_attention", attention)


def drop_path_of_windows(patch: Any) -> None:
    """Stochastic depth drawn within the attention, where the first axis is the windows of all images."""
    plain = window_attention.WindowAttention.forward

    def forward(self: Any, x: Any, rng: Any = None, mask: Any = None) -> Any:
        y, back = plain(self, x, rng, mask)
        y, back_drop = F.drop_path(y, 0.5, rng)
        return y, once(lambda dy: back(back_drop(dy)))

    patch.setattr(window_attention.WindowAttention, "forward", forward)


def norm_before_the_branch(patch: Any) -> None:
    """Version 2 with version 1's order in its blocks: the parameters' names and shapes are the same."""
    plain = nn.Block._branch

    def branch(self: Any, norm: Any, layer: Any, x: Any, rng: Any) -> Any:
        self.post_norm = False
        return plain(self, norm, layer, x, rng)

    patch.setattr(nn.Block, "_branch", branch)


def mask_of_images_in_turn(patch: Any) -> None:
    """Windows split as (nW, B) instead of (B, nW): the images' windows get each other's masks."""
    plain = window_attention.WindowAttention.forward

    def forward(self: Any, x: Any, rng: Any = None, mask: Any = None) -> Any:
        if mask is None:
            return plain(self, x, rng, mask)
        order = np.arange(len(x)).reshape(len(mask), -1).T.ravel()
        undo = np.argsort(order)
        y, back = plain(self, x[order], rng, mask)
        return y[undo], once(lambda dy: back(dy[order])[undo])

    patch.setattr(window_attention.WindowAttention, "forward", forward)


def padded_in_front(patch: Any) -> None:
    """Maps are padded in front instead of behind."""
    plain, plain_crop = F.pad, moves.crop

    def mirrored(f: Any) -> Any:
        def both(x: Any, size: Any, axis: Any = (1, 2)) -> Any:
            y, vjp = f(np.flip(x, axis), size, axis)
            return np.flip(y, axis), once(lambda dy: np.flip(vjp(np.flip(dy, axis)), axis))

        return both

    patch.setattr(moves, "pad", mirrored(plain))
    patch.setattr(moves, "crop", mirrored(plain_crop))


LOOPS = test_window_attention.test_shifted_windows_equal_loops_over_pairs_of_positions
V1, V2 = nn.WindowAttention, nn.CosineWindowAttention
# the bug, the test that catches it, and the test's arguments
CAUGHT_BY_NAME: list[Any] = [
    (windows_joined_wrongly_both_ways, LOOPS, (V1, False, False, (4, 6), (2, 3), (0, 0))),
    (merging_right_before_down, test_windows.test_merging_an_odd_map_pads_it_at_the_right_and_bottom, ()),
    (no_mask, LOOPS, (V2, False, True, (4, 6), (2, 3), (1, 1))),
    (no_mask, test_window_attention.test_masked_shifted_windows_are_attention_within_each_region_by_itself, (V1, -100)),
    (shift_the_other_way, LOOPS, (V1, False, False, (4, 6), (2, 3), (1, 1))),
    (no_shift, LOOPS, (V1, False, False, (4, 6), (2, 3), (1, 1))),
    (shift_within_one_window, LOOPS, (V1, False, False, (2, 1), (3, 3), (1, 1))),
    (shift_within_one_window, test_window_masks.test_a_map_within_one_window_is_not_shifted, ()),
    (offsets_transposed, test_windows.test_the_index_of_small_windows, ()),
    (offsets_transposed, LOOPS, (V1, False, False, (4, 6), (2, 3), (0, 0))),
    (offsets_negated, test_windows.test_the_index_of_small_windows, ()),
    (offsets_negated, LOOPS, (V2, False, False, (4, 6), (2, 3), (0, 0))),
    (factor_without_a_limit, test_window_attention.test_cosine_attention_equals_its_loop, ()),
    (
        limit_ignored_in_the_backward,
        test_window_attention.test_above_log_100_the_factor_has_no_effect_and_no_gradient,
        (),
    ),
    (drop_path_of_windows, test_window_attention.test_drop_path_drops_the_branch_of_a_whole_image, ()),
    (norm_before_the_branch, test_swin_maps.test_norms_stand_before_the_branches_or_behind, (SwinV2,)),
    (mask_of_images_in_turn, LOOPS, (V1, False, False, (4, 6), (2, 3), (1, 1))),
    (mask_of_images_in_turn, test_swin_options.test_golden_losses, (Swin,)),
    (padded_in_front, LOOPS, (V1, False, False, (5, 7), (3, 3), (1, 1))),
]


@pytest.mark.parametrize(("bug", "test", "arguments"), CAUGHT_BY_NAME)
def test_a_planted_bug_is_caught_by_a_named_test(
    bug: Callable[[Any], None], test: Any, arguments: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    test(*arguments)  # healthy before
    bug(monkeypatch)
    with pytest.raises(AssertionError):
        test(*arguments)


@pytest.mark.parametrize(
    ("bug", "name"),
    [
        (windows_joined_wrongly_both_ways, "ShiftedWindows"),
        (merging_right_before_down, "PatchMerging"),
        (no_mask, "Swin"),
        (shift_the_other_way, "Swin"),
        (offsets_negated, "WindowAttention"),
        (norm_before_the_branch, "SwinV2"),
        (padded_in_front, "Swin"),
    ],
)
def test_what_the_named_tests_catch_passes_the_gradient_checks(
    bug: Callable[[Any], None], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the named tests are needed: these backward passes are right, for a wrong function."""
    bug(monkeypatch)
    quick(name)
