"""The transformer encoder block: attention between tokens, then an MLP within each, both as additions to the stream.

With attention over all tokens it is ViT's block, with attention in shifted windows Swin's. Next: `convolution.py`.
"""

from __future__ import annotations

from typing import Any

from minivit import functional as F
from minivit.nn.attention import Attention
from minivit.nn.basic import LayerNorm
from minivit.nn.layer import Layer, by_tokens
from minivit.nn.mlp import Mlp
from minivit.nn.window_attention import ShiftedWindows
from minivit.protocol import Array, Back, once


class Block(Layer):
    """x <- x + drop_path(attn(norm1(x))); x <- x + drop_path(mlp(norm2(x))): (B, N, D) -> (B, n, D).

    A map (B, H, W, D) passes likewise when `attn` works on maps. With `post_norm` the norms come behind instead, as
    x + drop_path(norm1(attn(x))): Swin v2's residual post-normalisation, under which no branch can grow large.

    With `attn.queries = n` only the first n tokens come out. That is exact where nothing later reads the others: the
    last block before a head that reads the class token needs the other tokens' keys and values and nothing else.

    Sources: Dosovitskiy et al. 2021, equations 2 and 3 (norm before, as in Wang et al. 2019); Liu et al. 2022,
    section 3.2 (norm behind).
    """

    def __init__(
        self,
        norm1: LayerNorm,
        attn: Attention | ShiftedWindows,
        norm2: LayerNorm,
        mlp: Mlp,
        drop_path: float = 0.0,
        *,
        post_norm: bool = False,
    ) -> None:
        self.norm1, self.attn = norm1, attn
        self.norm2, self.mlp = norm2, mlp
        self.drop_path, self.post_norm = drop_path, post_norm

    def forward(self, x: Array, rng: Any = None) -> tuple[Array, Back]:
        seen, back_seen = self._branch(self.norm1, self.attn, x, rng)  # (B, n, D)
        asking = seen.shape[1]
        middle = x[:, :asking] + seen
        thought, back_thought = self._branch(self.norm2, self.mlp, middle, rng)

        @once
        def back(dy: Array) -> Array:
            # in the forward pass: y = middle + thought(middle)
            dmiddle = back_thought(dy)  # made by the norm of the branch, so nobody else's, and may be added to
            dmiddle += dy
            # in the forward pass: middle = x[:, :n] + seen(x)
            dx = back_seen(dmiddle)
            dx[:, :asking] += dmiddle
            return dx

        return middle + thought, back

    def _branch(self, norm: Layer, layer: Layer, x: Array, rng: Any) -> tuple[Array, Back]:
        """drop_path(layer(norm(x))), or drop_path(norm(layer(x)))."""
        first, last = (layer, norm) if self.post_norm else (norm, layer)
        middle, back_first = first(x, rng)
        whole, back_last = last(middle, rng)
        y, back_path = F.drop_path(whole, self.drop_path, rng)

        @once
        def back(dy: Array) -> Array:
            return back_first(back_last(back_path(dy)))

        return y, back

    def infer(self, x: Array, **context: Any) -> Array:
        seen = self._infer_branch(self.norm1, self.attn, x)  # (B, n, D)
        middle = x[:, : seen.shape[1]] + seen
        return by_tokens(lambda rows: rows + self._infer_branch(self.norm2, self.mlp, rows), middle)

    def _infer_branch(self, norm: Layer, layer: Layer, x: Array) -> Array:
        return norm.infer(layer.infer(x)) if self.post_norm else layer.infer(norm.infer(x))

    def macs(self, shape: tuple[int, ...]) -> int:
        """Multiply-adds for tokens (B, N, D) or a map (B, H, W, D)."""
        asking = shape if self.attn.queries is None else (shape[0], min(self.attn.queries, shape[1]), shape[2])
        return self.attn.macs(shape) + self.mlp.macs(asking)
