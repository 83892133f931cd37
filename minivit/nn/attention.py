"""Multi-head self-attention: several attention heads in parallel, each on its own part of the channels.

Notation: B batch, N tokens, n queries (all N, or those of the first few tokens), D channels, H heads, d = D/H head
size.
"""

from __future__ import annotations

from typing import Any

from minivit import functional as F
from minivit.device import array_module
from minivit.nn import init
from minivit.nn.basic import Linear
from minivit.nn.layer import Layer
from minivit.nn.parameter import Parameter
from minivit.nn.position_bias import RelativePositionBias
from minivit.protocol import Array, Back, Rng, compose, once
from minivit.random import as_generator


class Attention(Layer):
    """x (B, N, D) -> (B, n, D).

    Args:
        dim: D.
        num_heads: H, which must divide D.
        qkv_bias: whether the fused projection to q, k and v has a bias.
        attn_drop: dropout rate of the attention weights.
        proj_drop: dropout rate after the output projection.
        queries: how many of the first tokens have a query; None means all. Every token has a key and a value.
        position_bias: grid (h, w) of a relative position bias added to the scores, or None.
        prefix_tokens: tokens before the grid (the class token), for `position_bias`.
        proj_bias: whether the output projection has a bias.

    Parameters: qkv.weight (3D, D), rows q | k | v, each divided into heads in order; qkv.bias; proj.weight (D, D), the
    Wo that mixes the heads; proj.bias.

    Source: Vaswani et al. 2017, section 3.2.2; names and layout are timm's.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = True,
        *,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        queries: int | None = None,
        position_bias: tuple[int, int] | None = None,
        prefix_tokens: int = 0,
        proj_bias: bool = True,
        dtype: Any = "float32",
        seed: Any = None,
    ) -> None:
        if num_heads < 1 or dim % num_heads:
            raise ValueError(
                f"embed_dim={dim} is not divisible by num_heads={num_heads}: choose a number of heads that divides it"
            )
        rng, dtype = as_generator(seed), init.dtype_of(dtype)
        self.num_heads, self.queries = num_heads, queries
        self.attn_drop, self.proj_drop = attn_drop, proj_drop
        self.qkv = Linear(dim, 3 * dim, qkv_bias, dtype=dtype, seed=rng)
        self.position_bias = (
            RelativePositionBias(position_bias, num_heads, prefix_tokens, dtype=dtype, seed=rng)
            if position_bias is not None
            else None
        )
        self.proj = Linear(dim, dim, proj_bias, dtype=dtype, seed=rng)

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Back]:
        if self.queries is not None and self.queries < x.shape[1]:
            return self._forward_of_first(x, rng)
        qkv, back_qkv = self.project_qkv(x)  # (B, N, 3D)
        bias, back_bias = self._bias(x.shape[1])  # (H, N, N) or None
        attended, back_attention = F.self_attention(
            qkv, self.num_heads, bias=bias, dropout_rate=self.attn_drop, rng=rng
        )  # (B, N, D): the heads' outputs concatenated
        del qkv  # in inference, no other reference to it exists
        y, back_project = self._project(attended, rng)  # (B, N, D)

        @once
        def back(dy: Array) -> Array:
            dqkv, dbias = back_attention(back_project(dy))
            back_bias(dbias)
            return back_qkv(dqkv)

        return y, back

    def project_qkv(self, x: Array) -> tuple[Array, Back]:
        """The fused projection (..., N, 3D) to q | k | v."""
        return self.qkv(x)

    def _forward_of_first(self, x: Array, rng: Rng) -> tuple[Array, Back]:
        """Queries of the first tokens only, keys and values of all: enough for a head on the class token."""
        assert self.queries is not None
        first, back_first = F.crop(x, (self.queries, x.shape[2]))  # (B, n, D)
        bias, back_bias = self._bias(self.queries)
        dim = x.shape[2]
        (q,), back_q = self._project_rows(first, 0, dim)  # (B, H, n, d)
        (k, v), back_kv = self._project_rows(x, dim, 3 * dim)  # each (B, H, N, d)
        heads, back_attention = F.scaled_dot_product_attention(q, k, v, bias=bias, dropout_rate=self.attn_drop, rng=rng)
        attended, back_merge = F.merge_heads(heads)  # (B, n, D)
        y, back_project = self._project(attended, rng)  # (B, n, D)

        @once
        def back(dy: Array) -> Array:
            dq, dk, dv, dbias = back_attention(back_merge(back_project(dy)))
            back_bias(dbias)
            return back_kv(dk, dv) + back_first(back_q(dq))

        return y, back

    def _project_rows(self, x: Array, start: int, stop: int) -> tuple[tuple[Array, ...], Back]:
        """The heads of q, k or v, or of several: rows of the fused projection."""
        y, back_linear = self.qkv.rows(x, start, stop)
        heads, back_split = F.split_qkv(y, self.num_heads, (stop - start) // x.shape[2])

        @once
        def back(*dheads: Array) -> Array:
            return back_linear(back_split(*dheads))

        return heads, back

    def _bias(self, queries: int) -> tuple[Array | None, Back]:
        """The position bias of the scores (H, n, N), or None."""
        return (None, once(lambda dbias: None)) if self.position_bias is None else self.position_bias.bias(queries)

    def _project(self, attended: Array, rng: Rng) -> tuple[Array, Back]:
        """The heads' outputs mixed by the output projection, with its dropout."""
        return compose(attended, self.proj, lambda a: F.dropout(a, self.proj_drop, rng))


def project_without_key_bias(x: Array, qkv: Linear, q_bias: Parameter, v_bias: Parameter) -> tuple[Array, Back]:
    """The fused projection to q | k | v, whose bias is q's and v's with zeros for k."""
    xp = array_module(x)
    bias = xp.concatenate((q_bias.data, xp.zeros_like(q_bias.data), v_bias.data))  # (3D,)
    y, back_linear = qkv.with_bias(x, bias)  # (..., N, 3D)

    @once
    def back(dy: Array) -> Array:
        dx, dbias = back_linear(dy)
        dq_bias, _, dv_bias = dbias.reshape(3, q_bias.size)
        q_bias.accumulate(dq_bias)
        v_bias.accumulate(dv_bias)
        return dx

    return y, back
