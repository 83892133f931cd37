"""Attention in shifted windows against loops over pairs of pixels, and where it equals another known function."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

import minivit
from minivit import functional as F, nn
from minivit.functional import windows as moves  # the formula of a block calls them
from minivit.protocol import once
from minivit.strategies import arrays

INF = math.inf


def perturbed(layer: Any, spread: float = 0.4, seed: int = 3) -> Any:
    """The layer with weights large enough for every part to matter."""
    rng = np.random.default_rng(seed)
    for param in layer.parameters().values():
        param.data = param.data + spread * rng.standard_normal(param.shape)
    return layer


def shifted(window: Any, shift: Any, kind: Any = nn.WindowAttention, hide: bool = False, **options: Any) -> Any:
    """A layer of 4 channels and 2 heads on maps."""
    if kind is nn.CosineWindowAttention:
        options = {"cpb_hidden": 5, **options}
    attention = kind(4, 2, window, dtype="float64", seed=1, **options)
    return perturbed(nn.ShiftedWindows(attention, window, shift, mask_padding=hide))


def maps(batch: int, height: int, width: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((batch, height, width, 4))


# --- against loops --------------------------------------------------------------------------------------------------


def dot(a: Any, b: Any) -> float:
    return sum(float(x) * float(y) for x, y in zip(a, b))


def naive_softmax(scores: Any) -> Any:
    top = max(scores)
    weights = [math.exp(score - top) for score in scores]
    return [weight / sum(weights) for weight in weights]


def cosine(a: Any, b: Any) -> float:
    """A padded place has a key of zeros, and with it the cosine 0."""
    return dot(a, b) / max(math.sqrt(dot(a, a)) * math.sqrt(dot(b, b)), 1e-24)


def naive_cosine_attention(q: Any, k: Any, v: Any, logit_scale: float, bias: Any) -> Any:
    """q (N, d), k (M, d), v (M, d), bias (N, M) -> (N, d), one pair at a time."""
    y = np.zeros_like(q)
    for i in range(len(q)):
        scores = [cosine(q[i], k[j]) * min(math.exp(logit_scale), 100) + bias[i, j] for j in range(len(k))]
        for j, weight in enumerate(naive_softmax(scores)):
            y[i] += weight * v[j]
    return y


@settings(max_examples=50)
@given(arrays("BHNd BHMd BHMd Hii HNM", i=1, d=3))
def test_cosine_attention_equals_its_loop(args: Any) -> None:
    q, k, v, logit_scale, bias = args
    logit_scale = 3 * logit_scale  # sometimes above log 100
    y, _ = F.cosine_attention(q, k, v, logit_scale, None, bias)
    for b, h in np.ndindex(*q.shape[:2]):
        expected = naive_cosine_attention(q[b, h], k[b, h], v[b, h], float(logit_scale[h, 0, 0]), bias[h])
        np.testing.assert_allclose(y[b, h], expected, rtol=1e-10, atol=1e-12)


def naive_bias(layer: Any, offset: Any, trained: Any = None) -> Any:
    """The bias of each head for one offset (dy, dx) between query and key."""
    state, (mh, mw) = layer.state_dict(), layer.window_size
    if "relative_position_bias_table" in state:
        return state["relative_position_bias_table"][(offset[0] + mh - 1) * (2 * mw - 1) + offset[1] + mw - 1]
    log_offset = [
        math.copysign(math.log2(abs(8 * o / (side - 1)) + 1) / math.log2(8), o)
        for o, side in zip(offset, trained or (mh, mw))
    ]
    hidden = [
        max(dot(row, log_offset) + float(b), 0) for row, b in zip(state["cpb_mlp.0.weight"], state["cpb_mlp.0.bias"])
    ]
    return [16 / (1 + math.exp(-dot(row, hidden))) for row in state["cpb_mlp.2.weight"]]


def naive_shifted_windows(layer: Any, x: Any, trained: Any = None) -> Any:
    """Every query of a map against every key of its shifted window, in the coordinates of the map itself.

    Nothing is rolled, cut or masked here: the windows are where (y - shift) // window is the same.
    """
    (height, width), state, heads = x.shape[1:3], layer.state_dict(), layer.attention.num_heads
    window, shift, size = [], [], []
    for length, made, by in zip((height, width), layer.window_size, layer.shift_size):
        covered = length <= made
        window.append(length if covered else made)
        shift.append(0 if covered else by)
        size.append(length if covered else math.ceil(length / made) * made)
    padded = np.zeros((len(x), *size, x.shape[3]))
    padded[:, :height, :width] = x
    if "q_bias" in state:
        qkv_bias = np.concatenate((state["q_bias"], 0 * state["q_bias"], state["v_bias"]))
    else:
        qkv_bias = state.get("qkv.bias", 0)
    q, k, v = np.split(padded @ state["qkv.weight"].T + qkv_bias, 3, axis=-1)
    part = x.shape[3] // heads
    spots = [(row, column) for row in range(size[0]) for column in range(size[1])]
    seen = np.zeros_like(x)
    for b, row, column in np.ndindex(len(x), height, width):
        mine = [(place - by) // side for place, by, side in zip((row, column), shift, window)]
        keys = [
            spot
            for spot in spots
            if [(place - by) // side for place, by, side in zip(spot, shift, window)] == mine
            and not (layer.mask_padding and (spot[0] >= height or spot[1] >= width))
        ]
        biases = [naive_bias(layer, (row - spot[0], column - spot[1]), trained) for spot in keys]
        for h in range(heads):
            own = slice(h * part, (h + 1) * part)
            scores = []
            for spot, bias in zip(keys, biases):
                pair = q[b, row, column, own], k[(b, *spot)][own]
                if "logit_scale" in state:
                    score = cosine(*pair) * min(math.exp(state["logit_scale"][h, 0, 0]), 100)
                else:
                    score = dot(*pair) / math.sqrt(part)
                scores.append(score + bias[h])
            for spot, weight in zip(keys, naive_softmax(scores)):
                seen[b, row, column, own] += weight * v[(b, *spot)][own]
    return seen @ state["proj.weight"].T + state["proj.bias"]


@pytest.mark.parametrize("kind", [nn.WindowAttention, nn.CosineWindowAttention])
@pytest.mark.parametrize("hide", [False, True])
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    ("size", "window", "shift"),
    [
        ((4, 6), (2, 3), (0, 0)),
        ((4, 6), (2, 3), (1, 1)),
        ((6, 4), (3, 2), (2, 1)),
        ((5, 4), (2, 2), (1, 1)),  # a padded row
        ((5, 7), (3, 3), (1, 1)),  # padded on both axes
        ((4, 3), (3, 2), (0, 0)),
        ((2, 5), (3, 2), (1, 1)),  # covered on one axis, shifted and padded on the other
        ((2, 1), (3, 3), (1, 1)),  # covered on both
    ],
)
def test_shifted_windows_equal_loops_over_pairs_of_positions(
    kind: Any, hide: bool, strict: bool, size: Any, window: Any, shift: Any
) -> None:
    layer = shifted(window, shift, kind, hide, mask_value=-INF if strict else -100.0)
    x = maps(2, *size)
    np.testing.assert_allclose(layer(x)[0], naive_shifted_windows(layer, x), rtol=1e-9, atol=1e-12)


def test_a_pretrained_window_and_missing_biases_equal_the_loops() -> None:
    x = maps(2, 4, 5)
    layer = shifted((2, 3), (1, 1), nn.CosineWindowAttention, pretrained_window=(5, 4), qkv_bias=False)
    np.testing.assert_allclose(layer(x)[0], naive_shifted_windows(layer, x, (5, 4)), rtol=1e-9, atol=1e-12)
    layer = shifted((2, 3), (1, 1), qkv_bias=False)
    np.testing.assert_allclose(layer(x)[0], naive_shifted_windows(layer, x), rtol=1e-9, atol=1e-12)


# --- special cases that are something else --------------------------------------------------------------------------


def both_ways(layer: Any, x: Any, dy: Any) -> Any:
    """The output, the input's gradient and the parameters' gradients by name."""
    for param in layer.parameters().values():
        param.grad = None
    y, back = layer(x)
    dx = back(dy.reshape(y.shape))
    return {"y": y, "dx": dx, **{name: param.grad for name, param in layer.parameters().items()}}


def test_a_window_that_covers_the_map_is_global_attention_with_a_bias() -> None:
    windows = shifted((2, 3), (1, 1))
    plain = nn.Attention(4, 2, position_bias=(2, 3), dtype="float64", seed=0)
    plain.load_state_dict(windows.state_dict())
    x, dy = maps(3, 2, 3), maps(3, 2, 3, seed=1)
    found, expected = both_ways(windows, x, dy), both_ways(plain, x.reshape(3, 6, 4), dy)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        np.testing.assert_allclose(value.reshape(expected[name].shape), expected[name], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("kind", [nn.WindowAttention, nn.CosineWindowAttention])
@pytest.mark.parametrize("value", [-100.0, -INF])
def test_masked_shifted_windows_are_attention_within_each_region_by_itself(kind: Any, value: float) -> None:
    layer = shifted((4, 4), (2, 2), kind, mask_value=value)
    x = maps(2, 8, 12)
    y, _ = layer(x)
    bands = [[(0, 2), (2, 6), (6, 8)], [(0, 2), (2, 6), (6, 10), (10, 12)]]
    for top, bottom in bands[0]:
        for left, right in bands[1]:
            alone, _ = layer.attention(x[:, top:bottom, left:right].copy())
            np.testing.assert_allclose(y[:, top:bottom, left:right], alone, rtol=1e-11, atol=1e-13)


def test_the_shift_and_the_mask_have_an_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    x = maps(2, 4, 4)
    plain, moved = shifted((2, 2), (0, 0)), shifted((2, 2), (1, 1))
    first, second = plain(x)[0], moved(x)[0]
    assert np.abs(first - second).max() > 1e-3
    monkeypatch.setattr(F, "shift_mask", lambda *_: None)
    unmasked = moved(x)[0]
    assert np.array_equal(plain(x)[0], first)
    np.testing.assert_allclose(unmasked[:, 1:3, 1:3], second[:, 1:3, 1:3], rtol=1e-12)  # no seam in the middle
    assert np.abs(unmasked - second)[:, 0].max() > 1e-3


@pytest.mark.parametrize("hide", [True, False])
def test_padded_positions_are_attended_to_unless_they_are_masked(hide: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = shifted((3, 3), (1, 1), hide=hide, mask_value=-INF), maps(2, 5, 8)
    clean = layer(x)[0]
    zeros = moves.pad

    def garbage(a: Any, size: Any, axis: Any = (1, 2)) -> Any:
        y, vjp = zeros(a, size, axis)
        y[:, a.shape[1] :], y[:, :, a.shape[2] :] = 7.0, -9.0
        return y, vjp

    monkeypatch.setattr(moves, "pad", garbage)
    dirty = layer(x)[0]
    if hide:
        np.testing.assert_allclose(dirty, clean, rtol=1e-12, atol=1e-14)
    else:
        assert np.abs(clean - dirty).max() > 1e-2


# --- the value of the mask, and the factor's limit ------------------------------------------------------------------


@pytest.mark.parametrize("kind", [nn.WindowAttention, nn.CosineWindowAttention])
def test_minus_100_is_as_good_as_minus_infinity_at_normal_scores(kind: Any) -> None:
    x, dy = maps(2, 5, 4), maps(2, 5, 4, seed=1)
    found, expected = (both_ways(shifted((2, 2), (1, 1), kind, mask_value=value), x, dy) for value in (-100.0, -INF))
    for name, value in found.items():
        np.testing.assert_allclose(value, expected[name], rtol=0, atol=1e-12, err_msg=name)


def opposed(logit_scale: float, mask_value: float) -> Any:
    """What two tokens see that may look only at themselves, each the opposite of its own key and like the other's."""
    layer = nn.CosineWindowAttention(2, 1, (1, 2), False, cpb_hidden=3, mask_value=mask_value, dtype="float64", seed=0)
    eye = np.eye(2)
    layer.qkv.weight.data = np.concatenate((eye, -eye, eye))
    layer.proj.weight.data = eye
    layer.logit_scale.data = np.full((1, 1, 1), logit_scale)
    x = np.array([[[[1.0, 0.0], [-1.0, 0.0]]]])
    return layer(x, mask=np.eye(2, dtype=bool)[None])[0], x


