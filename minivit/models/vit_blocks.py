"""The blocks of a ViT: each is composed of the norm, the attention and the MLP that the options name.

Notation: D channels, H heads, d = D/H.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minivit.models.options import patch_grid, prefix_tokens, tokens_read
from minivit.models.vit_options import ViTOptions
from minivit.nn import (
    GELU,
    Attention,
    AttentionPool,
    Block,
    Branch,
    ComposedAttention,
    DifferentialHeads,
    Heads,
    Layer,
    LayerNorm,
    LayerScale,
    Mlp,
    PackedSwiGLU,
    ParallelScalingBlock,
    ParallelThingsBlock,
    QuickGELU,
    RelativePositionBias,
    RMSNorm,
    RotaryPositions,
    ScaledBlock,
    SwiGLU,
)
from minivit.protocol import Rng

NORMS: dict[str, type[LayerNorm] | type[RMSNorm]] = {"layernorm": LayerNorm, "rmsnorm": RMSNorm}


def make_norm(o: ViTOptions, dim: int) -> LayerNorm | RMSNorm:
    """The norm of the options, over `dim` channels."""
    return NORMS[o.norm_layer](dim, o.norm_eps, dtype=o.dtype)


def make_block(o: ViTOptions, index: int, rng: Rng) -> Layer:
    """The block number `index`, whose drop path rate rises linearly from 0 at the first block."""
    return _BLOCKS[o.block_fn](o, index, o.drop_path_rate * index / max(1, o.depth - 1), rng)


def _block(o: ViTOptions, index: int, drop_path: float, rng: Rng) -> Layer:
    attention, mlp = _attention(o, index, rng), _mlp(o, rng)
    if o.post_norm:
        first, second = (LayerNorm(o.embed_dim, o.norm_eps, zero=True, dtype=o.dtype) for _ in range(2))
        return Block(first, attention, second, mlp, drop_path, post_norm=True)
    norm1, norm2 = make_norm(o, o.embed_dim), make_norm(o, o.embed_dim)
    ls1, ls2 = _scale(o), _scale(o)
    if ls1 is None or ls2 is None:
        return Block(norm1, attention, norm2, mlp, drop_path)
    return ScaledBlock(norm1, attention, ls1, norm2, mlp, ls2, drop_path)


def _parallel_things(o: ViTOptions, index: int, drop_path: float, rng: Rng) -> Layer:
    def branches(kind: str, layers: list[Layer]) -> list[Branch]:
        return [Branch(kind, make_norm(o, o.embed_dim), layer, _scale(o), drop_path) for layer in layers]

    return ParallelThingsBlock(
        branches("attn", [_attention(o, index, rng) for _ in range(2)]),
        branches("mlp", [_mlp(o, rng) for _ in range(2)]),
    )


def _parallel_scaling(o: ViTOptions, index: int, drop_path: float, rng: Rng) -> Layer:
    differential = o.block_fn == "diff_parallel_scaling"
    return ParallelScalingBlock(
        o.embed_dim,
        int(o.embed_dim * o.mlp_ratio),
        _heads(o, index, differential, rng),
        make_norm(o, o.embed_dim),
        QuickGELU() if o.gelu == "quick" else GELU(o.gelu),
        _scale(o),
        bool(o.qkv_bias),
        proj_bias=o.proj_bias,
        fused=differential,
        proj_drop=o.proj_drop_rate,
        drop_path=drop_path,
        dtype=o.dtype,
        seed=rng,
    )


def make_attention_pool(o: ViTOptions, rng: Rng) -> AttentionPool:
    """The pooling of `global_pool="map"`."""
    hidden = int(o.embed_dim * o.mlp_ratio)
    mlp = Mlp(o.embed_dim, hidden, gelu=o.gelu, dtype=o.dtype, seed=rng)
    return AttentionPool(o.embed_dim, o.num_heads, make_norm(o, o.embed_dim), mlp, dtype=o.dtype, seed=rng)


_BLOCKS: dict[str, Callable[[ViTOptions, int, float, Rng], Layer]] = {
    "block": _block,
    "parallel_things": _parallel_things,
    "parallel_scaling": _parallel_scaling,
    "diff_parallel_scaling": _parallel_scaling,
}


def _scale(o: ViTOptions) -> LayerScale | None:
    return None if o.init_values is None else LayerScale(o.embed_dim, o.init_values, dtype=o.dtype)


def _attention(o: ViTOptions, index: int, rng: Rng) -> Attention:
    differential = o.attn_layer == "diff"
    if differential or o.qk_norm or o.scale_attn_norm or o.qkv_bias == "qv" or o.pos_embed == "rotary":
        return ComposedAttention(
            o.embed_dim,
            _heads(o, index, differential, rng),
            o.qkv_bias,
            norm=make_norm(o, o.embed_dim) if o.scale_attn_norm else None,
            proj_bias=o.proj_bias,
            proj_drop=o.proj_drop_rate,
            dtype=o.dtype,
            seed=rng,
        )
    # only a plain block leaves out the tokens without a query
    only_read = index == o.depth - 1 and o.skip_unused_tokens and o.block_fn == "block"
    return Attention(
        o.embed_dim,
        o.num_heads,
        bool(o.qkv_bias),
        attn_drop=o.attn_drop_rate,
        proj_drop=o.proj_drop_rate,
        queries=tokens_read(o.config()) if only_read else None,
        position_bias=patch_grid(o.config()) if o.pos_embed == "relative" else None,
        prefix_tokens=prefix_tokens(o.config()),
        proj_bias=o.proj_bias,
        dtype=o.dtype,
        seed=rng,
    )


def _heads(o: ViTOptions, index: int, differential: bool, rng: Rng) -> Heads | DifferentialHeads:
    size = o.embed_dim // o.num_heads // (2 if differential else 1)
    norms: dict[str, Any] = {name: make_norm(o, size) for name in ("q_norm", "k_norm") if o.qk_norm}
    if differential:
        more: dict[str, Any] = {**norms, "attn_drop": o.attn_drop_rate, "dtype": o.dtype, "seed": rng}
        return DifferentialHeads(o.embed_dim, o.num_heads, index, **more)
    grid, prefix, relative = patch_grid(o.config()), prefix_tokens(o.config()), o.pos_embed == "relative"
    return Heads(
        o.num_heads,
        **norms,
        rotate=RotaryPositions(grid, size, prefix, periods=o.rotary_periods) if o.pos_embed == "rotary" else None,
        position_bias=RelativePositionBias(grid, o.num_heads, prefix, dtype=o.dtype, seed=rng) if relative else None,
        attn_drop=o.attn_drop_rate,
    )


def _mlp(o: ViTOptions, rng: Rng) -> Mlp | SwiGLU:
    hidden = int(o.embed_dim * o.mlp_ratio)
    more: dict[str, Any] = {
        "drop": o.proj_drop_rate,
        "bias": o.proj_bias,
        "norm": make_norm(o, hidden // 2 if o.mlp_layer == "swiglu_packed" else hidden) if o.scale_mlp_norm else None,
        "dtype": o.dtype,
        "seed": rng,
    }
    if o.mlp_layer == "mlp":
        return Mlp(o.embed_dim, hidden, gelu=o.gelu, **more)
    return (SwiGLU if o.mlp_layer == "swiglu" else PackedSwiGLU)(o.embed_dim, hidden, **more)
