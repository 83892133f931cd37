"""The functions of Swin against PyTorch: windows, shifts, merging, directions, position biases, cosine attention.

Where PyTorch has no such function, it is said again with its plain operations, and autograd differentiates it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from parity_tools import DTYPES, check_forward, check_gradients, compare_function, offset_rows, tensor, torch

from minivit import functional as F

TF = torch.nn.functional
Size = tuple[int, int]


def run(
    ours: Callable[..., Any], theirs: Callable[..., Any], arrays: list[Any], dtype: str, slack: float = 1.0
) -> None:
    arrays = [None if array is None else array.astype(dtype) for array in arrays]
    compare_function(ours, theirs, arrays, np.random.default_rng(1), slack)


def drawn(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape)


# --- moves ---


def windows_one_by_one(x: Any, window: Size) -> Any:
    """(B nW, Mh, Mw, C): each window sliced from its map."""
    mh, mw = window
    rows, columns = range(0, x.shape[1], mh), range(0, x.shape[2], mw)
    return torch.stack([image[y : y + mh, x0 : x0 + mw] for image in x for y in rows for x0 in columns])


def maps_row_by_row(windows: Any, height: int, width: int) -> Any:
    """(B, H, W, C): windows joined to rows, rows to maps."""
    _, mh, mw, _ = windows.shape
    columns, count = width // mw, (height // mh) * (width // mw)
    maps = []
    for one in windows.split(count):
        maps.append(torch.cat([torch.cat(tuple(row), dim=1) for row in one.split(columns)], dim=0))
    return torch.stack(maps)


WINDOWS = [((2, 6, 8, 3), (3, 2)), ((3, 4, 4, 2), (2, 2)), ((2, 3, 10, 1), (3, 5)), ((1, 4, 6, 2), (1, 1))]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "window"), WINDOWS)
def test_window_partition(shape: tuple[int, ...], window: Size, dtype: str) -> None:
    run(lambda x: F.window_partition(x, window), lambda x: windows_one_by_one(x, window), [drawn(*shape)], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "window"), WINDOWS)
def test_window_reverse(shape: tuple[int, ...], window: Size, dtype: str) -> None:
    batch, height, width, channels = shape
    windows = drawn(batch * (height // window[0]) * (width // window[1]), *window, channels)
    run(
        lambda x: F.window_reverse(x, window, height, width),
        lambda x: maps_row_by_row(x, height, width),
        [windows],
        dtype,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shift", [(-1, -2), (2, 1), (0, 3), (-2, 0), (0, 0), (7, -9)])
def test_roll(shift: Size, dtype: str) -> None:
    run(lambda x: F.roll(x, shift), lambda x: torch.roll(x, shift, (1, 2)), [drawn(2, 5, 6, 3)], dtype)
    run(lambda x: F.roll(x, shift, (2, 3)), lambda x: torch.roll(x, shift, (2, 3)), [drawn(2, 3, 5, 6)], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("more", [(0, 0), (1, 0), (0, 2), (3, 1)])
def test_pad_and_crop(more: Size, dtype: str) -> None:
    size = (5 + more[0], 6 + more[1])
    run(lambda x: F.pad(x, size), lambda x: TF.pad(x, (0, 0, 0, more[1], 0, more[0])), [drawn(2, 5, 6, 3)], dtype)
    run(lambda x: F.pad(x, size, (2, 3)), lambda x: TF.pad(x, (0, more[1], 0, more[0])), [drawn(2, 3, 5, 6)], dtype)
    run(lambda x: F.crop(x, (5, 6)), lambda x: x[:, :5, :6], [drawn(2, *size, 3)], dtype)
    run(lambda x: F.crop(x, (5, 6), (2, 3)), lambda x: x[..., :5, :6], [drawn(2, 3, *size)], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 4, 6, 3), (2, 5, 6, 3), (2, 4, 7, 2), (3, 5, 3, 2), (2, 1, 1, 4)])
def test_patch_merging(shape: tuple[int, ...], dtype: str) -> None:
    def theirs(x: Any) -> Any:
        batch, height, width, channels = x.shape
        x = TF.pad(x.permute(0, 3, 1, 2), (0, width % 2, 0, height % 2))
        parts = TF.pixel_unshuffle(x, 2).unflatten(1, (channels, 2, 2))  # (B, C, down, right, H/2, W/2)
        return parts.permute(0, 4, 5, 3, 2, 1).flatten(3)

    run(F.patch_merging, theirs, [drawn(*shape)], dtype)


# --- elements, directions, images ---


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.0, 10.0, 300.0])
def test_sigmoid(scale: float, dtype: str) -> None:
    x = scale * drawn(3, 4, 5)
    x[0, 0, :3] = [0, -scale, scale]
    run(F.sigmoid, torch.sigmoid, [x], dtype)


LENGTHS = {"ordinary": 1.0, "long": 1e6, "short": 1e-6, "shorter_than_eps": 1e-14}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", LENGTHS)
def test_normalize(length: str, dtype: str) -> None:
    x = LENGTHS[length] * drawn(2, 3, 5)
    if length == "shorter_than_eps":
        x[0, 1] = 0  # its gradient is as large as those of other short vectors, dy / eps
    run(F.normalize, lambda x: TF.normalize(x, dim=-1), [x], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_normalize_short_and_long_vectors_together(dtype: str) -> None:
    x = np.array([[0.3, 0.1], [0.3, 0.5], [2, -1], [0, 0]])
    run(lambda x: F.normalize(x, 0.5), lambda x: TF.normalize(x, dim=-1, eps=0.5), [x], dtype)


# no target is one column wide: see test_torch_functional.py
SIZES = {"up": ((4, 6), (7, 13)), "down": ((9, 14), (4, 3)), "up_and_down": ((5, 8), (11, 3)), "same": ((4, 5), (4, 5))}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize("name", SIZES)
def test_resize_images(name: str, mode: str, antialias: bool, dtype: str) -> None:
    source, target = SIZES[name]
    run(
        lambda x: F.resize_images(x, target, mode, antialias),
        lambda x: TF.interpolate(x, target, mode=mode, antialias=antialias, align_corners=False),
        [drawn(2, 3, *source)],
        dtype,
    )


# --- position biases ---


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [(2, 2), (4, 3), (1, 5), (7, 7), (1, 1)])
def test_relative_position_bias(window: Size, dtype: str) -> None:
    rows = torch.tensor(offset_rows(window, 0))
    run(
        lambda table: F.relative_position_bias(table, F.relative_position_index(window)),
        lambda table: table[rows].permute(2, 0, 1),
        [drawn((2 * window[0] - 1) * (2 * window[1] - 1), 3)],
        dtype,
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_smaller_window_reads_the_table_of_a_larger_one(dtype: str) -> None:
    window, made = (2, 3), (4, 5)

    def theirs(table: Any) -> Any:
        square = table.unflatten(0, (2 * made[0] - 1, 2 * made[1] - 1))  # (7, 9, H), offset (0, 0) in the middle
        middle = square[2:5, 2:7].flatten(0, 1)  # the offsets of -1 to 1 and -2 to 2
        return middle[torch.tensor(offset_rows(window, 0))].permute(2, 0, 1)

    index = F.relative_position_index(window, made)
    run(lambda table: F.relative_position_bias(table, index), theirs, [drawn(63, 3)], dtype)


def log_offsets(window: Size, trained: Size) -> Any:
    axes = []
    for length, unit in zip(window, trained):
        steps = 8 * torch.arange(1 - length, length, dtype=torch.float64) / max(unit - 1, 1)
        axes.append(steps.sign() * (steps.abs() + 1).log2() / math.log2(8))
    return torch.cartesian_prod(*axes)


@pytest.mark.parametrize(
    ("window", "pretrained"), [((4, 3), (0, 0)), ((8, 8), (6, 4)), ((2, 5), (0, 3)), ((1, 4), (0, 0))]
)
def test_log_spaced_offsets(window: Size, pretrained: Size) -> None:
    trained = (pretrained[0] or window[0], pretrained[1] or window[1])
    check_forward(F.log_spaced_offsets(window, pretrained), log_offsets(window, trained))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_continuous_position_table(scale: float, dtype: str) -> None:
    def theirs(offsets: Any, weight1: Any, bias1: Any, weight2: Any) -> Any:
        return 16 * TF.linear(TF.relu(TF.linear(offsets, weight1, bias1)), weight2).sigmoid()

    offsets = F.log_spaced_offsets((3, 4))
    arrays = [offsets, scale * drawn(9, 2, seed=1), scale * drawn(9, seed=2), scale * drawn(3, 9, seed=3)]
    run(F.continuous_position_table, theirs, arrays, dtype)


# --- attention in windows: B images, nW windows, H heads, N queries, M keys, d channels of a head ---

QKV = ((2, 3, 2, 4, 5), (2, 3, 2, 6, 5), (2, 3, 2, 6, 5))
SCALES = np.array([math.log(10), 6.0]).reshape(2, 1, 1)  # the second is above log 100


def window_mask(blind: bool = False) -> Any:
    """(nW, 1, N, M): who may look at whom in each window, the same for all images and heads."""
    mask = np.random.default_rng(7).random((3, 1, 4, 6)) < 0.6
    mask[..., 1] = True
    if blind:
        mask[1, 0, 2] = False
    return mask


def masked(scores: Any, mask: Any, mask_value: float) -> Any:
    if mask is None:
        return scores
    return scores + torch.where(torch.tensor(mask), 0.0, mask_value).to(scores.dtype)


def dot_product(q: Any, k: Any, v: Any, bias: Any, mask: Any, mask_value: float) -> Any:
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + bias
    return masked(scores, mask, mask_value).softmax(-1) @ v


def cosine(q: Any, k: Any, v: Any, logit_scale: Any, bias: Any, mask: Any, mask_value: float) -> Any:
    cosines = TF.cosine_similarity(q[..., :, None, :], k[..., None, :, :], dim=-1)
    scores = cosines * logit_scale.clamp(max=math.log(100)).exp()
    scores = scores if bias is None else scores + bias
    return masked(scores, mask, mask_value).softmax(-1) @ v


def qkv(scale: float = 1.0) -> list[Any]:
    return [scale * drawn(*shape, seed=seed) for seed, shape in enumerate(QKV)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.0, 6.0, 30.0])  # with 30 some scores differ by more than 100: the mask leaks
@pytest.mark.parametrize(("mask_value", "blind"), [(-100.0, False), (-100.0, True), (-math.inf, False)])
def test_dot_product_attention_with_mask(mask_value: float, blind: bool, scale: float, dtype: str) -> None:
    mask = window_mask(blind)
    q, k, v = qkv()
    run(
        lambda q, k, v, bias: F.scaled_dot_product_attention(q, k, v, mask, bias, mask_value=mask_value),
        lambda q, k, v, bias: dot_product(q, k, v, bias, mask, mask_value),
        [scale * q, k, v, drawn(2, 4, 6, seed=5)],
        dtype,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3])  # of q and k, which must not matter
@pytest.mark.parametrize("mask_value", [None, -100.0, -math.inf])
def test_cosine_attention(mask_value: float | None, scale: float, bias: bool, dtype: str) -> None:
    mask, value = (None, 0.0) if mask_value is None else (window_mask(mask_value == -100), mask_value)
    q, k, v = qkv()
    arrays = [scale * q, scale * k, v, SCALES, 16 * np.random.default_rng(5).random((2, 4, 6)) if bias else None]
    run(
        lambda q, k, v, logit_scale, bias: F.cosine_attention(q, k, v, logit_scale, mask, bias, mask_value=value),
        lambda q, k, v, logit_scale, bias: cosine(q, k, v, logit_scale, bias, mask, value),
        arrays,
        dtype,
        slack=10,  # scores of up to 100 are rounded to 100 times the dtype's precision before exp takes them
    )


def test_a_logit_scale_above_log_100_acts_as_log_100_and_learns_nothing() -> None:
    q, k, v = qkv()
    logit_scale = np.array([5.0, 4.6]).reshape(2, 1, 1)  # log 100 = 4.605
    tq, tk, tv, tscale = tensor(q), tensor(k), tensor(v), tensor(logit_scale)
    expected = cosine(tq, tk, tv, tscale, None, None, 0.0)
    y, vjp = F.cosine_attention(q, k, v, logit_scale)
    check_forward(y, expected)
    dy = drawn(*y.shape, seed=9)
    expected.backward(torch.tensor(dy))
    dq, dk, dv, dscale, dbias = vjp(dy)
    assert dbias is None
    assert dscale[0] == 0 == tscale.grad[0]
    assert dscale[1] != 0
    check_gradients({"q": dq, "k": dk, "v": dv}, {"q": tq.grad, "k": tk.grad, "v": tv.grad})
    check_gradients({"scale": dscale}, {"scale": tscale.grad})  # alone, because it is smaller than the others