def test_minus_100_leaks_between_cosines_and_minus_infinity_does_not() -> None:
    """With a factor s the forbidden score is up to 2s + 16 higher than the allowed one: too much for -100."""
    for logit_scale in (math.log(10), math.log(40)):
        y, x = opposed(logit_scale, -100.0)
        np.testing.assert_allclose(y, x, rtol=0, atol=1e-3)
    y, x = opposed(math.log(60), -100.0)
    np.testing.assert_allclose(y, -x, rtol=0, atol=1e-3)  # each token has taken the forbidden one's value
    y, x = opposed(math.log(60), -INF)
    assert np.array_equal(y, x)


def test_above_log_100_the_factor_has_no_effect_and_no_gradient() -> None:
    rng = np.random.default_rng(0)
    q, k, v, dy = (rng.standard_normal((2, 3, 4, 5)) for _ in range(4))
    logit_scale = np.array([4.0, 4.7, 9.0]).reshape(3, 1, 1)  # log 100 is 4.6
    y, vjp = F.cosine_attention(q, k, v, logit_scale)
    assert np.array_equal(F.cosine_attention(q, k, v, logit_scale + [[[0]], [[3]], [[800]]])[0], y)
    assert not np.allclose(F.cosine_attention(q, k, v, logit_scale + [[[0.1]], [[0]], [[0]]])[0][:, 0], y[:, 0])
    dlogit_scale = vjp(dy)[3]
    assert dlogit_scale.shape == (3, 1, 1) and dlogit_scale[0, 0, 0] != 0 and not dlogit_scale[1:].any()
    minivit.check_vjp(lambda *args: F.cosine_attention(*args), q, k, v, logit_scale)
    minivit.check_complex_step(lambda *args: F.cosine_attention(*args), q, k, v, logit_scale)


