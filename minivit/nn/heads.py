"""Attention heads with more than softmax(q k^T) v: norms of q and k, rotary positions, and the difference of two maps.

`Attention` runs the plain heads in one fused function; these are the parts of `ComposedAttention`.

Notation: B batch, N tokens, D channels, H heads, d = D/H head size, p prefix tokens.
"""

from __future__ import annotations

from math import exp
from typing import Any

from minivit import functional as F
from minivit.device import array_module
from minivit.fast.half import in_dtype_of
from minivit.nn import init
from minivit.nn.attention import Attention, project_without_key_bias
from minivit.nn.basic import Linear, RMSNorm
from minivit.nn.layer import Layer, apply
from minivit.nn.parameter import Parameter
from minivit.nn.position_bias import RelativePositionBias
from minivit.protocol import Array, Back, Rng, compose, once
from minivit.random import as_generator


class Heads(Layer):
    """q | k | v (B, N, 3D) -> the heads' outputs concatenated (B, N, D).

    Args:
        num_heads: H.
        q_norm, k_norm: norms of each head's q and k, or None (Dehghani et al. 2023, section 2).
        rotate: a layer that turns q and k by their positions, or None.
        position_bias: a bias of the scores, or None.
        attn_drop: dropout rate of the attention weights.
    """

    names_in_parent = True

    def __init__(
        self,
        num_heads: int,
        *,
        q_norm: Layer | None = None,
        k_norm: Layer | None = None,
        rotate: Layer | None = None,
        position_bias: RelativePositionBias | None = None,
        attn_drop: float = 0.0,
    ) -> None:
        self.num_heads, self.attn_drop = num_heads, attn_drop
        self.q_norm, self.k_norm, self.rotate = q_norm, k_norm, rotate
        self.position_bias = position_bias

    def split(self, qkv: Array) -> tuple[tuple[Array, Array, Array], Back]:
        """q, k and v (B, H, N, d), as the scores use them."""
        (q, k, v), back_split = F.split_qkv(qkv, self.num_heads)  # each (B, H, N, d)
        q, back_q = compose(q, self.q_norm, self.rotate)
        k, back_k = compose(k, self.k_norm, self.rotate)

        @once
        def back(dq: Array, dk: Array, dv: Array) -> Array:
            return back_split(back_q(dq), back_k(dk), dv)

        return (q, k, v), back

    def bias(self) -> tuple[Array | None, Back]:
        """The bias of the scores (H, N, N), or None."""
        return (None, once(lambda dbias: None)) if self.position_bias is None else self.position_bias.bias()

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Back]:
        (q, k, v), back_split = self.split(x)
        bias, back_bias = self.bias()
        heads, back_attention = F.scaled_dot_product_attention(q, k, v, bias=bias, dropout_rate=self.attn_drop, rng=rng)
        y, back_merge = F.merge_heads(heads)  # (B, N, D)

        @once
        def back(dy: Array) -> Array:
            dq, dk, dv, dbias = back_attention(back_merge(dy))
            back_bias(dbias)
            return back_split(dq, dk, dv)

        return y, back


