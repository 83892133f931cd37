"""The multilayer perceptron of a transformer block: each token by itself, widened, bent by GELU, and narrowed again.

Next: `block.py`.
"""

from __future__ import annotations

from math import prod
from typing import Any

from minivit import functional as F
from minivit.backend import as_generator
from minivit.functional.activation import inplace_gelu
from minivit.nn.basic import Linear
from minivit.nn.layer import Layer, by_tokens
from minivit.protocol import Array, Back, once


class Mlp(Layer):
    """x (..., dim) -> fc1 -> GELU -> dropout -> fc2 -> dropout -> (..., dim).

    Args:
        dim: channels in and out.
        hidden: channels in between, 4 dim in ViT and Swin.
        gelu: "none" (exact) or "tanh".
        drop: dropout rate after GELU and after fc2.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        *,
        gelu: str = "none",
        drop: float = 0.0,
        dtype: Any = "float32",
        seed: Any = None,
    ) -> None:
        rng = as_generator(seed)
        self.gelu, self.drop = gelu, drop
        self.fc1 = Linear(dim, hidden, dtype=dtype, seed=rng)
        self.fc2 = Linear(hidden, dim, dtype=dtype, seed=rng)

    def forward(self, x: Array, rng: Any = None) -> tuple[Array, Back]:
        wide, back_fc1 = self.fc1(x)  # (..., hidden)
        bent, back_gelu = F.gelu(wide, self.gelu)
        kept, back_drop1 = F.dropout(bent, self.drop, rng)
        narrow, back_fc2 = self.fc2(kept)  # (..., dim)
        y, back_drop2 = F.dropout(narrow, self.drop, rng)

        @once
        def back(dy: Array) -> Array:
            return back_fc1(back_gelu(back_drop1(back_fc2(back_drop2(dy)))))

        return y, back

    def infer(self, x: Array, **context: Any) -> Array:
        return by_tokens(lambda rows: self.fc2.infer(inplace_gelu(self.fc1.infer(rows), self.gelu)), x)

    def macs(self, shape: tuple[int, ...]) -> int:
        """Multiply-adds for tokens (..., D)."""
        return prod(shape[:-1]) * (self.fc1.weight.size + self.fc2.weight.size)