def test_the_length_of_queries_and_keys_has_no_effect() -> None:
    rng = np.random.default_rng(0)
    q, k, v, dy = (rng.standard_normal((2, 3, 4, 5)) for _ in range(4))
    y, vjp = F.cosine_attention(q, k, v, np.ones((3, 1, 1)))
    longer, vjp_longer = F.cosine_attention(1e3 * q, 1e-3 * k, v, np.ones((3, 1, 1)))
    np.testing.assert_allclose(longer, y, rtol=1e-11)
    dq, dk, *_ = vjp(dy)
    np.testing.assert_allclose(vjp_longer(dy)[0], 1e-3 * dq, rtol=1e-9, atol=1e-15)
    for grad, vector in ((dq, q), (dk, k)):  # no step along the vector itself
        np.testing.assert_allclose((grad * vector).sum(axis=-1), 0, atol=1e-12)


# --- windows that cover a map ---------------------------------------------------------------------------------------


def test_shrink_both_takes_the_shorter_side_of_the_map_for_each_side_of_the_window() -> None:
    layer = nn.ShiftedWindows(nn.Layer(), (2, 6), (1, 3), covered="shrink_both")
    assert layer.plan(8, 12) == ((2, 6), (1, 3), (8, 12))  # covered on neither axis
    assert layer.plan(8, 5) == ((2, 5), (0, 0), (8, 5))  # the width alone: the window's height stays below the map's
    assert layer.plan(2, 12) == ((2, 2), (0, 0), (2, 12))  # the height alone
    assert layer.plan(1, 4) == ((1, 1), (0, 0), (1, 4))
    turned = nn.ShiftedWindows(nn.Layer(), (6, 2), (3, 1), covered="shrink_both")
    assert turned.plan(5, 8) == ((5, 2), (0, 0), (5, 8))


