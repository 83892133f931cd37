"""Every layer against PyTorch's module of the same kind, with the same random parameters.

Outputs, the gradient of the input and the gradients of all parameters agree, in float64 and in float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from parity_tools import DTYPES, compare_layer, offset_rows, randomize, torch

from minivit import nn

B, N, D, H = 3, 5, 12, 3  # images, tokens, channels, heads

MHA_NAMES = {
    "qkv.weight": "in_proj_weight",
    "qkv.bias": "in_proj_bias",
    "proj.weight": "out_proj.weight",
    "proj.bias": "out_proj.bias",
}


def drawn(seed: int, *shape: int, dtype: str = "float64") -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def low_and_high(seed: int, dtype: str) -> Any:
    """Tokens (B, N, D) of which every other has a variance near eps."""
    x = drawn(seed, B, N, D, dtype=dtype)
    x[:, ::2] *= np.asarray(1.5e-3, dtype)
    return x


def torch_dtype(dtype: str) -> Any:
    return getattr(torch, dtype)


def same_names(layer: nn.Layer) -> dict[str, str]:
    return {name: name for name in layer.parameters()}


def check(layer: nn.Layer, module: Any, x: Any, names: Any = None, call: Any = None) -> None:
    rng = np.random.default_rng(1)
    randomize(layer, rng)
    compare_layer(layer, module, x, rng, same_names(layer) if names is None else names, call)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
def test_linear(bias: bool, dtype: str) -> None:
    layer = nn.Linear(D, 7, bias, dtype=dtype, seed=0)
    check(layer, torch.nn.Linear(D, 7, bias, dtype=torch_dtype(dtype)), drawn(2, B, N, D, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("eps", [1e-5, 1e-6])
def test_layer_norm(eps: float, dtype: str) -> None:
    layer = nn.LayerNorm(D, eps, dtype=dtype)
    check(layer, torch.nn.LayerNorm(D, eps, dtype=torch_dtype(dtype)), low_and_high(2, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_embedding(dtype: str) -> None:
    layer = nn.Embedding(6, D, dtype=dtype, seed=0)
    index = np.random.default_rng(2).integers(0, 5, (B, N))
    check(layer, torch.nn.Embedding(6, D, dtype=torch_dtype(dtype)), index)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("eps", [None, 1e-5])
def test_patch_embed(eps: float | None, dtype: str) -> None:
    layer = nn.PatchEmbed((2, 4), 3, D, norm_eps=eps, dtype=dtype, seed=0)
    module = torch.nn.ModuleDict({"proj": torch.nn.Conv2d(3, D, (2, 4), (2, 4), dtype=torch_dtype(dtype))})
    if eps is not None:
        module["norm"] = torch.nn.LayerNorm(D, eps, dtype=torch_dtype(dtype))

    def call(module: Any, x: Any) -> Any:
        tokens = module["proj"](x).flatten(2).transpose(1, 2)
        return tokens if eps is None else module["norm"](tokens)

    check(layer, module, drawn(2, B, 3, 6, 8, dtype=dtype), call=call)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sequential_has_the_same_names_and_numbers(dtype: str) -> None:
    ours = nn.Sequential(
        nn.Linear(D, 8, dtype=dtype, seed=0),
        nn.GELU("tanh"),
        nn.LayerNorm(8, 1e-5, dtype=dtype),
        nn.Linear(8, 9, False, dtype=dtype, seed=1),
        nn.Tanh(),
        nn.Linear(9, 6, dtype=dtype, seed=2),
        nn.ReLU(),
        nn.GELU(),
    )
    theirs = torch.nn.Sequential(
        torch.nn.Linear(D, 8),
        torch.nn.GELU("tanh"),
        torch.nn.LayerNorm(8),
        torch.nn.Linear(8, 9, False),
        torch.nn.Tanh(),
        torch.nn.Linear(9, 6),
        torch.nn.ReLU(),
        torch.nn.GELU(),
    ).to(torch_dtype(dtype))
    check(ours, theirs, drawn(2, B, N, D, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gelu", ["none", "tanh"])
def test_mlp(gelu: str, dtype: str) -> None:
    layer = nn.Mlp(D, 20, gelu=gelu, dtype=dtype, seed=0)
    module = torch.nn.Sequential(torch.nn.Linear(D, 20), torch.nn.GELU(gelu), torch.nn.Linear(20, D))
    names = {"fc1.weight": "0.weight", "fc1.bias": "0.bias", "fc2.weight": "2.weight", "fc2.bias": "2.bias"}
    check(layer, module.to(torch_dtype(dtype)), drawn(2, B, N, D, dtype=dtype), names)


def attend(module: Any, x: Any, mask: Any = None) -> Any:
    return module(x, x, x, attn_mask=mask, need_weights=False)[0]


def multihead(dtype: str) -> Any:
    return torch.nn.MultiheadAttention(D, H, batch_first=True, dtype=torch_dtype(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("queries", [None, 1, 2, N, N + 1])
def test_attention(queries: int | None, dtype: str) -> None:
    # with queries=n, the first n of all outputs, and gradients as if nothing had read the others
    layer = nn.Attention(D, H, queries=queries, dtype=dtype, seed=0)
    check(
        layer,
        multihead(dtype),
        drawn(2, B, N, D, dtype=dtype),
        MHA_NAMES,
        lambda module, x: attend(module, x)[:, :queries],
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("queries", [None, 2])
def test_attention_without_a_bias_of_q_k_v(queries: int | None, dtype: str) -> None:
    layer = nn.Attention(D, H, qkv_bias=False, queries=queries, dtype=dtype, seed=0)
    names = {name: other for name, other in MHA_NAMES.items() if name != "qkv.bias"}
    module = multihead(dtype)
    torch.nn.init.zeros_(module.in_proj_bias)
    check(layer, module, drawn(2, B, N, D, dtype=dtype), names, lambda module, x: attend(module, x)[:, :queries])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("prefix", "queries"), [(0, None), (1, None), (1, 1), (2, 2)])
def test_attention_with_relative_positions(prefix: int, queries: int | None, dtype: str) -> None:
    grid = (2, 3)
    layer = nn.Attention(D, H, queries=queries, position_bias=grid, prefix_tokens=prefix, dtype=dtype, seed=0)
    module = multihead(dtype)
    table = torch.zeros_like(torch.tensor(layer.position_bias.relative_position_bias_table.data))
    module.register_parameter("table", torch.nn.Parameter(table))
    names = {**MHA_NAMES, "relative_position_bias_table": "table"}
    rows = torch.tensor(offset_rows(grid, prefix))

    def call(module: Any, x: Any) -> Any:
        bias = module.table[rows].permute(2, 0, 1)  # (H, N, N)
        return attend(module, x, bias.repeat(B, 1, 1))[:, :queries]

    check(layer, module, drawn(2, B, prefix + 6, D, dtype=dtype), names, call)


BLOCK_NAMES = {
    "norm1.weight": "norm1.weight",
    "norm1.bias": "norm1.bias",
    **{f"attn.{name}": f"self_attn.{other}" for name, other in MHA_NAMES.items()},
    "norm2.weight": "norm2.weight",
    "norm2.bias": "norm2.bias",
    "mlp.fc1.weight": "linear1.weight",
    "mlp.fc1.bias": "linear1.bias",
    "mlp.fc2.weight": "linear2.weight",
    "mlp.fc2.bias": "linear2.bias",
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gelu", ["none", "tanh"])
@pytest.mark.parametrize("eps", [1e-5, 1e-6])
@pytest.mark.parametrize("queries", [None, 2])
def test_block(queries: int | None, eps: float, gelu: str, dtype: str) -> None:
    block = nn.Block(
        nn.LayerNorm(D, eps, dtype=dtype),
        nn.Attention(D, H, queries=queries, dtype=dtype, seed=0),
        nn.LayerNorm(D, eps, dtype=dtype),
        nn.Mlp(D, 20, gelu=gelu, dtype=dtype, seed=1),
    )
    module = torch.nn.TransformerEncoderLayer(
        D,
        H,
        dim_feedforward=20,
        dropout=0.0,
        activation=lambda x: torch.nn.functional.gelu(x, approximate=gelu),
        layer_norm_eps=eps,
        batch_first=True,
        norm_first=True,
        dtype=torch_dtype(dtype),
    )
    check(block, module, low_and_high(2, dtype), BLOCK_NAMES, lambda module, x: module(x)[:, :queries])


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_encoder_of_blocks(dtype: str) -> None:
    blocks = nn.Sequential(
        *(
            nn.Block(
                nn.LayerNorm(D, 1e-6, dtype=dtype),
                nn.Attention(D, H, dtype=dtype, seed=index),
                nn.LayerNorm(D, 1e-6, dtype=dtype),
                nn.Mlp(D, 20, dtype=dtype, seed=index),
            )
            for index in range(3)
        )
    )
    layer = torch.nn.TransformerEncoderLayer(
        D, H, 20, 0.0, torch.nn.functional.gelu, 1e-6, batch_first=True, norm_first=True, dtype=torch_dtype(dtype)
    )
    module = torch.nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    names = {f"{i}.{name}": f"layers.{i}.{other}" for i in range(3) for name, other in BLOCK_NAMES.items()}
    check(blocks, module, drawn(2, B, N, D, dtype=dtype), names)
