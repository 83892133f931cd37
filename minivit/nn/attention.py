"""Multi-head self-attention: several small attentions side by side, each over its own part of the channels.

Alphabet: B batch, N tokens, n tokens that ask (all N, or only the first few), D channels, H heads, d = D/H head size.
Next: `window_attention.py`.
"""

from __future__ import annotations

from typing import Any

from minivit import functional as F
from minivit.backend import array_module, as_generator
from minivit.nn import init
from minivit.nn.basic import Linear
from minivit.nn.layer import Layer, Param
from minivit.nn.position_bias import RelativePositionBias
from minivit.protocol import Array, Back, once, refuse


class Attention(Layer):
    """x (B, N, D) -> (B, n, D).

    Args:
        dim: D.
        num_heads: H, which must divide D.
        qkv_bias: whether the fused projection to q, k and v has a bias.
        heads: how q, k and v (each (B, N, D)) become H heads of (B, N, d). "split" cuts the channels into H equal
            parts, as every published model does; "linear" gives each head its own learned map (D, d) of q, k and v.
            With maps that select columns both are the same.
        attn_drop: dropout rate of the attention weights.
        proj_drop: dropout rate after the output projection.
        queries: how many of the first tokens ask; None means all. Tokens that do not ask are still looked at.
        position_bias: grid (h, w) of a relative position bias added to the scores, or None.
        prefix_tokens: tokens before the grid (the class token), for `position_bias`.

    Parameters: qkv.weight (3D, D), rows q | k | v, each head after head; qkv.bias; proj.weight (D, D), the Wo that
    mixes the heads; proj.bias; with heads="linear" also head_maps (3, H, D, d).

    Source: Vaswani et al. 2017, section 3.2.2; names and layout are timm's.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = True,
        *,
        heads: str = "split",
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        queries: int | None = None,
        position_bias: tuple[int, int] | None = None,
        prefix_tokens: int = 0,
        dtype: Any = "float32",
        seed: Any = None,
    ) -> None:
        refuse(
            num_heads < 1 or dim % num_heads != 0,
            f"embed_dim={dim} is not divisible by num_heads={num_heads}: choose a number of heads that divides it",
        )
        refuse(heads not in ("split", "linear"), f"heads={heads!r}: choose 'split' or 'linear'")
        rng, dtype = as_generator(seed), init.dtype_of(dtype)
        self.num_heads, self.queries = num_heads, queries
        self.attn_drop, self.proj_drop = attn_drop, proj_drop
        self.qkv = Linear(dim, 3 * dim, qkv_bias, dtype=dtype, seed=rng)
        self.head_maps: Param | None = None
        if heads == "linear":
            shape = (3, num_heads, dim, dim // num_heads)
            self.head_maps = Param(init.normal(rng, shape, dim**-0.5, dtype))  # keeps the variance of q, k and v
        self.position_bias = (
            RelativePositionBias(position_bias, num_heads, prefix_tokens, dtype=dtype, seed=rng)
            if position_bias is not None
            else None
        )
        self.proj = Linear(dim, dim, dtype=dtype, seed=rng)

    def forward(self, x: Array, rng: Any = None) -> tuple[Array, Back]:
        bias, back_bias = self.position_bias.bias(self.queries) if self.position_bias else (None, None)
        (q, k, v), back_heads = self._heads(x)  # each (B, H, N, d), q (B, H, n, d)
        seen, back_attention = F.scaled_dot_product_attention(
            q, k, v, bias=bias, dropout_rate=self.attn_drop, rng=rng
        )  # (B, H, n, d)
        y, back_join = self._join(seen, rng)  # (B, n, D)

        @once
        def back(dy: Array) -> Array:
            dq, dk, dv, dbias = back_attention(back_join(dy))
            if back_bias is not None:
                back_bias(dbias)
            return back_heads(dq, dk, dv)

        return y, back

    def _join(self, seen: Array, rng: Any) -> tuple[Array, Back]:
        """The heads' outputs (..., H, n, d) side by side, mixed by the output projection: (..., n, D)."""
        joined, back_merge = F.merge_heads(seen)
        mixed, back_proj = self.proj(joined)
        y, back_drop = F.dropout(mixed, self.proj_drop, rng)

        @once
        def back(dy: Array) -> Array:
            return back_merge(back_proj(back_drop(dy)))

        return y, back

    def _heads(self, x: Array) -> tuple[tuple[Array, Array, Array], Back]:
        """x -> the heads' q, k, v; the back takes dq, dk, dv to dx."""
        if self.head_maps is not None:
            return self._mapped_heads(x)
        if self.queries is not None and self.queries < x.shape[1]:
            return self._heads_of_first(x, self.queries)
        qkv, back_qkv = self.qkv(x)  # (B, N, 3D)
        parts, back_split = F.split_qkv(qkv, self.num_heads)

        @once
        def back(dq: Array, dk: Array, dv: Array) -> Array:
            return back_qkv(back_split(dq, dk, dv))

        return parts, back

    def _heads_of_first(self, x: Array, asking: int) -> tuple[tuple[Array, Array, Array], Back]:
        """q of the first tokens only, k and v of all: what a head that reads the class token alone needs."""
        dim = x.shape[2]
        weight, bias = self.qkv.weight.data, None if self.qkv.bias is None else self.qkv.bias.data
        first, rest = slice(0, dim), slice(dim, 3 * dim)  # rows of q; rows of k and v
        q, vjp_q = F.linear(x[:, :asking], weight[first], None if bias is None else bias[first])  # (B, n, D)
        kv, vjp_kv = F.linear(x, weight[rest], None if bias is None else bias[rest])  # (B, N, 2D)
        q, back_q = F.split_heads(q, self.num_heads)
        k, back_k = F.split_heads(kv[:, :, :dim], self.num_heads)
        v, back_v = F.split_heads(kv[:, :, dim:], self.num_heads)

        @once
        def back(dq: Array, dk: Array, dv: Array) -> Array:
            xp = array_module(dq)
            dkv = xp.concatenate((back_k(dk), back_v(dv)), axis=2)  # (B, N, 2D)
            dx, dweight_kv, dbias_kv = vjp_kv(dkv)
            dx_asking, dweight_q, dbias_q = vjp_q(back_q(dq))
            dx[:, :asking] += dx_asking
            self.qkv.weight.accumulate(xp.concatenate((dweight_q, dweight_kv)))
            if self.qkv.bias is not None:
                self.qkv.bias.accumulate(xp.concatenate((dbias_q, dbias_kv)))
            return dx

        return (q, k, v), back

    def _mapped_heads(self, x: Array) -> tuple[tuple[Array, Array, Array], Back]:
        """heads="linear": head h's q is q M_h with M_h (D, d), likewise k and v."""
        head_maps = self.head_maps
        assert head_maps is not None
        maps = head_maps.data  # (3, H, D, d)
        xp = array_module(x)
        qkv, back_qkv = self.qkv(x)
        batch, tokens, channels = qkv.shape
        wide = qkv.reshape(batch, tokens, 3, channels // 3)  # (B, N, 3, D)
        q, k, v = xp.einsum("bnsc,shcd->sbhnd", wide, maps)  # each (B, H, N, d)
        asking = tokens if self.queries is None else self.queries

        @once
        def back(dq: Array, dk: Array, dv: Array) -> Array:
            if asking < tokens:
                silent = xp.zeros((batch, dq.shape[1], tokens - asking, dq.shape[3]), dq.dtype)
                dq = xp.concatenate((dq, silent), axis=2)
            dheads = xp.stack((dq, dk, dv))  # (3, B, H, N, d)
            head_maps.accumulate(xp.einsum("bnsc,sbhnd->shcd", wide, dheads))
            dwide = xp.einsum("sbhnd,shcd->bnsc", dheads, maps)
            return back_qkv(dwide.reshape(batch, tokens, channels))

        return (q[:, :, :asking], k, v), back

    def macs(self, shape: tuple[int, ...]) -> int:
        """Multiply-adds for tokens (B, N, D): projections to q, k, v and out of the heads, scores, weighted sums."""
        batch, tokens, dim = shape
        asking = tokens if self.queries is None else min(self.queries, tokens)
        projections = 2 * asking + 2 * tokens
        if self.head_maps is not None:
            projections = asking + 6 * tokens  # every token's q, k and v, and again through the heads' maps
        return batch * (projections * dim * dim + 2 * asking * tokens * dim)