# --- one layer used twice ---------------------------------------------------------------------------------------------


class Twice(nn.Layer):
    """The same block used twice, first on the map and then on its mirror image."""

    def __init__(self, block: Any) -> None:
        self.block = block

    def forward(self, x: Any, rng: Any = None) -> Any:
        a, back_first = self.block(x, rng)
        y, back_second = self.block(a[:, ::-1], rng)
        return y, once(lambda dy: back_first(back_second(dy)[:, ::-1]))


@pytest.mark.parametrize("post_norm", [False, True])
def test_a_noisy_block_used_twice_has_the_right_gradients(post_norm: bool) -> None:
    kind = nn.CosineWindowAttention if post_norm else nn.WindowAttention
    attention = shifted((2, 2), (1, 1), kind, attn_drop=0.3, proj_drop=0.2)
    mlp = nn.Mlp(4, 6, drop=0.2, dtype="float64", seed=2)
    norms = [nn.LayerNorm(4, dtype="float64") for _ in range(2)]
    block = nn.Block(norms[0], attention, norms[1], mlp, 0.4, post_norm=post_norm)
    minivit.check_vjp(Twice(block), maps(3, 4, 3), rng_seed=5)


def test_drop_path_drops_the_branch_of_a_whole_image() -> None:
    """Not of single windows, and each of the two branches by a draw of its own."""
    attention = shifted((2, 2), (1, 1))
    mlp = perturbed(nn.Mlp(4, 6, dtype="float64", seed=2))
    block = nn.Block(nn.LayerNorm(4, dtype="float64"), attention, nn.LayerNorm(4, dtype="float64"), mlp, 0.5)
    x = maps(200, 4, 4)
    y, _ = block(x, np.random.default_rng(0))
    seen = attention(block.norm1(x)[0])[0]
    kinds = np.zeros(4, int)
    for image in range(len(x)):
        for kind in range(4):
            middle = x[image : image + 1] + 2 * (kind % 2) * seen[image : image + 1]
            if np.allclose(y[image], middle + 2 * (kind // 2) * mlp(block.norm2(middle)[0])[0], rtol=1e-9):
                kinds[kind] += 1
    assert kinds.sum() == 200 and kinds.min() > 30, kinds
