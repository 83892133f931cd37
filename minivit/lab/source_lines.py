"""The lines of code that computed a tensor, and the lines of its backward pass, from the source itself.

A layer that calls one function of `minivit.functional` shows the reference formula of it; any other layer shows its own
`forward`.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

from minivit import functional as F, nn
from minivit.lab.switches import (
    NoResidual,
    NoScaledResidual,
    SwitchedAttention,
    SwitchedCosineWindowAttention,
    SwitchedWindowAttention,
)
from minivit.models.embedding import MapTokens, Tokens
from minivit.models.heads import Pool
from minivit.nn.patch_embed import PatchProjection
from minivit.observe.formulas import formula


def kind_of(layer: Any) -> str:
    """The class of a layer, or the name of a function such as a loss."""
    return type(layer).__name__ if isinstance(layer, nn.Layer) else str(layer.__name__)


def formula_of(layer: Any) -> str:
    """The formula in a line of text, also of a layer from which a part is left out."""
    if isinstance(layer, SwitchedAttention | SwitchedWindowAttention | SwitchedCosineWindowAttention):
        scale = "q k^T / sqrt(d)" if layer.scaled else "q k^T"
        if isinstance(layer, SwitchedCosineWindowAttention):
            scale = "s cos(q, k)" if layer.scaled else "cos(q, k)"
        kept = "" if layer.only_head is None else f", head {layer.only_head} alone"
        return f"proj({f'softmax({scale})' if layer.normalized else f'({scale})'} v){kept}"
    if isinstance(layer, NoScaledResidual):
        return "m = ls1(attn(norm1(x))); ls2(mlp(norm2(m)))"
    if isinstance(layer, NoResidual):
        return "m = norm1(attn(x)); norm2(mlp(m))" if layer.post_norm else "m = attn(norm1(x)); mlp(norm2(m))"
    return formula(layer)


class Lines(NamedTuple):
    """Attributes:
    name: of the function, such as "F.linear" or "Block.forward".
    forward: its lines, without the docstring.
    backward: the lines of its vjp or back; "" if it has none of its own.
    page: the derivation's page without its suffix, such as "derivations/linear"; "" if there is none.
    """

    name: str
    forward: str
    backward: str
    page: str


# the first kind that the layer is an instance of: function of `minivit.functional`, page
_FUNCTIONS: list[tuple[type, str, str]] = [
    (nn.LinearGELU, "linear_gelu", "derivations/gelu"),
    (nn.Linear, "linear", "derivations/linear"),
    (nn.LayerNorm, "layer_norm", "derivations/layer_norm"),
    (nn.GroupNorm, "group_norm", "derivations/group_norm"),
    (nn.BatchNorm2d, "batch_norm", "derivations/group_norm"),
    (nn.GELU, "gelu", "derivations/gelu"),
    (nn.ReLU, "relu", ""),
    (nn.Tanh, "tanh", ""),
    (nn.Embedding, "embedding", "derivations/linear"),
    (nn.Dropout, "dropout", "derivations/dropout"),
    (nn.Conv2d, "conv2d", "derivations/convolution"),
    (nn.MaxPool2d, "max_pool2d", ""),
    (SwitchedCosineWindowAttention, "", "derivations/cosine_attention"),
    (nn.CosineWindowAttention, "cosine_attention", "derivations/cosine_attention"),
    (SwitchedAttention, "", "derivations/attention"),
    (SwitchedWindowAttention, "", "derivations/windows"),
    (nn.Attention, "scaled_dot_product_attention", "derivations/attention"),
    (nn.ShiftedWindows, "", "derivations/windows"),
    (nn.PatchMerging, "patch_merging", "derivations/patch_merging"),
    (PatchProjection, "patch_embed", "derivations/patch_embed"),
    (NoResidual, "", "lessons/10_break_it"),
    (nn.Block, "", "lessons/06_vit_in_numbers"),
    (nn.Mlp, "", "derivations/gelu"),
    (Tokens, "", "lessons/06_vit_in_numbers"),
    (MapTokens, "", "lessons/08_swin"),
    (Pool, "", "lessons/06_vit_in_numbers"),
]


def lines_of(layer: Any) -> Lines:
    """The lines of a layer, or of a function of `minivit.functional` such as a loss."""
    if not isinstance(layer, nn.Layer):
        return _of_function(layer.__name__, "derivations/cross_entropy")
    name, page = next(((name, page) for kind, name, page in _FUNCTIONS if isinstance(layer, kind)), ("", ""))
    if name:
        return _of_function(name, page)
    kind = next(each for each in type(layer).__mro__ if "attend" in vars(each) or "forward" in vars(each))
    owner = next(each for each in type(layer).__mro__ if "attend" in vars(each)) if hasattr(layer, "attend") else kind
    method = "attend" if hasattr(layer, "attend") else "forward"
    return Lines(f"{type(layer).__name__}.{method}", *_split(vars(owner)[method]), page)


def _of_function(name: str, page: str) -> Lines:
    return Lines(f"F.{name}", *_split(getattr(F, name).plain), page)


@lru_cache(maxsize=256)
def _split(function: Callable[..., Any]) -> tuple[str, str]:
    """The lines of a function without signature and docstring, and those of the backward function inside it."""
    source = textwrap.dedent(inspect.getsource(inspect.unwrap(function)))
    lines, top = source.splitlines(), ast.parse(source).body[0]
    assert isinstance(top, ast.FunctionDef)
    body = top.body[1:] if ast.get_docstring(top) is not None else top.body
    inner = next((node for node in body if isinstance(node, ast.FunctionDef) and node.name in ("vjp", "back")), None)
    start = body[0].lineno - 1
    if inner is None:
        return _dedented(lines[start:]), ""
    end = min([inner.lineno, *(node.lineno for node in inner.decorator_list)]) - 1
    assert inner.end_lineno is not None
    rest = lines[inner.end_lineno :]
    return _dedented([*lines[start:end], *rest]), _dedented(lines[inner.body[0].lineno - 1 : inner.end_lineno])


def _dedented(lines: list[str]) -> str:
    return textwrap.dedent("\n".join(line for line in lines if line.strip())).strip("\n")
