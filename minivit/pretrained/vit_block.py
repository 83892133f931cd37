"""The options of a ViT's blocks, from the names and shapes of its first block."""

from __future__ import annotations

from typing import Any

Shapes = dict[str, tuple[int, ...]]

# where the parts of a first block stand: attention, its joint projection, its output, its norm, LayerScale
_PLACES = {
    "block": ("blocks.0.attn", "attn.qkv", "attn.proj", "norm1", "ls1"),
    "parallel_things": ("blocks.0.attns.0.attn", "attns.0.attn.qkv", "attns.0.attn.proj", "attns.0.norm", "attns.0.ls"),
    "parallel_scaling": ("blocks.0", "in_proj", "attn_out_proj", "in_norm", "ls"),
    "diff_parallel_scaling": ("blocks.0", "in_proj", "out_proj", "in_norm", "ls"),
}
_MLPS = {"block": "blocks.0.mlp", "parallel_things": "blocks.0.ffns.0.mlp"}


def arguments(shapes: Shapes, dim: int, config: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `ViT` that its blocks show.

    Args:
        shapes: by our names.
        dim: D.
        config: the arguments in config.json, for the initial value of a LayerScale.

    Raises:
        KeyError: if a part is missing.
    """
    block = _kind(shapes)
    attention, projection, output, norm, scale = _PLACES[block]
    size = shapes[f"{attention}.q_norm.weight"][0] if f"{attention}.q_norm.weight" in shapes else None
    differential = f"{attention}.lambda_q1" in shapes
    found: dict[str, Any] = {
        "block_fn": block,
        "qkv_bias": "qv" if f"{attention}.q_bias" in shapes else f"blocks.0.{projection}.bias" in shapes,
        "proj_bias": f"blocks.0.{output}.bias" in shapes,
        "norm_layer": "layernorm" if f"blocks.0.{norm}.bias" in shapes else "rmsnorm",
        "init_values": config.get("init_values", 1e-5) if f"blocks.0.{scale}.gamma" in shapes else None,
        "qk_norm": size is not None,
        "attn_layer": "diff" if differential and block in _MLPS else "",
        "scale_attn_norm": block in _MLPS and f"{attention}.norm.weight" in shapes,
    }
    if differential:
        size = shapes[f"{attention}.lambda_q1"][0] * 2
    if size is not None:
        found["num_heads"] = dim // size
    if block in _MLPS:
        mlp = _MLPS[block]
        kind, hidden = _mlp(shapes, mlp)
        found |= {"mlp_layer": kind, "scale_mlp_norm": f"{mlp}.norm.weight" in shapes}
    else:
        hidden = shapes["blocks.0.in_proj.weight"][0] - 3 * dim
    return found | {"mlp_ratio": ratio(hidden, dim)}


def ratio(hidden: int, dim: int) -> float:
    """A `mlp_ratio` that gives these hidden channels, which a model rounds down from dim times the ratio."""
    exact = hidden / dim
    return exact if int(dim * exact) == hidden else (hidden + 0.5) / dim


def _kind(shapes: Shapes) -> str:
    if "blocks.0.in_proj.weight" in shapes:
        return "diff_parallel_scaling" if "blocks.0.lambda_q1" in shapes else "parallel_scaling"
    return "parallel_things" if "blocks.0.attns.0.attn.qkv.weight" in shapes else "block"


def _mlp(shapes: Shapes, mlp: str) -> tuple[str, int]:
    """The kind of an MLP, and its hidden channels as `mlp_ratio` counts them."""
    if f"{mlp}.fc1_g.weight" in shapes:
        return "swiglu", shapes[f"{mlp}.fc1_g.weight"][0]
    rows, read = shapes[f"{mlp}.fc1.weight"][0], shapes[f"{mlp}.fc2.weight"][1]
    return "swiglu_packed" if rows == 2 * read else "mlp", rows
