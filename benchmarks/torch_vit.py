"""A Vision Transformer in plain PyTorch, written the usual way, with timm's parameter names.

It is what minivit is compared with, so it takes no detour: fused q, k, v, one convolution, built-in LayerNorm and GELU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_resnet import ResNet


class Attention(nn.Module):
    """Multi-head self-attention by `F.scaled_dot_product_attention` ("sdpa") or spelled out ("plain")."""

    def __init__(self, dim: int, heads: int, kind: str) -> None:
        super().__init__()
        self.heads, self.kind = heads, kind
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        if self.kind == "sdpa":
            seen = F.scaled_dot_product_attention(q, k, v)
        else:
            seen = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(dim=-1) @ v
        return self.proj(seen.transpose(1, 2).reshape(batch, tokens, dim))


class Mlp(nn.Module):
    """Two linear layers with the exact GELU in between."""

    def __init__(self, dim: int, ratio: float = 4.0) -> None:
        super().__init__()
        hidden = int(ratio * dim)
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Attention and MLP, each behind a LayerNorm and added to the stream."""

    def __init__(self, dim: int, heads: int, kind: str) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim, eps=1e-6), Attention(dim, heads, kind)
        self.norm2, self.mlp = nn.LayerNorm(dim, eps=1e-6), Mlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    """One strided convolution, over the image or over the map of a ResNet."""

    def __init__(self, patch: int, channels: int, dim: int, backbone: ResNet | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.proj = nn.Conv2d(channels if backbone is None else backbone.channels, dim, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.backbone is None else self.backbone(x)
        return self.proj(x).flatten(2).transpose(1, 2)


class TorchViT(nn.Module):
    """Images (B, C, H, W) -> logits; `model` holds the arguments that `minivit.ViT` takes."""

    def __init__(self, model: dict[str, Any], kind: str) -> None:
        super().__init__()
        dim, heads, patch = model["embed_dim"], model["num_heads"], model["patch_size"]
        layers = model.get("resnet_layers")
        backbone = None if layers is None else ResNet(model["in_chans"], layers)
        tokens = 1 + (model["img_size"] // (patch * (1 if backbone is None else backbone.reduction))) ** 2
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, dim))
        self.patch_embed = PatchEmbed(patch, model["in_chans"], dim, backbone)
        self.blocks = nn.Sequential(*(Block(dim, heads, kind) for _ in range(model["depth"])))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, model["num_classes"])

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patch_embed(x)
        x = torch.cat((self.cls_token.expand(len(x), -1, -1), patches), dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])
