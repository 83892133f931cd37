"""A Swin Transformer in plain PyTorch, written the usual way, with timm's parameter names.

It is what minivit is compared with, so it takes no detour: fused q, k, v, one convolution, built-in LayerNorm and GELU,
and what does not depend on the weights (who stands where in the table of biases, who may look at whom) is made once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_vit import Mlp

FORBIDDEN = -100.0  # added to the scores of positions that only the shift has made neighbors, as published


class WindowAttention(nn.Module):
    """Attention within windows (B, nW, N, D) by `F.scaled_dot_product_attention` ("sdpa") or spelled out ("plain")."""

    def __init__(self, dim: int, heads: int, table: int, window: int, mask: Tensor | None, kind: str) -> None:
        super().__init__()
        self.heads, self.kind = heads, kind
        self.qkv = nn.Linear(dim, 3 * dim)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * table - 1) ** 2, heads))
        self.proj = nn.Linear(dim, dim)
        self.register_buffer("index", offsets(window, table), persistent=False)  # (N N,) rows of the table
        self.register_buffer("mask", mask, persistent=False)  # (nW, 1, N, N) numbers added to the scores, or None

    def forward(self, x: Tensor) -> Tensor:
        batch, windows, tokens, dim = x.shape
        size = dim // self.heads
        bias = self.relative_position_bias_table.index_select(0, self.index).t().view(1, self.heads, tokens, tokens)
        if self.mask is not None:
            bias = bias + self.mask  # (nW, Hd, N, N)
        # the fused kernel wants four axes, and runs only where no gradient of the bias is required; written out, a
        # bias of each window need not be repeated for the batch
        fused = self.kind == "sdpa"
        groups = (batch * windows,) if fused else (batch, windows)
        qkv = self.qkv(x).view(*groups, tokens, 3, self.heads, size)
        q, k, v = (part.transpose(-3, -2) for part in qkv.unbind(-3))  # each (..., Hd, N, d)
        if fused:
            if self.mask is not None and batch > 1:
                bias = bias.repeat(batch, 1, 1, 1)
            seen = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        else:
            scores = q * size**-0.5 @ k.transpose(-2, -1)
            scores += bias  # in place: nothing else needs the bare scores
            seen = scores.softmax(dim=-1) @ v
        return self.proj(seen.transpose(-3, -2).reshape(batch, windows, tokens, dim))


class Block(nn.Module):
    """Attention within the windows of a map (B, H, W, D), and the MLP, each behind a LayerNorm and added."""

    def __init__(self, dim: int, heads: int, side: int, table: int, shifted: bool, ratio: float, kind: str) -> None:
        super().__init__()
        self.window = min(side, table)
        # a window that covers the map shows everyone everyone already
        self.shift = self.window // 2 if shifted and side > self.window else 0
        mask = seam(side, self.window, self.shift) if self.shift else None
        self.norm1 = nn.LayerNorm(dim, eps=1e-5)
        self.attn = WindowAttention(dim, heads, table, self.window, mask, kind)
        self.norm2, self.mlp = nn.LayerNorm(dim, eps=1e-5), Mlp(dim, ratio)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.norm1(x))
        return x + self.mlp(self.norm2(x))

    def attend(self, x: Tensor) -> Tensor:
        if not self.shift:
            return join(self.attn(cut(x, self.window)), x.shape, self.window)
        rolled = torch.roll(x, (-self.shift, -self.shift), (1, 2))
        seen = join(self.attn(cut(rolled, self.window)), x.shape, self.window)
        return torch.roll(seen, (self.shift, self.shift), (1, 2))


class PatchMerging(nn.Module):
    """A map (B, H, W, D) -> (B, H/2, W/2, 2D)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim, eps=1e-5)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, dim = x.shape
        squares = x.view(batch, height // 2, 2, width // 2, 2, dim).permute(0, 1, 3, 4, 2, 5)  # down before right
        return self.reduction(self.norm(squares.flatten(3)))


class Stage(nn.Module):
    """Blocks at one size of the map, after the merging that made it."""

    def __init__(self, dim: int, merge: bool, blocks: list[Block]) -> None:
        super().__init__()
        self.downsample = PatchMerging(dim // 2) if merge else nn.Identity()
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x))


class PatchEmbed(nn.Module):
    """One strided convolution and a LayerNorm: a map with the channels last."""

    def __init__(self, patch: int, channels: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, patch, patch)
        self.norm = nn.LayerNorm(dim, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class Head(nn.Module):
    """The mean over the map, and a linear layer."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean(dim=(1, 2)))


class TorchSwin(nn.Module):
    """Images (B, C, H, W) -> logits; `model` holds the arguments that `minivit.Swin` takes.

    Maps must have even sides where they merge, and sides that the window divides or covers: nothing is padded.
    """

    def __init__(self, model: dict[str, Any], kind: str) -> None:
        super().__init__()
        dim, table, ratio = model["embed_dim"], model["window_size"], model.get("mlp_ratio", 4.0)
        side = model["img_size"] // model["patch_size"]
        self.patch_embed = PatchEmbed(model["patch_size"], model["in_chans"], dim)
        stages = []
        for number, (depth, heads) in enumerate(zip(model["depths"], model["num_heads"], strict=True)):
            if number:
                assert side % 2 == 0, f"a map of {side} x {side} does not merge"
                dim, side = 2 * dim, side // 2
            assert side % min(side, table) == 0, f"windows of {table} do not divide a map of {side}"
            blocks = [Block(dim, heads, side, table, place % 2 == 1, ratio, kind) for place in range(depth)]
            stages.append(Stage(dim, number > 0, blocks))
        self.layers = nn.Sequential(*stages)
        self.norm = nn.LayerNorm(dim, eps=1e-5)
        self.head = Head(dim, model["num_classes"])

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.layers(self.patch_embed(x))))


def cut(x: Tensor, window: int) -> Tensor:
    """A map (B, H, W, D) -> its windows (B, nW, N, D)."""
    batch, height, width, dim = x.shape
    squares = x.view(batch, height // window, window, width // window, window, dim).transpose(2, 3)
    return squares.reshape(batch, -1, window * window, dim)


def join(windows: Tensor, shape: torch.Size, window: int) -> Tensor:
    """Windows (B, nW, N, D) -> the map (B, H, W, D)."""
    batch, height, width, dim = shape
    return windows.view(batch, height // window, width // window, window, window, dim).transpose(2, 3).reshape(shape)


def offsets(window: int, table: int) -> Tensor:
    """(N N,) the row of the table for each query and key, by how far they stand apart."""
    places = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
    apart = places[:, :, None] - places[:, None, :] + table - 1  # (2, N, N), both at least 0
    return (apart[0] * (2 * table - 1) + apart[1]).flatten()


def seam(side: int, window: int, shift: int) -> Tensor:
    """(nW, 1, N, N): 0 where two positions were neighbors before the shift, `FORBIDDEN` where they were not."""
    place = torch.arange(side)
    band = (place >= side - window).long() + (place >= side - shift).long()
    regions = cut((3 * band[:, None] + band[None, :]).view(1, side, side, 1), window)[0, :, :, 0]  # (nW, N)
    return (FORBIDDEN * (regions[:, None, :] != regions[:, :, None])).unsqueeze(1)
