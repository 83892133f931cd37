"""Swin's layers against the same layers said again in PyTorch, with the same random parameters.

There a pair of pixels is looked up by its coordinates, and nothing is rolled: each window collects its own pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from parity_tools import DTYPES, FORWARD, GRADIENT, check_forward, check_gradients, randomize, tensor, torch

from minivit import nn

TF = torch.nn.functional
Size = tuple[int, int]
D, H = 12, 3  # channels, heads


def drawn(*shape: int, seed: int = 2) -> Any:
    return np.random.default_rng(seed).standard_normal(shape)


def check(
    layer: nn.Layer, reference: Callable[..., Any], x: Any, dtype: str, slack: float = 1.0, **options: Any
) -> None:
    """Output, and all gradients under a random dy; `reference` takes the parameters as tensors, by name, and x.

    `options` go to the layer; `slack` multiplies the limits.
    """
    rng = np.random.default_rng(1)
    randomize(layer, rng)
    for name, param in layer.parameters().items():
        if name.endswith("logit_scale"):
            param.data = np.log(10) + 0.2 * rng.standard_normal(param.shape)
        param.data = param.data.astype(dtype)
    params = {name: tensor(param.data) for name, param in layer.parameters().items()}
    x = x.astype(dtype)
    tx = tensor(x)
    expected = reference(params, tx)
    y, back = layer(x, **options)
    check_forward(y, expected, slack * FORWARD[dtype])
    dy = rng.standard_normal(y.shape).astype(dtype)
    expected.backward(torch.tensor(dy))
    got = {"x": back(dy)} | {name: param.grad for name, param in layer.parameters().items()}
    wanted = {"x": tx.grad} | {name: param.grad for name, param in params.items()}
    check_gradients(got, wanted, slack * GRADIENT[dtype])


# --- the same in PyTorch ---


def offsets(window: Size) -> Any:
    """(N, N, 2): how far the query is below and right of the key."""
    places = torch.cartesian_prod(torch.arange(window[0]), torch.arange(window[1]))
    return places[:, None] - places[None, :]


def table_bias(table: Any, window: Size, made: Size) -> Any:
    """(H, N, N): the table (R, H) as a grid of offsets, read at each pair's."""
    grid = table.unflatten(0, (2 * made[0] - 1, 2 * made[1] - 1))
    dy, dx = offsets(window).unbind(-1)
    return grid[dy + made[0] - 1, dx + made[1] - 1].permute(2, 0, 1)


def mlp_bias(p: dict[str, Any], name: str, window: Size, trained: Size) -> Any:
    """(H, N, N): the MLP of each pair's own offset, on a logarithmic scale."""
    unit = torch.tensor([max(trained[0] - 1, 1), max(trained[1] - 1, 1)])
    steps = 8.0 * offsets(window).double() / unit
    steps = (steps.sign() * torch.log2(1 + steps.abs()) / math.log2(8)).to(p[f"{name}cpb_mlp.0.weight"].dtype)
    hidden = TF.relu(TF.linear(steps, p[f"{name}cpb_mlp.0.weight"], p[f"{name}cpb_mlp.0.bias"]))
    return 16 * torch.sigmoid(TF.linear(hidden, p[f"{name}cpb_mlp.2.weight"])).permute(2, 0, 1)