class DifferentialHeads(Layer):
    """q | k | v (B, N, 3D) -> (B, N, D): each head is the difference of two softmax maps, then a norm.

    Heads of D/H channels have two queries and two keys of half the size each, whose maps are subtracted.

    Args:
        dim: D.
        num_heads: H.
        index: of the block, by which the constant part of lambda grows from 0.2 towards 0.8.
        q_norm, k_norm: norms of d/2 channels, or None.
        attn_drop: dropout rate of the attention weights.

    Parameters: lambda_q1, lambda_k1, lambda_q2, lambda_k2 (d/2,), sub_norm.weight (d,).

    Source: Ye et al. 2024 (Differential Transformer), section 2; names are timm's.
    """

    names_in_parent = True

    def __init__(
        self,
        dim: int,
        num_heads: int,
        index: int,
        *,
        q_norm: Layer | None = None,
        k_norm: Layer | None = None,
        attn_drop: float = 0.0,
        dtype: Any = "float32",
        seed: Any = None,
    ) -> None:
        if dim % (2 * num_heads):
            raise ValueError(f"differential attention halves its {num_heads} heads, which must divide {dim} / 2")
        size, rng, dtype = dim // num_heads // 2, as_generator(seed), init.dtype_of(dtype)
        self.num_heads, self.attn_drop = num_heads, attn_drop
        self.lambda_init = 0.8 - 0.6 * exp(-0.3 * index)  # section 2.1
        self.q_norm, self.k_norm = q_norm, k_norm
        # std 0.1 is the authors' and timm's
        self.lambda_q1 = Parameter(init.normal(rng, (size,), 0.1, dtype))
        self.lambda_k1 = Parameter(init.normal(rng, (size,), 0.1, dtype))
        self.lambda_q2 = Parameter(init.normal(rng, (size,), 0.1, dtype))
        self.lambda_k2 = Parameter(init.normal(rng, (size,), 0.1, dtype))
        self.sub_norm = RMSNorm(2 * size, 1e-5, dtype=dtype)

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Back]:
        (q, k, v), back_split = F.split_qkv(x, self.num_heads)  # each (B, H, N, d)
        q, back_q = compose(q, _halved, self.q_norm)  # (B, 2H, N, d/2)
        k, back_k = compose(k, _halved, self.k_norm)
        heads, back_attention = apply(
            F.differential_attention, q, k, v, self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2,
            lambda_init=self.lambda_init, dropout_rate=self.attn_drop, rng=rng,
        )  # fmt: skip
        y, back_merge = compose(heads, self.sub_norm, self._scaled, F.merge_heads)  # (B, N, D)

        @once
        def back(dy: Array) -> Array:
            dq, dk, dv = back_attention(back_merge(dy))
            return back_split(back_q(dq), back_k(dk), dv)

        return y, back

    def _scaled(self, x: Array) -> tuple[Array, Back]:
        rate = 1 - self.lambda_init  # so that gradients are as large as without the difference (section 2.1)
        # bfloat16 times a number of Python's is float32
        return (x * rate).astype(x.dtype, copy=False), once(lambda dy: (dy * rate).astype(dy.dtype, copy=False))


