"""The Vision Transformer of the paper and nothing else, forward and backward (Dosovitskiy et al. 2021, equations 1-4).

    python examples/plain_vit.py

`minivit.ViT` is this network with options, for published weights, other heads and other sizes. The program gives both
the same weights and compares their logits and gradients. Notation: B batch, C image channels, N patches, D channels of
a token, K classes.
"""

from __future__ import annotations

import numpy as np

import minivit
from minivit import functional as F, nn
from minivit.protocol import Array, Back, Rng, compose, once


class PlainViT(nn.Layer):
    """Images (B, C, side, side) -> logits (B, K)."""

    def __init__(
        self, side: int, patch: int, channels: int, dim: int, depth: int, heads: int, classes: int, seed: int = 0
    ) -> None:
        rng = np.random.default_rng(seed)
        tokens = 1 + (side // patch) ** 2
        self.cls_token = nn.Parameter(np.zeros((1, 1, dim), np.float32))
        self.pos_embed = nn.Parameter(0.02 * rng.standard_normal((1, tokens, dim), dtype=np.float32))
        self.patch_embed = nn.PatchEmbed((patch, patch), channels, dim, seed=rng)
        self.blocks = [
            nn.Block(
                nn.LayerNorm(dim), nn.Attention(dim, heads, seed=rng), nn.LayerNorm(dim), nn.Mlp(dim, 4 * dim, seed=rng)
            )
            for _ in range(depth)
        ]
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes, seed=rng)

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Back]:
        patches, back_patches = self.patch_embed(x)  # (B, N, D)
        batch, _, dim = patches.shape
        cls_token = np.broadcast_to(self.cls_token.data, (batch, 1, dim))
        tokens = np.concatenate((cls_token, patches), axis=1) + self.pos_embed.data  # (B, 1 + N, D): equation 1
        encoded, back_encoder = compose(tokens, *self.blocks, self.norm, rng=rng)  # equations 2 and 3, the norm of 4
        logits, back_head = self.head(encoded[:, 0])  # (B, K): from the class token

        @once
        def back(dlogits: Array) -> Array:
            dencoded = np.zeros_like(tokens)
            dencoded[:, 0] = back_head(dlogits)  # the head reads no other token
            dtokens = back_encoder(dencoded)
            self.pos_embed.accumulate(dtokens.sum(axis=0, keepdims=True))  # one table for all images
            self.cls_token.accumulate(dtokens[:, :1].sum(axis=0, keepdims=True))  # one token for all images
            return back_patches(dtokens[:, 1:])

        return logits, back


def main() -> None:
    model = minivit.ViT(img_size=28, patch_size=7, in_chans=1, num_classes=10, embed_dim=64, depth=4, num_heads=4)
    plain = PlainViT(side=28, patch=7, channels=1, dim=64, depth=4, heads=4, classes=10)
    plain.load_state_dict(model.state_dict())  # the names are the same, and timm's

    rng = np.random.default_rng(0)
    images, labels = rng.standard_normal((8, 1, 28, 28), dtype=np.float32), rng.integers(0, 10, 8)
    logits = []
    for each in (model, plain):
        y, back = each(images)
        _, back_loss = F.softmax_cross_entropy(y, labels)
        back(back_loss())
        logits.append(y)
    print(f"logits: largest difference {np.abs(logits[0] - logits[1]).max():.1e}")
    others = plain.parameters()
    apart = [np.abs(param.grad - others[name].grad).max() for name, param in model.parameters().items()]
    print(f"gradients of {len(apart)} parameters: largest difference {max(apart):.1e}")


if __name__ == "__main__":
    main()
