"""The ViT's options that no model of transformers has, against the same model written in a page of PyTorch.

That page is written from the papers, with loops and PyTorch's own operations, and autograd differentiates it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from parity_tools import DTYPES, MODEL_FORWARD, check_forward, check_gradients, offset_rows, randomize, tensor, torch

from minivit import functional as F
from minivit.models import ViT

TF = torch.nn.functional


def waves(place: Any, dim: int) -> list[float]:
    """Sines of place / 10000^(i / half), then cosines, for i up to half the width."""
    half = dim // 2
    angles = [place / 10000 ** (i / half) for i in range(half)]
    return [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]


def resized(square: Any, grid: tuple[int, int]) -> Any:
    """A table (gh, gw, D) at another grid."""
    if tuple(square.shape[:2]) == grid:
        return square
    images = square.permute(2, 0, 1)[None]
    images = TF.interpolate(images, grid, mode="bicubic", antialias=True, align_corners=False)
    return images[0].permute(1, 2, 0)


def place_table(
    c: dict[str, Any], p: dict[str, Any], built: tuple[int, int], grid: tuple[int, int], prefix: int
) -> Any:
    """What is added to the tokens (T, D)."""
    kind, dim = c["pos_embed"], c["embed_dim"]
    places = [(y, x) for y in range(grid[0]) for x in range(grid[1])]
    if kind == "learned_1d":
        table = p["pos_embed"][0]
        patches = resized(table[prefix:].reshape(*built, dim), grid).reshape(-1, dim)
        return torch.cat((table[:prefix], patches))
    if kind == "learned_2d":
        rows = resized(p["pos_embed_row"][None], (1, grid[0]))[0]  # lying, not standing: see test_torch_functional.py
        columns = resized(p["pos_embed_col"][None], (1, grid[1]))[0]
        patches = torch.stack([torch.cat((rows[y], columns[x])) for y, x in places])
    elif kind == "sincos_1d":
        patches = torch.tensor([waves(place, dim) for place in range(len(places))], dtype=torch.float64)
    elif kind == "sincos_2d":
        patches = torch.tensor([waves(y, dim // 2) + waves(x, dim // 2) for y, x in places], dtype=torch.float64)
    else:
        return 0.0
    patches = patches.to(p["patch_embed.proj.weight"].dtype)
    return torch.cat((torch.zeros(prefix, dim, dtype=patches.dtype), patches))


def relative_bias(table: Any, grid: tuple[int, int], prefix: int) -> Any:
    """(H, T, T): one number for each head and each offset, and three for pairs with a prefix token."""
    return table[torch.tensor(offset_rows(grid, prefix))].permute(2, 0, 1)


def reference(c: dict[str, Any], p: dict[str, Any], images: Any) -> Any:
    """Images -> logits of a ViT with configuration c and parameters p (tensors under timm's names)."""
    eps, heads, dim = c["norm_eps"], c["num_heads"], c["embed_dim"]

    def norm(x: Any, name: str) -> Any:
        return TF.layer_norm(x, x.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"], eps)

    def linear(x: Any, name: str) -> Any:
        return TF.linear(x, p[f"{name}.weight"], p.get(f"{name}.bias"))

    patch = p["patch_embed.proj.weight"].shape[2:]
    x = TF.conv2d(images, p["patch_embed.proj.weight"], p["patch_embed.proj.bias"], stride=patch)
    grid, batch = (x.shape[2], x.shape[3]), x.shape[0]
    size = c["img_size"]
    height, width = (size, size) if isinstance(size, int) else size
    built = (height // patch[0], width // patch[1])
    x = x.flatten(2).transpose(1, 2)
    if c["patch_norm"]:
        x = norm(x, "patch_embed.norm")
    tokens = [p[name].expand(batch, 1, dim) for name in ("cls_token", "dist_token") if name in p]
    prefix = len(tokens)
    x = torch.cat((*tokens, x), dim=1) + place_table(c, p, built, grid, prefix)
    for i in range(c["depth"]):
        b = f"blocks.{i}"
        q, k, v = (
            part.unflatten(2, (heads, -1)).transpose(1, 2)
            for part in linear(norm(x, f"{b}.norm1"), f"{b}.attn.qkv").chunk(3, 2)
        )
        scores = q @ k.transpose(2, 3) / math.sqrt(dim // heads)
        if c["pos_embed"] == "relative":
            table = p[f"{b}.attn.relative_position_bias_table"]
            scores = scores + relative_bias(table, grid, prefix)
        seen = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + linear(seen, f"{b}.attn.proj")
        wide = TF.gelu(linear(norm(x, f"{b}.norm2"), f"{b}.mlp.fc1"), approximate=c["gelu"])
        x = x + linear(wide, f"{b}.mlp.fc2")
    x = norm(x[:, prefix:].mean(1), "fc_norm") if c["global_pool"] == "avg" else norm(x, "norm")[:, : max(1, prefix)]
    if c["representation_size"]:
        x = linear(x, "pre_logits.fc").tanh()
    if c["distilled"]:
        return (linear(x[:, 0], "head") + linear(x[:, 1], "head_dist")) / 2
    if c["global_pool"] == "token":
        x = x[:, 0]
    return linear(x, "head") if c["num_classes"] else x


SMALL: dict[str, Any] = {
    "img_size": (8, 12),
    "patch_size": (4, 2),
    "in_chans": 2,
    "num_classes": 5,
    "embed_dim": 12,
    "depth": 2,
    "num_heads": 3,
    "mlp_ratio": 2.0,
}
AVERAGE = {"global_pool": "avg"}
OPTIONS: dict[str, dict[str, Any]] = {
    "as_published": {},
    "average": AVERAGE,
    "average_without_class_token": AVERAGE | {"class_token": False},
    "features": {"num_classes": 0},
    "average_features": AVERAGE | {"num_classes": 0},
    "pre_logits": {"representation_size": 7},
    "average_pre_logits": AVERAGE | {"representation_size": 7},
    "patch_norm": {"patch_norm": True, "norm_eps": 1e-5},
    "tanh_gelu": {"gelu": "tanh"},
    "no_qkv_bias": {"qkv_bias": False},
    "no_positions": {"pos_embed": "none"},
    "learned_2d": {"pos_embed": "learned_2d"},
    "sincos_1d": {"pos_embed": "sincos_1d"},
    "sincos_2d": {"pos_embed": "sincos_2d"} | AVERAGE | {"class_token": False},
    "relative": {"pos_embed": "relative"},
    "relative_average": {"pos_embed": "relative"} | AVERAGE | {"class_token": False},
    "distilled_relative": {"pos_embed": "relative", "distilled": True},
    "distilled_sincos": {"pos_embed": "sincos_2d", "distilled": True},
}


def compare(config: dict[str, Any], dtype: str, image: tuple[int, int] = (8, 12)) -> None:
    rng = np.random.default_rng(3)
    ours = ViT(**{**config, "dtype": dtype})
    randomize(ours, rng)
    images = rng.standard_normal((3, 2, *image)).astype(dtype)
    timages = tensor(images)
    params = {name: tensor(param.data) for name, param in ours.parameters().items()}
    expected = reference(ours.config, params, timages)
    if config["num_classes"] == 0:
        expected = expected.reshape(3, -1)
    y, back = ours(images)
    check_forward(y, expected, MODEL_FORWARD[dtype])
    dy = rng.standard_normal(y.shape).astype(dtype)
    expected.backward(torch.tensor(dy))
    got = {"images": back(dy)} | {name: param.grad for name, param in ours.parameters().items()}
    check_gradients(got, {"images": timages.grad} | {name: param.grad for name, param in params.items()})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPTIONS)
def test_options(name: str, dtype: str) -> None:
    compare(SMALL | OPTIONS[name], dtype)


@pytest.mark.parametrize("skip", [True, False])
def test_skipping_unused_tokens_is_exact(skip: bool) -> None:
    compare(SMALL | {"skip_unused_tokens": skip, "pos_embed": "relative"}, "float64")


@pytest.mark.parametrize("image", [(16, 20), (4, 4), (12, 6), (8, 12)])
@pytest.mark.parametrize("kind", ["learned_1d", "learned_2d", "sincos_1d", "sincos_2d"])
@pytest.mark.parametrize("distilled", [False, True])
def test_images_of_another_size(distilled: bool, kind: str, image: tuple[int, int]) -> None:
    compare(SMALL | {"dynamic_img_size": True, "pos_embed": kind, "distilled": distilled}, "float64", image)


@pytest.mark.parametrize("loss", ["smoothed", "soft", "mean_squared_error"])
def test_losses_on_a_whole_model(loss: str) -> None:
    rng = np.random.default_rng(3)
    ours = ViT(**SMALL, dtype="float64")
    randomize(ours, rng)
    images, labels, soft = rng.standard_normal((4, 2, 8, 12)), rng.integers(0, 5, 4), rng.random((4, 5))
    params = {name: tensor(param.data) for name, param in ours.parameters().items()}
    timages = tensor(images)
    expected = reference(ours.config, params, timages)
    logits, back = ours(images)
    if loss == "smoothed":
        value, back_loss = F.softmax_cross_entropy(logits, labels, 0.2)
        wanted = TF.cross_entropy(expected, torch.tensor(labels), label_smoothing=0.2)
    elif loss == "soft":
        value, back_loss = F.softmax_cross_entropy(logits, soft, 0.2)
        wanted = TF.cross_entropy(expected, torch.tensor(soft), label_smoothing=0.2)
    else:
        value, back_loss = F.mean_squared_error(logits, soft)
        wanted = TF.mse_loss(expected, torch.tensor(soft))
    check_forward(value, wanted)
    (0.7 * wanted).backward()
    got = {"images": back(back_loss(0.7))} | {name: param.grad for name, param in ours.parameters().items()}
    check_gradients(got, {"images": timages.grad} | {name: param.grad for name, param in params.items()})