def _halved(heads: Array) -> tuple[Array, Back]:
    """(B, H, N, d) -> (B, 2H, N, d/2): each head's channels as two heads."""
    batch, count, tokens, size = shape = heads.shape
    parts = heads.reshape(batch, count, tokens, 2, size // 2).swapaxes(2, 3)  # (B, H, 2, N, d/2)

    @once
    def back(dy: Array) -> Array:
        return dy.reshape(batch, count, 2, tokens, size // 2).swapaxes(2, 3).reshape(shape)

    return parts.reshape(batch, 2 * count, tokens, size // 2), back


class ComposedAttention(Attention):
    """x (B, N, D) -> (B, N, D): projection to q, k and v, the heads, a norm, and the output projection.

    Args:
        dim: D.
        heads: a `Heads` or `DifferentialHeads`.
        qkv_bias: True, False, or "qv" for a bias of q and of v alone, under timm's names q_bias and v_bias (a key's
            bias adds the same to all scores of a query).
        norm: a norm of the concatenated heads, or None (BEiT-3).
        proj_bias: whether the output projection has a bias.
        proj_drop: dropout rate after it.

    Parameters: qkv.weight (3D, D), qkv.bias or q_bias and v_bias, those of the heads, norm, proj.weight (D, D),
    proj.bias.
    """

    def __init__(
        self,
        dim: int,
        heads: Heads | DifferentialHeads,
        qkv_bias: bool | str = True,
        *,
        norm: Layer | None = None,
        proj_bias: bool = True,
        proj_drop: float = 0.0,
        dtype: Any = "float32",
        seed: Any = None,
    ) -> None:
        if qkv_bias not in (True, False, "qv"):
            raise ValueError(f"qkv_bias={qkv_bias!r}: choose True, False or 'qv'")
        rng, dtype = as_generator(seed), init.dtype_of(dtype)
        self.num_heads, self.queries, self.position_bias = heads.num_heads, None, None
        self.attn_drop, self.proj_drop = heads.attn_drop, proj_drop
        self.qkv = Linear(dim, 3 * dim, qkv_bias is True, dtype=dtype, seed=rng)
        self.q_bias = Parameter(init.zeros((dim,), dtype)) if qkv_bias == "qv" else None
        self.v_bias = Parameter(init.zeros((dim,), dtype)) if qkv_bias == "qv" else None
        self.heads = heads
        self.norm = norm
        self.proj = Linear(dim, dim, proj_bias, dtype=dtype, seed=rng)

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Back]:
        qkv, back_qkv = self.project_qkv(x)  # (B, N, 3D)
        y, back_rest = compose(
            qkv,
            lambda a: self.heads(a, rng),  # (B, N, D)
            self.norm,
            lambda a: self._project(a, rng),
        )

        @once
        def back(dy: Array) -> Array:
            return back_qkv(back_rest(dy))

        return y, back

    def project_qkv(self, x: Array) -> tuple[Array, Back]:
        """The fused projection (..., N, 3D) to q | k | v."""
        if self.q_bias is None or self.v_bias is None:
            return self.qkv(x)
        return project_without_key_bias(x, self.qkv, self.q_bias, self.v_bias)


class AttentionPool(Layer):
    """Tokens (B, N, D) -> one vector (B, D): a learned query attends to all tokens, then an MLP (SigLIP).

    y = p + mlp(norm(p)), with p = proj(softmax(q k^T / sqrt(d)) v) and q = q(latent).

    Args:
        dim: D.
        num_heads: H.
        norm: of p.
        mlp: of p.

    Parameters: latent (1, 1, D), q, kv (rows k | v), proj, norm, mlp.

    Source: Zhai et al. 2022, "Scaling Vision Transformers", section 2.1 (after Lee et al. 2019); names are timm's.
    """

    def __init__(
        self, dim: int, num_heads: int, norm: Layer, mlp: Layer, *, dtype: Any = "float32", seed: Any = None
    ) -> None:
        rng, dtype = as_generator(seed), init.dtype_of(dtype)
        self.num_heads = num_heads
        self.latent = Parameter(init.trunc_normal(rng, (1, 1, dim), dim**-0.5, dtype))
        self.q = Linear(dim, dim, dtype=dtype, seed=rng)
        self.kv = Linear(dim, 2 * dim, dtype=dtype, seed=rng)
        self.proj = Linear(dim, dim, dtype=dtype, seed=rng)
        self.norm, self.mlp = norm, mlp

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Back]:
        xp, batch = array_module(x), len(x)
        latent = in_dtype_of(x, self.latent.data)
        q, back_q = compose(latent, self.q, lambda a: F.split_heads(a, self.num_heads))  # (1, H, 1, d)
        kv, back_kv = self.kv(x)  # (B, N, 2D)
        (k, v), back_split = F.split_qkv(kv, self.num_heads, 2)  # each (B, H, N, d)
        queries = xp.broadcast_to(q, (batch, *q.shape[1:]))  # (B, H, 1, d): the same for every image
        heads, back_attention = F.scaled_dot_product_attention(queries, k, v)
        pooled, back_project = compose(heads, F.merge_heads, self.proj)  # (B, 1, D)
        transformed, back_mlp = compose(pooled, self.norm, lambda a: self.mlp(a, rng))

        @once
        def back(dy: Array) -> Array:
            dy = dy[:, None]  # (B, 1, D)
            dheads = back_project(dy + back_mlp(dy))
            dq, dk, dv, _ = back_attention(dheads)
            self.latent.accumulate(back_q(dq.sum(axis=0, keepdims=True)))
            return back_kv(back_split(dk, dv))

        return (pooled + transformed)[:, 0], back
