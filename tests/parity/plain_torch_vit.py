"""The Vision Transformer that minivit trains on MNIST, in plain PyTorch, as docs/published_weights.md shows it.

`test_mnist_in_torch.py` is next: it loads into these lines what minivit has saved.
"""

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, dim, heads, hidden):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(dim, 3 * dim), "proj": nn.Linear(dim, dim)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(dim, hidden), "fc2": nn.Linear(hidden, dim)})

    def forward(self, x):  # (B, N, D)
        q, k, v = self.attn.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.attn.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(x))))


class PlainViT(nn.Module):
    def __init__(self, patch=7, dim=64, depth=4, heads=4, hidden=128, side=28, channels=1, classes=10):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (side // patch) ** 2, dim))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(channels, dim, patch, patch)})
        self.blocks = nn.Sequential(*(Block(dim, heads, hidden) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(dim, eps=1e-6), nn.Linear(dim, classes)

    def forward(self, images):  # (B, C, H, W) -> (B, K)
        patches = self.patch_embed.proj(images).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(len(images), -1, -1), patches), dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


def predict(path, digits):
    """The logits (B, 10) of digits (B, 28, 28), uint8, by the model that minivit saved."""
    model = PlainViT()
    model.load_state_dict(load_file(path))  # the names are the same, so nothing is converted
    with torch.no_grad():
        return model((torch.as_tensor(digits)[:, None] / 255 - 0.1307) / 0.3081)
