"""What inference computes once instead of at every call: parameters folded into the weights beside them.

Each identity is exact; only rounding differs. Notation: x a token of D channels, xhat the token normalized, g and s a
LayerNorm's gain and shift, W (O, D) and b (O,) the linear layer behind it, H heads of d channels.
"""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import numpy as np

from minivit import functional as F, nn
from minivit.nn import LayerNorm, Linear
from minivit.protocol import Array

L = TypeVar("L", bound=nn.Layer)


def linear(weight: Array, bias: Array | None, norm: LayerNorm | None) -> tuple[Array, Array]:
    """(W, b), so that W (g xhat + s) + b = (W g) xhat + (b + W s): the norm's gain and shift in the linear layer.

    Returns:
        the weight transposed, (D, O) in C order, with which OpenBLAS multiplies some 8% faster, and the bias (O,).
    """
    folded = np.zeros(len(weight), weight.dtype) if bias is None else bias.copy()
    if norm is None:
        return np.ascontiguousarray(weight.T), folded
    folded += weight @ norm.bias.data
    return np.ascontiguousarray((weight * norm.weight.data).T), folded


def projections(
    qkv: Linear, bias: Array | None, norm: LayerNorm | None, heads: int, scale: float
) -> tuple[Array, Array, Array]:
    """The projections to q, and to k and v, without a bias of k and v, and with 1/sqrt(d) in that of q.

    - scale (q k^T) = (scale q) k^T.
    - A constant in k adds the same to all scores of a query, and softmax does not change: it is dropped.
    - The weights of a query sum to 1, so a constant c in v is added to the output: softmax(.) (v + c) =
      softmax(.) v + c. It belongs to the bias of the output projection.

    Returns:
        Wqkv (D, H d + H 2 d), where k and v of a head stand together, bq (H d,), and the constants of k and v (H 2 d,).
    """
    weight, constant = linear(qkv.weight.data, bias, norm)  # (D, 3D), (3D,)
    dim = len(weight)
    by_head = weight.reshape(dim, 3, heads, dim // heads)  # (D, 3, H, d)
    constants = constant.reshape(3, heads, dim // heads)
    factor = weight.dtype.type(scale)
    w_q = by_head[:, 0].reshape(dim, dim) * factor
    w_kv = by_head[:, 1:].transpose(0, 2, 1, 3).reshape(dim, 2 * dim)  # (D, H 2 d)
    c_kv = constants[1:].transpose(1, 0, 2).reshape(2 * dim)
    return np.concatenate((w_q, w_kv), axis=1), constants[0].reshape(dim) * factor, c_kv


def output(proj: Linear, c_kv: Array, heads: int) -> tuple[Array, Array]:
    """Wo (H d, D) and bo + Wo c, with the constant c of v."""
    weight, bias = linear(proj.weight.data, None if proj.bias is None else proj.bias.data, None)
    constant = c_kv.reshape(heads, 2, -1)[:, 1].reshape(-1)  # (H d,)
    return weight, bias + constant @ weight


def copied(layer: L) -> L:
    """A layer with its own parameters, without gradients; the weights of its convolutions are standardized now."""
    memo: dict[int, Any] = {id(value): value for value in layer.constants()}
    for param in layer.parameters().values():
        memo[id(param.grad)] = None
    twin = copy.deepcopy(layer, memo)
    _standardize(twin)
    return twin


def _standardize(layer: Any) -> None:
    for name, value in list(vars(layer).items()):
        parts = value if isinstance(value, list) else [value]
        for part in parts:
            if type(part) is nn.StdConv2d:
                weight, _ = F.standardize_weight(part.weight.data, eps=part.eps, outside=part.outside)
                plain = object.__new__(nn.Conv2d)
                vars(plain).update({key: each for key, each in vars(part).items() if key not in ("eps", "outside")})
                plain.weight = nn.Parameter(weight)
                setattr(layer, name, plain)
            elif isinstance(part, nn.Layer):
                _standardize(part)
