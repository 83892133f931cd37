"""The multilayer perceptron of a transformer block: two linear maps of each token with a nonlinearity between them.

Next: `block.py`.
"""

from __future__ import annotations

from typing import Any

from minivit import functional as F
from minivit.nn.basic import Linear
from minivit.nn.layer import Layer
from minivit.protocol import Array, Back, once
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
        self.gelu, self.drop = gelu, drop
        self.fc1 = Linear(dim, hidden, dtype=dtype, seed=rng)
        self.fc2 = Linear(hidden, dim, dtype=dtype, seed=rng)

    def forward(self, x: Array, rng: Any = None) -> tuple[Array, Back]:
        hidden, back_fc1 = self.fc1(x)  # (..., hidden)
        active, back_gelu = F.gelu(hidden, self.gelu)
        dropped, back_drop1 = F.dropout(active, self.drop, rng)
        output, back_fc2 = self.fc2(dropped)  # (..., dim)
        y, back_drop2 = F.dropout(output, self.drop, rng)

        @once
        def back(dy: Array) -> Array:
            return back_fc1(back_gelu(back_drop1(back_fc2(back_drop2(dy)))))

        return y, back
