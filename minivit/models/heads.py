"""From tokens to logits: pooling, the pretraining head, Swin's head, and the two heads of a distilled model.

Notation: B batch, T tokens, D channels, K classes.
"""

from __future__ import annotations

from math import prod
from typing import Any

from minivit import functional as F
from minivit.device import array_module
from minivit.nn import Chain, Dropout, Layer, Linear, Tanh
from minivit.protocol import Array, Back, Rng, once
from minivit.random import as_generator


class Pool(Layer):
    """Tokens (B, T, D), or a map (B, H, W, D), -> what the head reads.

    mode "token": the first p tokens, (B, D) for one and (B, 2, D) for a distilled model's two. "avg": the mean (B, D)
    of the tokens after the first p. "map": those tokens (B, T - p, D) themselves, for attention pooling. `prefix` is p.
    """

    def __init__(self, mode: str, prefix: int) -> None:
        self.mode, self.prefix = mode, prefix

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Back]:
        p, shape = self.prefix, x.shape
        tokens = x.reshape(shape[0], prod(shape[1:-1]), shape[-1])  # (B, T, D)
        if self.mode == "avg":
            y, back_part = F.mean_pool(tokens[:, p:])
            part: Any = slice(p, None)
        else:
            part = slice(p, None) if self.mode == "map" else 0 if p == 1 else slice(0, p)
            y, back_part = tokens[:, part], None
        flat = tokens.shape

        @once
        def back(dy: Array) -> Array:
            dtokens = array_module(dy).zeros(flat, dy.dtype)
            dtokens[:, part] = dy if back_part is None else back_part(dy)
            return dtokens.reshape(shape)

        return y, back


class PreLogits(Chain):
    """The ViT paper's head for pretraining: a linear layer and tanh before the classifier; key `pre_logits.fc`."""

    def __init__(self, dim: int, size: int, dtype: Any, rng: Rng) -> None:
        self.fc = Linear(dim, size, dtype=dtype, seed=rng)
        self.tanh = Tanh()


class Classifier(Chain):
    """Dropout and a linear layer, (B, D) -> (B, K): Swin's head; keys `head.fc.weight` and `head.fc.bias`."""

    def __init__(self, dim: int, num_classes: int, drop: float, dtype: Any, rng: Rng) -> None:
        self.drop = Dropout(drop)
        self.fc = Linear(dim, num_classes, dtype=dtype, seed=rng)


class DistilledHead(Layer):
    """Two classifiers, on the class token and on the distillation token, averaged (Touvron et al. 2021, DeiT)."""

    names_in_parent = True

    def __init__(self, dim: int, num_classes: int, *, dtype: Any, seed: Any) -> None:
        rng = as_generator(seed)
        self.head = Linear(dim, num_classes, dtype=dtype, seed=rng)
        self.head_dist = Linear(dim, num_classes, dtype=dtype, seed=rng)

    def both(self, x: Array) -> tuple[tuple[Array, Array], Back]:
        """Features (B, 2, D) -> the logits of both heads; the back takes a gradient for each."""
        logits, back_head = self.head(x[:, 0])
        distilled, back_dist = self.head_dist(x[:, 1])

        @once
        def back(dlogits: Array, ddistilled: Array) -> Array:
            return array_module(dlogits).stack((back_head(dlogits), back_dist(ddistilled)), axis=1)

        return (logits, distilled), back

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Back]:
        (logits, distilled), back_both = self.both(x)

        @once
        def back(dy: Array) -> Array:
            half = dy / 2  # bfloat16 times 0.5 is float32
            return back_both(half, half)

        return (logits + distilled) / 2, back
