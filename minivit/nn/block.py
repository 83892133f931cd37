"""The transformer encoder block: attention between tokens, then an MLP of each token, both as residual branches.

With attention over all tokens this is ViT's block; with attention in shifted windows, Swin's.
"""

from __future__ import annotations

from minivit import functional as F
from minivit.fast.dispatch import accelerated
from minivit.nn.attention import Attention
from minivit.nn.basic import LayerNorm, RMSNorm
from minivit.nn.layer import Layer
from minivit.nn.mlp import Mlp, SwiGLU
from minivit.nn.window_attention import ShiftedWindows
from minivit.protocol import Array, Back, Rng, compose, once


def sum_of_two(a: Array, b: Array) -> Array:
    """a + b, of one shape: a residual connection forward, the two parts of its gradient backward."""
    return a + b


add = accelerated(sum_of_two, any_dtype=True)


class Block(Layer):
    """x <- x + drop_path(attn(norm1(x))); x <- x + drop_path(mlp(norm2(x))): (B, N, D) -> (B, n, D).

    A map (B, H, W, D) is accepted when `attn` works on maps. With `post_norm` the norms follow the branches, as
    x + drop_path(norm1(attn(x))): Swin v2's residual post-normalization, which bounds each branch's output.

    With `attn.queries = n` only the first n tokens are computed. That is exact where no later layer reads the others:
    the last block before a head on the class token needs only the keys and values of the other tokens.

    Sources: Dosovitskiy et al. 2021, equations 2 and 3 (norm before, as in Wang et al. 2019); Liu et al. 2022,
    section 3.2 (norm after).
    """

    def __init__(
        self,
        norm1: LayerNorm | RMSNorm,
        attn: Attention | ShiftedWindows,
        norm2: LayerNorm | RMSNorm,
        mlp: Mlp | SwiGLU,
        drop_path: float = 0.0,
        *,
        post_norm: bool = False,
    ) -> None:
        self.norm1, self.attn = norm1, attn
        self.norm2, self.mlp = norm2, mlp
        self.drop_path, self.post_norm = drop_path, post_norm

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Back]:
        attended, back_attn = self._branch(self.norm1, self.attn, x, rng)  # (B, n, D)
        shortcut, back_shortcut = F.crop(x, attended.shape[1:3])  # all tokens, or the first n
        middle, back_middle = F.residual(shortcut, attended, self.drop_path, rng)
        del attended  # before the activations of the MLP are made
        transformed, back_mlp = self._branch(self.norm2, self.mlp, middle, rng)
        y, back_y = F.residual(middle, transformed, self.drop_path, rng)

        @once
        def back(dy: Array) -> Array:
            # y = middle + drop_path(transformed(middle))
            dshortcut, dtransformed = back_y(dy)
            dmiddle = add(dshortcut, back_mlp(dtransformed))
            # middle = shortcut(x) + drop_path(attended(x))
            dshortcut, dattended = back_middle(dmiddle)
            return add(back_shortcut(dshortcut), back_attn(dattended))

        return y, back

    def _branch(self, norm: Layer, layer: Layer, x: Array, rng: Rng) -> tuple[Array, Back]:
        """layer(norm(x)), or norm(layer(x))."""
        return compose(x, *((layer, norm) if self.post_norm else (norm, layer)), rng=rng)
