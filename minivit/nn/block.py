"""The transformer encoder block: attention between tokens, then an MLP within each, both as additions to the stream.

Next: `patch_embed.py`.
"""

from __future__ import annotations

from typing import Any

from minivit import functional as F
from minivit.nn.attention import Attention
from minivit.nn.basic import LayerNorm
from minivit.nn.layer import Layer
from minivit.nn.mlp import Mlp
from minivit.protocol import Array, Back, once


class Block(Layer):
    """x <- x + drop_path(attn(norm1(x))); x <- x + drop_path(mlp(norm2(x))): (B, N, D) -> (B, n, D).

    With `attn.queries = n` only the first n tokens come out. That is exact where nothing later reads the others: the
    last block before a head that reads the class token needs the other tokens' keys and values and nothing else.

    Source: Dosovitskiy et al. 2021, equations 2 and 3 (norm before, as in Wang et al. 2019).
    """

    def __init__(self, norm1: LayerNorm, attn: Attention, norm2: LayerNorm, mlp: Mlp, drop_path: float = 0.0) -> None:
        self.norm1, self.attn = norm1, attn
        self.norm2, self.mlp = norm2, mlp
        self.drop_path = drop_path

    def forward(self, x: Array, rng: Any = None) -> tuple[Array, Back]:
        normed, back_norm1 = self.norm1(x)
        seen, back_attn = self.attn(normed, rng)  # (B, n, D)
        seen, back_path1 = F.drop_path(seen, self.drop_path, rng)
        asking, tokens = seen.shape[1], x.shape[1]
        middle = x[:, :asking] + seen
        normed, back_norm2 = self.norm2(middle)
        thought, back_mlp = self.mlp(normed, rng)
        thought, back_path2 = F.drop_path(thought, self.drop_path, rng)

        @once
        def back(dy: Array) -> Array:
            # in the forward pass: y = middle + thought(middle)
            dmiddle = dy + back_norm2(back_mlp(back_path2(dy)))
            # in the forward pass: middle = x[:, :n] + seen(x)
            dx = back_norm1(back_attn(back_path1(dmiddle)))
            if asking == tokens:
                return dx + dmiddle
            dx[:, :asking] += dmiddle
            return dx

        return middle + thought, back

    def macs(self, shape: tuple[int, ...]) -> int:
        """Multiply-adds for tokens (B, N, D)."""
        batch, tokens, dim = shape
        asking = tokens if self.attn.queries is None else min(self.attn.queries, tokens)
        return self.attn.macs(shape) + self.mlp.macs((batch, asking, dim))
