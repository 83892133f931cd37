"""The multilayer perceptron of a transformer block: two linear maps of each token with a nonlinearity between them."""

from __future__ import annotations

from typing import Any

from minivit import functional as F
from minivit.nn.basic import Linear, LinearGELU
from minivit.nn.layer import Layer
from minivit.protocol import Array, Back, Rng, compose
from minivit.random import as_generator


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
        self.drop = drop
        self.fc1 = LinearGELU(dim, hidden, approximate=gelu, dtype=dtype, seed=rng)
        self.fc2 = Linear(hidden, dim, dtype=dtype, seed=rng)

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Back]:
        drop = (lambda a: F.dropout(a, self.drop, rng)) if self.drop else None
        return compose(
            x,
            self.fc1,  # (..., hidden): the linear map, then GELU
            drop,
            self.fc2,  # (..., dim)
            drop,
        )
