"""A transformer block prepared for inference: sums over heads and over hidden units.

    x += sum over heads h of softmax(q_h k_h^T + t_h) v_h Wo_h + bo,   q, k, v = xhat Wq + bq, xhat Wk, xhat Wv
    x += sum over hidden units u of gelu(xhat w1_u + b1_u) w2_u + b2

xhat is x normalized; gain, shift, 1/sqrt(d) and the biases of k and v are folded (folding.py), and t_h are the
position bias and the mask of a window, summed. With `post_norm` (Swin v2) the normalized branches are added.

Notation: W windows, or images of a ViT; N tokens of each, n of them with a query; D channels, H heads, d = D / H.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from minivit import functional as F, nn
from minivit.fast.numpy.activation import exponentials
from minivit.fast.numpy.norm import normalize_rows
from minivit.functional.attention import MAX_LOGIT_SCALE
from minivit.inference import folding
from minivit.inference.gelu import EXACT, TANH
from minivit.inference.memory import Memory
from minivit.protocol import Array

Tables = Sequence[tuple[slice, Array]]  # (windows, (H, n, N)): what is added to the scores of these windows
_SCORES = 1 << 18  # scores of some windows at a time: 1 MiB in float32, a core's L2 cache
_HUGE, _TINY = 1e26, 1e-20  # of the sum of a row's exponentials: products of such weights stay inside float32


class Context(NamedTuple):
    """What a block needs to know besides its tokens (W, N, D).

    Attributes:
        tables: added to the scores.
        padded: (W, N) booleans, the pixels that pad a window; None: none.
    """

    tables: Tables = ()
    padded: Array | None = None


class Attention:
    """Normalized tokens (W, N, D) -> the output projection of the heads (W, n, D), without its bias."""

    def __init__(self, attention: nn.Attention, norm: nn.LayerNorm | None) -> None:
        cosine = isinstance(attention, nn.CosineWindowAttention)
        self.heads, self.queries = attention.num_heads, attention.queries
        scale = 1.0 if cosine else (len(attention.proj.weight.data) // self.heads) ** -0.5
        bias = None if attention.qkv.bias is None else attention.qkv.bias.data
        self.factor: Array | None = None
        if isinstance(attention, nn.CosineWindowAttention):
            self.factor = np.exp(np.minimum(attention.logit_scale.data, MAX_LOGIT_SCALE))  # (H, 1, 1)
            if attention.q_bias is not None and attention.v_bias is not None:
                q_bias, v_bias = attention.q_bias.data, attention.v_bias.data
                bias = np.concatenate((q_bias, np.zeros_like(q_bias), v_bias))
        self.w_qkv, self.b_q, c_kv = folding.projections(attention.qkv, bias, norm, self.heads, scale)
        # a padded pixel, x = 0 behind the norm, has the biases of k and v alone, and the constant is not in its kv
        self.padding = folding.projections(attention.qkv, bias, None, self.heads, scale)[2] - c_kv  # (2D,)
        self.w_o, self.b_o = folding.output(attention.proj, c_kv, self.heads)

    def __call__(self, memory: Memory, xhat: Array, context: Context) -> Array:
        windows, tokens, dim = xhat.shape
        heads, size = self.heads, dim // self.heads
        if self.queries is None:
            qkv = product(xhat, self.w_qkv, memory.buffer("qkv", windows, tokens, 3 * dim))
            q, kv = qkv[..., :dim], qkv[..., dim:]
        else:
            asking = xhat[:, : self.queries]
            q = product(asking, self.w_qkv[:, :dim], memory.buffer("q", windows, asking.shape[1], dim))
            kv = product(xhat, self.w_qkv[:, dim:], memory.buffer("qkv", windows, tokens, 2 * dim))
        if context.padded is not None:
            kv[context.padded] = self.padding
        q += self.b_q
        q = q.reshape(windows, q.shape[1], heads, size).swapaxes(1, 2)  # (W, H, n, d)
        k, v = kv.reshape(windows, tokens, heads, 2, size).transpose(3, 0, 2, 1, 4)  # each (W, H, N, d)
        if self.factor is not None:
            q, k = F.normalize(q)[0] * self.factor, F.normalize(k)[0]
        y = memory.buffer("heads", windows, q.shape[2], dim)
        attend(memory, q, k, v, context.tables, y)
        return product(y, self.w_o, memory.buffer("term", *y.shape))


def attend(memory: Memory, q: Array, k: Array, v: Array, tables: Tables, y: Array) -> None:
    """Write softmax(q k^T + tables) v, the heads' outputs concatenated, into y (W, n, h d); a few windows at a time."""
    windows, heads, queries, size = q.shape
    if not q.size:
        return
    keys = k.shape[2]
    few = max(1, _SCORES // (heads * queries * keys))
    by_head = y.reshape(windows, queries, heads, size).swapaxes(1, 2)  # (W, h, n, d)
    for start in range(0, windows, few):
        part = slice(start, min(start + few, windows))
        weights = memory.buffer("scores", part.stop - part.start, heads, queries, keys)
        factor = softmax(weights, q[part], k[part], overlapping(tables, part))
        np.matmul(weights, v[part], out=by_head[part])
        by_head[part] *= factor


def softmax(weights: Array, q: Array, k: Array, tables: Tables) -> Array:
    """Write exp(q k^T + tables) into weights (w, h, n, N), and return 1 / row sums (w, h, n, 1)."""
    _scores(weights, q, k, tables)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # such sums are treated below
        np.exp(weights, out=weights)
        total = weights @ np.ones((weights.shape[-1], 1), weights.dtype)
        safe = (total <= _HUGE) & (total >= _TINY)  # no shift by the row maximum is needed
        factor = np.reciprocal(total, out=total)
    if safe.all():
        return factor
    rows = safe[..., 0]
    kept = weights[rows]  # so that these rows have the same bits for any content of the other rows
    _scores(weights, q, k, tables)
    shifted = exponentials(weights)
    weights[rows] = kept
    return np.where(safe, factor, shifted)


def _scores(weights: Array, q: Array, k: Array, tables: Tables) -> None:
    np.matmul(q, k.swapaxes(-1, -2), out=weights)
    for part, table in tables:
        weights[part] += table


def overlapping(tables: Tables, part: slice) -> Tables:
    """The tables of some of the windows, which are counted from the first of these."""
    cut = [(max(each.start, part.start), min(each.stop, part.stop), table) for each, table in tables]
    return [(slice(start - part.start, stop - part.start), table) for start, stop, table in cut if start < stop]


class Mlp:
    """Normalized tokens (W, n, D) -> what the hidden units add (W, n, D), without the last bias."""

    def __init__(self, mlp: Any, norm: nn.LayerNorm | None) -> None:
        bias1, bias2 = (None if each.bias is None else each.bias.data for each in (mlp.fc1, mlp.fc2))
        self.w1, self.b1 = folding.linear(mlp.fc1.weight.data, bias1, norm)
        self.w2, self.b2 = folding.linear(mlp.fc2.weight.data, bias2, None)
        self.approximate, self.gelu = mlp.fc1.approximate, None
        if self.w1.dtype == np.float32:
            self.gelu = TANH if self.approximate == "tanh" else EXACT
            for array in (self.w1, self.b1):
                array *= self.gelu.scale
            self.w2 /= self.gelu.scale

    def __call__(self, memory: Memory, xhat: Array) -> Array:
        hidden = product(xhat, self.w1, memory.buffer("hidden", *xhat.shape[:2], len(self.w2)))
        if self.gelu is not None:
            self.gelu(memory, hidden.reshape(-1, hidden.shape[-1]), self.b1)
        else:  # float64: the fit has the digits of float32
            hidden += self.b1
            hidden[...] = F.gelu(hidden, self.approximate)[0]
        return product(hidden, self.w2, memory.buffer("term", *xhat.shape))


class Block:
    """Tokens (W, N, D), changed in place -> (W, n, D)."""

    def __init__(self, block: nn.Block) -> None:
        attention: Any = block.attn.attention if isinstance(block.attn, nn.ShiftedWindows) else block.attn
        norms: Any = (block.norm1, block.norm2)  # LayerNorms: see `known.py`
        before = (None, None) if block.post_norm else norms
        self.attention, self.mlp = Attention(attention, before[0]), Mlp(block.mlp, before[1])
        self.eps = tuple(norm.eps for norm in norms)
        self.after: list[tuple[Array, Array] | None] = [
            (norm.weight.data.copy(), norm.bias.data.copy()) if block.post_norm else None for norm in norms
        ]

    def __call__(self, memory: Memory, x: Array, context: Context) -> Array:
        """The block's output for the tokens x (W, N, D), in the memory of x."""
        term = self.attention(memory, self._input(memory, x, 0), context)
        x = x[:, : term.shape[1]]
        self._add(memory, x, term, self.attention.b_o, 0)
        if x.size:
            self._add(memory, x, self.mlp(memory, self._input(memory, x, 1)), self.mlp.b2, 1)
        return x

    def _input(self, memory: Memory, x: Array, number: int) -> Array:
        if self.after[number] is not None:
            return x
        return normalized(x, self.eps[number], memory.buffer("normalized", *x.shape))

    def _add(self, memory: Memory, x: Array, term: Array, bias: Array, number: int) -> None:
        term += bias
        after = self.after[number]
        if after is not None:
            term = normalized(term, self.eps[number], memory.buffer("normalized", *term.shape))
            term *= after[0]
            term += after[1]
        x += term


def product(x: Array, weight: Array, out: Array) -> Array:
    """x (W, n, I) @ weight (I, O) -> out (W, n, O), as one product where the memory allows it."""
    if x.flags.c_contiguous and out.flags.c_contiguous:
        rows = x.shape[0] * x.shape[1]
        np.matmul(x.reshape(rows, x.shape[2]), weight, out=out.reshape(rows, out.shape[2]))
    else:
        np.matmul(x, weight, out=out)
    return out


def normalized(x: Array, eps: float, out: Array) -> Array:
    """Each token of x (W, n, D) shifted to mean 0 and scaled to variance 1, written into `out`."""
    rows = x.reshape(x.shape[0] * x.shape[1], x.shape[2])
    return normalize_rows(rows, eps, out.reshape(rows.shape))[0].reshape(x.shape)