def window_attention(
    p: dict[str, Any], windows: Any, mask: Any, name: str = "", made: Size = (4, 3), mask_value: float = -100.0
) -> Any:
    """(nW, Mh, Mw, D), one image's windows, each with its mask (N, N), or with none."""
    seen = []
    for number, window in enumerate(windows):
        tokens, size = window.flatten(0, 1), (window.shape[0], window.shape[1])
        weight = p[f"{name}qkv.weight"]
        if f"{name}logit_scale" in p:
            parts = [weight[i * D : (i + 1) * D] for i in range(3)]
            q, k, v = (
                TF.linear(tokens, part, p.get(f"{name}{letter}_bias")) for letter, part in zip("qkv", parts)
            )  # k_bias is in no model
            q, k, v = (a.unflatten(1, (H, -1)).transpose(0, 1) for a in (q, k, v))
            factor = p[f"{name}logit_scale"].clamp(max=math.log(100)).exp()
            scores = TF.normalize(q, dim=-1) @ TF.normalize(k, dim=-1).transpose(1, 2) * factor
            scores = scores + mlp_bias(p, name, size, made)
        else:
            qkv = TF.linear(tokens, weight, p.get(f"{name}qkv.bias")).unflatten(1, (3, H, -1))
            q, k, v = qkv.permute(1, 2, 0, 3)
            scores = q @ k.transpose(1, 2) / math.sqrt(D // H)
            scores = scores + table_bias(p[f"{name}relative_position_bias_table"], size, made)
        if mask is not None:
            scores = scores + torch.where(torch.as_tensor(mask[number]), 0.0, mask_value).to(scores.dtype)
        together = (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)
        y = TF.linear(together, p[f"{name}proj.weight"], p[f"{name}proj.bias"])
        seen.append(y.unflatten(0, size))
    return torch.stack(seen)


def shifted_windows(attend: Callable[..., Any], x: Any, window: Size, shift: Size, hide: bool = False) -> Any:
    """Window by window: the pixels it holds, going round the padded map's rim, and who of them were neighbors."""
    real = (x.shape[1], x.shape[2])
    shift = tuple(0 if side <= length else step for side, length, step in zip(real, window, shift))
    window = tuple(min(side, length) for side, length in zip(real, window))
    padded = tuple(-(-side // length) * length for side, length in zip(real, window))
    x = TF.pad(x, (0, 0, 0, padded[1] - real[1], 0, padded[0] - real[0]))
    images = []
    for image in x:
        result = torch.zeros_like(image)
        for top in range(0, padded[0], window[0]):
            for left in range(0, padded[1], window[1]):
                y = torch.arange(top, top + window[0])[:, None].expand(window) + shift[0]
                x0 = torch.arange(left, left + window[1])[None, :].expand(window) + shift[1]
                # a place beyond the rim comes from the other side, and was no neighbor of those before the rim
                kind = (y >= padded[0]).long() + 2 * (x0 >= padded[1]).long()
                y, x0 = y % padded[0], x0 % padded[1]
                if hide:
                    kind = kind + 4 * ((y >= real[0]) | (x0 >= real[1])).long()
                mask = kind.flatten()[:, None] == kind.flatten()[None, :]
                result = result.index_put((y, x0), attend(image[y, x0][None], mask[None])[0])
        images.append(result[: real[0], : real[1]])
    return torch.stack(images)


def merging(p: dict[str, Any], x: Any, eps: float, post_norm: bool) -> Any:
    """Place by place of the new map: top left, bottom left, top right, bottom right."""
    height, width, dim = x.shape[1:]
    x = TF.pad(x, (0, 0, 0, 1, 0, 1))  # one row and column more than an even map needs
    rows = []
    for y in range(0, height, 2):
        for x0 in range(0, width, 2):
            four = [x[:, y + down, x0 + right] for down, right in ((0, 0), (1, 0), (0, 1), (1, 1))]
            rows.append(torch.cat(four, dim=1))
    merged = torch.stack(rows, dim=1).unflatten(1, (-(-height // 2), -(-width // 2)))
    if not post_norm:
        merged = TF.layer_norm(merged, (4 * dim,), p["norm.weight"], p["norm.bias"], eps)
    merged = TF.linear(merged, p["reduction.weight"])
    return TF.layer_norm(merged, (2 * dim,), p["norm.weight"], p["norm.bias"], eps) if post_norm else merged


# --- tests ---

KINDS = [nn.WindowAttention, nn.CosineWindowAttention]
# factors of about 10 on cosines, biases of up to 16, and gradients through 1/|q| cost float32 some digits
SLACK = {nn.WindowAttention: 1, nn.CosineWindowAttention: 5}


def attention(kind: Any, window: Size, dtype: str, **options: Any) -> Any:
    if kind is nn.CosineWindowAttention:
        options = {"cpb_hidden": 16, **options}
    return kind(D, H, window, dtype=dtype, seed=0, **options)


def each_image(p: dict[str, Any], windows: Any, mask: Any, count: int, **options: Any) -> Any:
    return torch.cat([window_attention(p, part, mask, **options) for part in windows.split(count)])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_window_attention(kind: Any, qkv_bias: bool, dtype: str) -> None:
    layer = attention(kind, (4, 3), dtype, qkv_bias=qkv_bias)
    check(layer, lambda p, x: each_image(p, x, None, 5), drawn(5, 4, 3, D), dtype, SLACK[kind])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask_value", [-100.0, -math.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_window_attention_with_a_mask_for_each_window(kind: Any, mask_value: float, dtype: str) -> None:
    layer = attention(kind, (4, 3), dtype, mask_value=mask_value)
    mask = np.random.default_rng(3).random((3, 12, 12)) < 0.5
    mask |= np.eye(12, dtype=bool)
    check(
        layer,
        lambda p, x: each_image(p, x, mask, 3, mask_value=mask_value),
        drawn(2 * 3, 4, 3, D),
        dtype,
        SLACK[kind],
        mask=mask,
    )


def test_large_scores_pass_a_mask_of_100_and_not_one_of_infinity() -> None:
    mask = np.tril(np.ones((1, 12, 12), dtype=bool))
    outputs = []
    for mask_value in (-100.0, -math.inf):
        layer = attention(nn.WindowAttention, (4, 3), "float64", mask_value=mask_value)
        x = 12 * drawn(2, 4, 3, D)

        def theirs(p: dict[str, Any], x: Any, value: float = mask_value) -> Any:
            return each_image(p, x, mask, 1, mask_value=value)

        check(layer, theirs, x, "float64", mask=mask)
        outputs.append(layer(x, mask=mask)[0])
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-3


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [(2, 3), (4, 1), (1, 1)])
@pytest.mark.parametrize("kind", KINDS)
def test_window_attention_in_windows_smaller_than_its_table(kind: Any, window: Size, dtype: str) -> None:
    layer = attention(kind, (4, 3), dtype)
    check(layer, lambda p, x: each_image(p, x, None, 4), drawn(4, *window, D), dtype, SLACK[kind])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pretrained", [(7, 0), (2, 6), (1, 3)])
def test_cosine_attention_of_weights_from_another_window(pretrained: Size, dtype: str) -> None:
    layer = attention(nn.CosineWindowAttention, (4, 3), dtype, pretrained_window=pretrained)
    made = (pretrained[0] or 4, pretrained[1] or 3)
    check(layer, lambda p, x: each_image(p, x, None, 4, made=made), drawn(4, 4, 3, D), dtype, 5)


# maps that fit, that are padded on one axis or both, and that the window covers on one axis or both
MAPS = [(8, 9), (7, 9), (9, 8), (5, 4), (4, 7), (9, 3), (3, 2)]


@pytest.mark.parametrize("shift", [(0, 0), (2, 1), (1, 2), (0, 1)])
@pytest.mark.parametrize("size", MAPS)
@pytest.mark.parametrize("kind", KINDS)
def test_shifted_windows(kind: Any, size: Size, shift: Size) -> None:
    layer = nn.ShiftedWindows(attention(kind, (4, 3), "float64"), (4, 3), shift)

    def theirs(p: dict[str, Any], x: Any) -> Any:
        return shifted_windows(lambda windows, mask: window_attention(p, windows, mask), x, (4, 3), shift)

    check(layer, theirs, drawn(2, *size, D), "float64")


@pytest.mark.parametrize("size", [(7, 8), (9, 9), (8, 9), (3, 5)])
@pytest.mark.parametrize("shift", [(0, 0), (2, 1)])
@pytest.mark.parametrize("mask_value", [-100.0, -math.inf])
def test_shifted_windows_with_padding_hidden(mask_value: float, shift: Size, size: Size) -> None:
    inside = attention(nn.WindowAttention, (4, 3), "float64", mask_value=mask_value)
    layer = nn.ShiftedWindows(inside, (4, 3), shift, mask_padding=True)

    def theirs(p: dict[str, Any], x: Any) -> Any:
        def attend(windows: Any, mask: Any) -> Any:
            return window_attention(p, windows, mask, mask_value=mask_value)

        return shifted_windows(attend, x, (4, 3), shift, hide=True)

    check(layer, theirs, drawn(2, *size, D), "float64")


@pytest.mark.parametrize("kind", KINDS)
def test_shifted_windows_in_float32(kind: Any) -> None:
    layer = nn.ShiftedWindows(attention(kind, (4, 3), "float32"), (4, 3), (2, 1))

    def theirs(p: dict[str, Any], x: Any) -> Any:
        return shifted_windows(lambda windows, mask: window_attention(p, windows, mask), x, (4, 3), (2, 1))

    check(layer, theirs, drawn(2, 7, 8, D), "float32", SLACK[kind])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("eps", [1e-5, 1e-6])
@pytest.mark.parametrize("post_norm", [False, True])
@pytest.mark.parametrize("shape", [(2, 4, 6, 3), (2, 5, 4, 3), (2, 4, 7, 3), (1, 5, 3, 2), (2, 1, 1, 4)])
def test_patch_merging(shape: tuple[int, ...], post_norm: bool, eps: float, dtype: str) -> None:
    x = drawn(*shape)
    x[:1] *= 1.5e-3  # a map of a variance near eps
    layer = nn.PatchMerging(shape[-1], post_norm=post_norm, norm_eps=eps, dtype=dtype, seed=0)
    check(layer, lambda p, x: merging(p, x, eps, post_norm), x, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("post_norm", [False, True])
def test_block(post_norm: bool, kind: Any, dtype: str) -> None:
    eps, size, shift = 1e-5, (7, 8), (2, 1)
    block = nn.Block(
        nn.LayerNorm(D, eps, dtype=dtype),
        nn.ShiftedWindows(attention(kind, (4, 3), dtype), (4, 3), shift),
        nn.LayerNorm(D, eps, dtype=dtype),
        nn.Mlp(D, 20, dtype=dtype, seed=1),
        post_norm=post_norm,
    )

    def theirs(p: dict[str, Any], x: Any) -> Any:
        def norm(x: Any, name: str) -> Any:
            return TF.layer_norm(x, (D,), p[f"{name}.weight"], p[f"{name}.bias"], eps)

        def attend(x: Any) -> Any:
            return shifted_windows(lambda w, mask: window_attention(p, w, mask, "attn."), x, (4, 3), shift)

        def think(x: Any) -> Any:
            wide = TF.gelu(TF.linear(x, p["mlp.fc1.weight"], p["mlp.fc1.bias"]))
            return TF.linear(wide, p["mlp.fc2.weight"], p["mlp.fc2.bias"])

        if post_norm:
            x = x + norm(attend(x), "norm1")
            return x + norm(think(x), "norm2")
        x = x + attend(norm(x, "norm1"))
        return x + think(norm(x, "norm2"))

    check(block, theirs, drawn(2, *size, D), dtype, SLACK[kind])
