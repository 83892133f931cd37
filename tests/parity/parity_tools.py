"""What the parity tests share: two measures of error, tensors made of arrays, and parameters far from their start.

Where PyTorch is missing, the import of this file skips the test file that imports it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from minivit.nn import Layer

torch = pytest.importorskip(
    "torch", reason="the parity tests need PyTorch: install a CPU build and the `parity` extra, see CONTRIBUTING.md"
)

DTYPES = ["float64", "float32"]
FORWARD = {"float64": 1e-12, "float32": 2e-6}  # of the largest element of the output
MODEL_FORWARD = {"float64": 1e-12, "float32": 1e-5}  # of a whole model, whose layers round one after the other
GRADIENT = {"float64": 1e-10, "float32": 1e-5}  # of the largest gradient of the case, inputs and parameters together


def tensor(x: Any) -> Any:
    """A copy as a tensor; one of floats collects its gradient."""
    copy = torch.tensor(x)
    return copy.requires_grad_() if copy.is_floating_point() else copy


def check_forward(got: Any, expected: Any, limit: float | None = None) -> None:
    """The largest difference, relative to the largest element expected, is within the limit of the dtype."""
    got, expected = np.asarray(got), expected.detach().numpy()
    assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
    error = np.abs(got - expected).max() / np.abs(expected).max()
    limit = FORWARD[str(got.dtype)] if limit is None else limit
    assert error <= limit, f"forward: relative error {error:.1e} is above {limit:.0e}"  # also false for NaN


def check_gradients(got: Mapping[Any, Any], expected: Mapping[Any, Any], limit: float | None = None) -> None:
    """Every gradient agrees, measured by the largest element of all gradients of the case."""
    expected = {name: np.asarray(gradient) for name, gradient in expected.items()}
    assert got.keys() == expected.keys()
    largest = max(np.abs(gradient).max() for gradient in expected.values())
    for name, gradient in expected.items():
        ours = got[name]
        assert ours is not None, f"{name} has no gradient"
        assert (ours.shape, ours.dtype) == (gradient.shape, gradient.dtype), name
        error = np.abs(ours - gradient).max() / largest
        bound = GRADIENT[str(ours.dtype)] if limit is None else limit
        assert error <= bound, f"gradient of {name}: relative error {error:.1e} is above {bound:.0e}"


def compare_function(
    ours: Callable[..., Any], theirs: Callable[..., Any], arrays: list[Any], rng: Any, slack: float = 1.0
) -> None:
    """A function of `minivit.functional` against one of tensors: output, and gradients under a random dy.

    `slack` multiplies the limits.
    """
    tensors = [None if array is None else tensor(array) for array in arrays]
    expected = theirs(*tensors)
    y, vjp = ours(*arrays)
    dtype = str(arrays[0].dtype)
    check_forward(y, expected, slack * FORWARD[dtype])
    dy = np.asarray(rng.standard_normal(np.shape(y)), dtype=arrays[0].dtype)
    expected.backward(torch.tensor(dy))
    found = vjp(dy if dy.ndim else float(dy))
    found = found if isinstance(found, tuple) else (found,)
    given = [place for place, array in enumerate(arrays) if array is not None]
    assert all(found[place] is None for place in range(len(found)) if place not in given)
    wanted = {place: tensors[place].grad for place in given}
    check_gradients({place: found[place] for place in given}, wanted, slack * GRADIENT[dtype])


def compare_layer(
    layer: Layer, module: Any, x: Any, rng: Any, names: Mapping[str, str], call: Callable[..., Any] | None = None
) -> None:
    """A layer against a module whose parameters `names` translates: output, and all gradients under a random dy.

    `names` goes from the layer's names to the module's; `call(module, x)` replaces `module(x)`.
    """
    params, theirs = layer.parameters(), dict(module.named_parameters())
    assert names.keys() == params.keys()
    with torch.no_grad():
        for name, param in params.items():
            theirs[names[name]].copy_(torch.tensor(param.data))
    tx = tensor(x)
    expected = module(tx) if call is None else call(module, tx)
    y, back = layer(x)
    check_forward(y, expected)
    dy = rng.standard_normal(y.shape).astype(y.dtype)
    expected.backward(torch.tensor(dy))
    dx = back(dy)
    got = {name: param.grad for name, param in params.items()}
    wanted = {name: theirs[names[name]].grad for name in params}
    if tx.requires_grad:
        got["x"], wanted["x"] = dx, tx.grad
    check_gradients(got, wanted)


def randomize(layer: Layer, rng: Any, scale: float = 0.4) -> None:
    """Every parameter drawn again, gains about 1, others about 0: at their start many could be missed unseen."""
    for name, param in layer.parameters().items():
        gain = "norm" in name and name.endswith("weight")
        param.data = gain + scale * rng.standard_normal(param.shape)


def offset_rows(grid: tuple[int, int], prefix: int) -> list[list[int]]:
    """Which row of the bias table each pair of tokens reads, pair by pair (Swin's order, BEiT's three extra rows)."""
    h, w = grid
    offsets = (2 * h - 1) * (2 * w - 1)
    places = [None] * prefix + [(y, x) for y in range(h) for x in range(w)]

    def row(query: Any, key: Any) -> int:
        if query is None or key is None:
            return offsets + (2 if query is key else 0 if query is None else 1)
        return (query[0] - key[0] + h - 1) * (2 * w - 1) + (query[1] - key[1] + w - 1)

    return [[row(query, key) for key in places] for query in places]


# --- the names of transformers ---

_NAMES = [
    (r"^(vit|deit)\.", ""),
    (r"^embeddings\.", ""),
    (r"^position_embeddings$", "pos_embed"),
    (r"^distillation_token$", "dist_token"),
    (r"^patch_embeddings\.projection", "patch_embed.proj"),
    (r"^(layers|encoder\.layer)\.", "blocks."),
    (r"attention\.(?:attention\.)?(query|key|value)", lambda found: f"attn.{found[1][0]}_proj"),  # transformers 4
    (r"attention\.(o_proj|output\.dense)", "attn.proj"),
    (r"attention\.([qkv]_proj)", r"attn.\1"),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"(?<=\d)\.output\.dense", ".mlp.fc2"),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"^layernorm", "norm"),
    (r"^distillation_classifier", "head_dist"),
    (r"^(cls_)?classifier", "head"),
]


def timm_name(name: str) -> str:
    """The name in minivit of a parameter of transformers' ViT or DeiT; q, k and v still stand apart."""
    for pattern, new in _NAMES:
        name = re.sub(pattern, new, name)
    return name


def timm_arrays(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Transformers' parameters or gradients as arrays under minivit's names, q, k and v stacked into qkv."""
    apart = {timm_name(name): array.detach().numpy().copy() for name, array in tensors.items()}
    joined = {name: array for name, array in apart.items() if "_proj." not in name}
    for name in apart:
        if ".q_proj." in name:
            parts = [apart[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
            joined[name.replace("q_proj", "qkv")] = np.concatenate(parts)
    return joined
