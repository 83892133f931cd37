"""ViT, Swin and Swin v2 as each project that publishes weights computes them, in plain PyTorch operations.

Written from the projects' sources, for those that are not installed; next is parity_table.py, which compares.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from plain_torch_stem import stem
from torch import Tensor
from torch.nn import functional as F
from torch_swin import FORBIDDEN, cut, join, offsets

Params = dict[str, Tensor]  # under timm's names
Sides = tuple[int, int]
# (sides of the map, window, shift) -> the window and the shifts that are used
Plan = Callable[[Sides, int, int], tuple[int, Sides]]


def shrinking(sides: Sides, window: int, shift: int) -> tuple[int, Sides]:
    """A window that covers the map on one axis takes its shorter side, and does not shift (Microsoft)."""
    return (min(sides), (0, 0)) if min(sides) <= window else (window, (shift, shift))


def shrinking_apart(sides: Sides, window: int, shift: int) -> tuple[int, Sides]:
    """The same for each axis alone (timm)."""
    used = min(window, *sides)
    assert min(window, sides[0]) == min(window, sides[1]), "only windows as high as wide are written out here"
    return used, (shift if sides[0] > window else 0, shift if sides[1] > window else 0)


def padded_up(sides: Sides, window: int, shift: int) -> tuple[int, Sides]:
    """The window stays and the map is padded up to it; on an axis that it covers it does not shift (torchvision)."""
    return window, (shift if sides[0] > window else 0, shift if sides[1] > window else 0)


def always_shifted(sides: Sides, window: int, shift: int) -> tuple[int, Sides]:
    """The window and the shift stay, so that even a single window is rolled and masked (WZMIAOMIAO)."""
    return window, (shift, shift)


@dataclass(frozen=True)
class Numerics:
    """How a project computes with its weights.

    Attributes:
        eps: of every LayerNorm.
        gelu: "none" (exact) or "tanh".
        plan: what becomes of Swin's windows.
        roll_first: roll the map before it is padded to whole windows (timm), and not after.
        resnet_eps: whose epsilons a hybrid's stem has.
    """

    eps: float
    gelu: str = "none"
    plan: Plan = shrinking
    roll_first: bool = False
    resnet_eps: str = "timm"


def vit(p: Params, images: Tensor, config: dict[str, Any], how: Numerics) -> Tensor:
    """Images (B, C, H, W) -> logits (B, K); the arguments of `minivit.ViT` are in `config`."""
    if config["resnet_layers"] is not None:
        images = stem({**config, "resnet_eps": how.resnet_eps}, p, images)
    x = F.conv2d(images, p["patch_embed.proj.weight"], p["patch_embed.proj.bias"], config["patch_size"])
    x = x.flatten(2).transpose(1, 2)
    first = [p[name].expand(len(x), -1, -1) for name in ("cls_token", "dist_token") if name in p]
    x = torch.cat((*first, x), dim=1) + p["pos_embed"]
    for number in range(config["depth"]):
        block = f"blocks.{number}."
        normed = _norm(p, f"{block}norm1", x, how)
        q, k, v = _heads(_linear(p, f"{block}attn.qkv", normed), config["num_heads"])
        weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
        x = x + _linear(p, f"{block}attn.proj", (weights @ v).transpose(-3, -2).flatten(-2))
        x = x + _mlp(p, block, _norm(p, f"{block}norm2", x, how), how)
    x = _norm(p, "norm", x, how)
    if "head_dist.weight" in p:
        return (_linear(p, "head", x[:, 0]) + _linear(p, "head_dist", x[:, 1])) / 2
    x = x[:, 0]
    if "pre_logits.fc.weight" in p:
        x = _linear(p, "pre_logits.fc", x).tanh()
    return _linear(p, "head", x)


def swin(p: Params, images: Tensor, config: dict[str, Any], how: Numerics) -> Tensor:
    """Images (B, C, H, W) -> logits (B, K); the arguments of `minivit.Swin` or `minivit.SwinV2` are in `config`."""
    second = "pretrained_window_sizes" in config
    x = F.conv2d(images, p["patch_embed.proj.weight"], p["patch_embed.proj.bias"], config["patch_size"])
    x = _norm(p, "patch_embed.norm", x.permute(0, 2, 3, 1), how)  # (B, H, W, D)
    for stage, depth in enumerate(config["depths"]):
        if stage:
            x = _merge(p, f"layers.{stage}.downsample.", x, second, how)
        for place in range(depth):
            block = f"layers.{stage}.blocks.{place}."
            shift = config["window_size"] // 2 if place % 2 else 0

            def attend(x: Tensor, block: str = block, shift: int = shift, stage: int = stage) -> Tensor:
                return _in_windows(p, f"{block}attn.", x, config, stage, shift, how)

            if second:
                x = x + _norm(p, f"{block}norm1", attend(x), how)
                x = x + _norm(p, f"{block}norm2", _mlp(p, block, x, how), how)
            else:
                x = x + attend(_norm(p, f"{block}norm1", x, how))
                x = x + _mlp(p, block, _norm(p, f"{block}norm2", x, how), how)
    return _linear(p, "head.fc", _norm(p, "norm", x, how).mean(dim=(1, 2)))


def _in_windows(
    p: Params, name: str, x: Tensor, config: dict[str, Any], stage: int, shift: int, how: Numerics
) -> Tensor:
    """A map (B, H, W, D) -> the same shape: pad, roll, attend in windows, and undo."""
    height, width = x.shape[1:3]
    window, shifts = how.plan((height, width), config["window_size"], shift)
    size = (height + -height % window, width + -width % window)
    there = [
        lambda x: F.pad(x, (0, 0, 0, size[1] - width, 0, size[0] - height)),
        lambda x: x.roll((-shifts[0], -shifts[1]), (1, 2)),
    ]
    back = [lambda x: x.roll(shifts, (1, 2)), lambda x: x[:, :height, :width]]
    for step in reversed(there) if how.roll_first else there:
        x = step(x)
    bias = _continuous_bias(p, name, config, stage, window) if "pretrained_window_sizes" in config else None
    mask = seam_mask(size, window, shifts).unsqueeze(1) if any(shifts) else None  # (nW, 1, N, N)
    x = join(_attend(p, name, cut(x, window), bias, mask, config["num_heads"][stage], window), x.shape, window)
    for step in reversed(back) if how.roll_first else back:
        x = step(x)
    return x


def seam_mask(size: Sides, window: int, shifts: Sides) -> Tensor:
    """(nW, N, N): 0 where the roll kept two positions of a padded map together, `FORBIDDEN` where it brought them."""
    bands = []
    for length, shift in zip(size, shifts):
        place = torch.arange(length)
        bands.append((place >= length - window).long() + (place >= length - shift).long() * bool(shift))
    regions = cut((3 * bands[0][:, None] + bands[1]).view(1, *size, 1), window)[0, :, :, 0]  # (nW, N)
    return FORBIDDEN * (regions[:, None, :] != regions[:, :, None])


def _attend(
    p: Params, name: str, x: Tensor, bias: Tensor | None, mask: Tensor | None, heads: int, window: int
) -> Tensor:
    """Windows (B, nW, N, D) -> the same shape; `bias` (Hd, N, N) says that it is version 2."""
    if bias is None:
        q, k, v = _heads(_linear(p, f"{name}qkv", x), heads)  # each (B, nW, Hd, N, d)
        scores = q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)
        table = p[f"{name}relative_position_bias_table"]
        rows = table[offsets(window, (math.isqrt(len(table)) + 1) // 2)]  # (N N, Hd)
        scores = scores + rows.t().reshape(heads, window**2, window**2)
    else:
        q_bias, v_bias = p[f"{name}q_bias"], p[f"{name}v_bias"]
        fused = torch.cat((q_bias, torch.zeros_like(q_bias), v_bias))
        q, k, v = _heads(F.linear(x, p[f"{name}qkv.weight"], fused), heads)
        scale = p[f"{name}logit_scale"].clamp(max=math.log(100)).exp()
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * scale + bias
    if mask is not None:
        scores = scores + mask.to(scores.dtype)
    return _linear(p, f"{name}proj", (scores.softmax(-1) @ v).transpose(-3, -2).flatten(-2))


def _continuous_bias(p: Params, name: str, config: dict[str, Any], stage: int, window: int) -> Tensor:
    """(Hd, N, N) version 2's bias, which an MLP makes of the logarithm of the offset.

    The projects keep these logarithms in float32; here they have the dtype of the weights.
    """
    weight = p[f"{name}cpb_mlp.0.weight"]
    trained = config["pretrained_window_sizes"][stage] or window
    steps = torch.arange(1 - window, window, dtype=torch.float64) * 8 / (trained - 1)
    axis = steps.sign() * (steps.abs() + 1).log2() / math.log2(8)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1).flatten(0, 1).to(weight.dtype)
    hidden = F.linear(grid, weight, p[f"{name}cpb_mlp.0.bias"]).relu()
    rows = F.linear(hidden, p[f"{name}cpb_mlp.2.weight"])[offsets(window, window)]  # (N N, Hd)
    return 16 * rows.sigmoid().t().reshape(-1, window**2, window**2)


def _merge(p: Params, name: str, x: Tensor, second: bool, how: Numerics) -> Tensor:
    """A map (B, H, W, D) -> (B, H/2, W/2, 2D); neighbors stand down before right."""
    x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
    x = torch.cat([x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)], dim=-1)
    if second:
        return _norm(p, f"{name}norm", _linear(p, f"{name}reduction", x), how)
    return _linear(p, f"{name}reduction", _norm(p, f"{name}norm", x, how))


def _mlp(p: Params, block: str, x: Tensor, how: Numerics) -> Tensor:
    hidden = F.gelu(_linear(p, f"{block}mlp.fc1", x), approximate=how.gelu)
    return _linear(p, f"{block}mlp.fc2", hidden)


def _heads(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """(..., N, 3D) -> q, k, v, each (..., Hd, N, d)."""
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).unbind(-3)
    return q.transpose(-3, -2), k.transpose(-3, -2), v.transpose(-3, -2)


def _linear(p: Params, name: str, x: Tensor) -> Tensor:
    return F.linear(x, p[f"{name}.weight"], p.get(f"{name}.bias"))


def _norm(p: Params, name: str, x: Tensor, how: Numerics) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"], how.eps)
