"""Blocks that differ from `Block`: scaled branches, and branches in parallel.

Notation: B batch, N tokens, D channels, M hidden channels of the MLP.
"""

from __future__ import annotations

from typing import Any

from minivit import functional as F
from minivit.device import array_module
from minivit.fast.half import in_dtype_of
from minivit.nn import init
from minivit.nn.attention import Attention
from minivit.nn.basic import DropPath, LayerScale, Linear
from minivit.nn.block import Block, add
from minivit.nn.heads import DifferentialHeads, Heads
from minivit.nn.layer import Chain, Layer
from minivit.nn.parameter import Parameter
from minivit.protocol import Array, Back, Rng, compose, once
from minivit.random import as_generator


class ScaledBlock(Block):
    """x <- x + drop_path(ls1(attn(norm1(x)))); x <- x + drop_path(ls2(mlp(norm2(x)))): a block with LayerScale.

    Args:
        norm1, attn, norm2, mlp, drop_path: as of `Block`.
        ls1, ls2: a `LayerScale` of each branch.

    Source: Touvron et al. 2021 (CaiT), section 2.1. DeiT III and DINOv2 have it.
    """

    def __init__(
        self,
        norm1: Any,
        attn: Attention,
        ls1: LayerScale,
        norm2: Any,
        mlp: Any,
        ls2: LayerScale,
        drop_path: float = 0.0,
    ) -> None:
        self.norm1, self.attn, self.ls1 = norm1, attn, ls1
        self.norm2, self.mlp, self.ls2 = norm2, mlp, ls2
        self.drop_path, self.post_norm = drop_path, False

    def _branch(self, norm: Layer, layer: Layer, x: Array, rng: Rng) -> tuple[Array, Back]:
        """ls(layer(norm(x)))."""
        return compose(x, norm, layer, self.ls1 if layer is self.attn else self.ls2, rng=rng)


class Branch(Chain):
    """A residual branch: norm, attention or MLP, scale, drop path; `kind` is the name of the second, as in timm."""

    def __init__(self, kind: str, norm: Layer, layer: Layer, ls: LayerScale | None, drop_path: float) -> None:
        self.norm = norm
        setattr(self, kind, layer)
        self.ls, self.drop = ls, DropPath(drop_path)


class ParallelThingsBlock(Layer):
    """x <- x + sum of attention branches; x <- x + sum of MLP branches: (B, N, D) -> (B, N, D).

    Two blocks in sequence, made wider instead of deeper.

    Args:
        attns: branches with attention.
        ffns: branches with an MLP.

    Source: Touvron et al. 2022, "Three things everyone should know about Vision Transformers", section 3; names are
    timm's.
    """

    def __init__(self, attns: list[Branch], ffns: list[Branch]) -> None:
        self.attns, self.ffns = attns, ffns

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Back]:
        return compose(x, lambda a: _added(a, self.attns, rng), lambda a: _added(a, self.ffns, rng))


def _added(x: Array, branches: list[Branch], rng: Rng) -> tuple[Array, Back]:
    """x + the sum of the branches of x."""
    outputs, backs = zip(*(branch(x, rng) for branch in branches))
    waiting = list(backs)

    @once
    def back(dy: Array) -> Array:
        dx = dy
        while waiting:
            dx = add(dx, waiting.pop()(dy))
        return dx

    return sum(outputs, start=x), back


class ParallelScalingBlock(Layer):
    """y = x + drop_path(ls(attention(h) + mlp(h))), h = in_norm(x): both branches read one norm and one projection.

    Args:
        dim: D.
        hidden: M.
        heads: a `Heads` or `DifferentialHeads`.
        norm: of the input.
        act: the MLP's nonlinearity.
        ls: a `LayerScale`, or None.
        qkv_bias: whether the joint projection has a bias; without it, the MLP has one of its own.
        proj_bias: whether the output projections have one.
        fused: one output projection of both branches, as in timm's differential block, instead of two.
        proj_drop: dropout rate of the MLP's hidden layer.
        drop_path: of the sum.

    Parameters: in_norm, in_proj.weight (M + 3D, D) with rows of the MLP, q, k and v, mlp_bias (M,), those of the
    heads, out_proj (D, D + M) or attn_out_proj (D, D) and mlp_out_proj (D, M), ls.gamma.

    Source: Dehghani et al. 2023 (ViT-22B), section 2; names are timm's.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        heads: Heads | DifferentialHeads,
        norm: Layer,
        act: Layer,
        ls: LayerScale | None = None,
        qkv_bias: bool = True,
        *,
        proj_bias: bool = True,
        fused: bool = False,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
        dtype: Any = "float32",
        seed: Any = None,
    ) -> None:
        rng, dtype = as_generator(seed), init.dtype_of(dtype)
        self.hidden, self.proj_drop, self.drop_path = hidden, proj_drop, drop_path
        self.mlp_bias = None if qkv_bias else Parameter(init.zeros((hidden,), dtype))
        self.in_norm = norm
        self.in_proj = Linear(dim, hidden + 3 * dim, qkv_bias, dtype=dtype, seed=rng)
        self.heads = heads
        self.mlp_act = act
        self.out_proj = Linear(dim + hidden, dim, proj_bias, dtype=dtype, seed=rng) if fused else None
        self.attn_out_proj = None if fused else Linear(dim, dim, proj_bias, dtype=dtype, seed=rng)
        self.mlp_out_proj = None if fused else Linear(hidden, dim, proj_bias, dtype=dtype, seed=rng)
        self.ls = ls

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Back]:
        branch, back_branch = compose(
            x,
            self.in_norm,
            self.in_proj,  # (B, N, M + 3D)
            lambda a: self._both(a, rng),  # (B, N, D + M): the heads, and the MLP's hidden layer
            self._out,  # (B, N, D)
            self.ls,
        )
        y, back_y = F.residual(x, branch, self.drop_path, rng)

        @once
        def back(dy: Array) -> Array:
            dx, dbranch = back_y(dy)
            return add(dx, back_branch(dbranch))

        return y, back

    def _both(self, x: Array, rng: Rng) -> tuple[Array, Back]:
        xp, size, own = array_module(x), self.hidden, self.mlp_bias
        before = x[..., :size] if own is None else x[..., :size] + in_dtype_of(x, own.data)
        hidden, back_hidden = compose(before, self.mlp_act, lambda a: F.dropout(a, self.proj_drop, rng))
        attended, back_heads = self.heads(x[..., size:], rng)  # (B, N, D)
        dim = attended.shape[-1]

        @once
        def back(dy: Array) -> Array:
            dbefore = back_hidden(dy[..., dim:])
            if own is not None:
                own.accumulate(dbefore.reshape(-1, size).sum(axis=0, dtype=own.data.dtype))
            return xp.concatenate((dbefore, back_heads(dy[..., :dim])), axis=-1)

        return xp.concatenate((attended, hidden), axis=-1), back

    def _out(self, x: Array) -> tuple[Array, Back]:
        """The output projections: one of both parts, or the sum of one of each."""
        if self.out_proj is not None:
            return self.out_proj(x)
        assert self.attn_out_proj is not None and self.mlp_out_proj is not None
        dim = x.shape[-1] - self.hidden
        attended, back_attended = self.attn_out_proj(x[..., :dim])
        transformed, back_transformed = self.mlp_out_proj(x[..., dim:])

        @once
        def back(dy: Array) -> Array:
            return array_module(dy).concatenate((back_attended(dy), back_transformed(dy)), axis=-1)

        return add(attended, transformed), back
