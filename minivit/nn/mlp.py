"""The multilayer perceptron of a transformer block: two linear maps of each token with a nonlinearity between them.

In its gated form (SwiGLU) one half of the hidden layer decides how much of the other half passes.
"""

from __future__ import annotations

from typing import Any

from minivit import functional as F
from minivit.device import array_module
from minivit.nn.basic import Linear, LinearGELU, QuickGELU
from minivit.nn.layer import Layer
from minivit.protocol import Array, Back, Rng, compose, once
from minivit.random import as_generator


class Mlp(Layer):
    """x (..., dim) -> fc1 -> GELU -> dropout -> fc2 -> dropout -> (..., dim).

    Args:
        dim: channels in and out.
        hidden: channels in between, 4 dim in ViT and Swin.
        gelu: "none" (exact), "tanh" or "quick", x sigmoid(1.702 x).
        drop: dropout rate after GELU and after fc2.
        bias: whether fc1 and fc2 have one.
        norm: a norm of the hidden layer, after the first dropout (BEiT-3), or None.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        *,
        gelu: str = "none",
        drop: float = 0.0,
        bias: bool = True,
        norm: Layer | None = None,
        dtype: Any = "float32",
        seed: Any = None,
    ) -> None:
        rng = as_generator(seed)
        self.drop = drop
        self.fc1: Linear
        self.act: Layer | None
        if gelu == "quick":
            self.fc1, self.act = Linear(dim, hidden, bias, dtype=dtype, seed=rng), QuickGELU()
        else:
            self.fc1, self.act = LinearGELU(dim, hidden, bias, approximate=gelu, dtype=dtype, seed=rng), None
        self.norm = norm
        self.fc2 = Linear(hidden, dim, bias, dtype=dtype, seed=rng)

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Back]:
        drop = (lambda a: F.dropout(a, self.drop, rng)) if self.drop else None
        return compose(
            x,
            self.fc1,  # (..., hidden): the linear map, then GELU
            self.act,  # where GELU is a layer of its own
            drop,
            self.norm,
            self.fc2,  # (..., dim)
            drop,
        )


class SwiGLU(Layer):
    """x (..., dim) -> fc2(silu(fc1_g(x)) * fc1_x(x)) -> (..., dim), with dropout after the product and after fc2.

    Args:
        dim, drop, bias, norm: as of `Mlp`.
        hidden: channels of gate and value each.
        align: round `hidden` up to a multiple of this.

    Source: Shazeer 2020, "GLU Variants Improve Transformer"; names are timm's, used by AIMv2 and DINOv3.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        *,
        drop: float = 0.0,
        bias: bool = True,
        norm: Layer | None = None,
        align: int = 1,
        dtype: Any = "float32",
        seed: Any = None,
    ) -> None:
        rng, hidden = as_generator(seed), hidden + -hidden % align
        self.drop = drop
        self.fc1_g = Linear(dim, hidden, bias, dtype=dtype, seed=rng)
        self.fc1_x = Linear(dim, hidden, bias, dtype=dtype, seed=rng)
        self.norm = norm
        self.fc2 = Linear(hidden, dim, bias, dtype=dtype, seed=rng)

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Back]:
        drop = (lambda a: F.dropout(a, self.drop, rng)) if self.drop else None
        return compose(x, self._gated, drop, self.norm, self.fc2, drop)

    def _gated(self, x: Array) -> tuple[Array, Back]:
        gate, back_gate = self.fc1_g(x)  # (..., hidden)
        value, back_value = self.fc1_x(x)  # (..., hidden)
        y, back_swiglu = F.swiglu(gate, value)

        @once
        def back(dy: Array) -> Array:
            dgate, dvalue = back_swiglu(dy)
            return back_gate(dgate) + back_value(dvalue)

        return y, back


class PackedSwiGLU(SwiGLU):
    """SwiGLU with gate and value in one linear map, `fc1`: rows gate | value. DINOv2's giant has it.

    Args:
        hidden: channels of gate and value together, as in timm.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        *,
        drop: float = 0.0,
        bias: bool = True,
        norm: Layer | None = None,
        dtype: Any = "float32",
        seed: Any = None,
    ) -> None:
        if hidden % 2:
            raise ValueError(f"a packed SwiGLU of {hidden} channels has no two halves: choose an even number")
        rng = as_generator(seed)
        self.drop = drop
        self.fc1 = Linear(dim, hidden, bias, dtype=dtype, seed=rng)
        self.norm = norm
        self.fc2 = Linear(hidden // 2, dim, bias, dtype=dtype, seed=rng)

    def _gated(self, x: Array) -> tuple[Array, Back]:
        packed, back_fc1 = self.fc1(x)  # (..., hidden)
        half = packed.shape[-1] // 2
        y, back_swiglu = F.swiglu(packed[..., :half], packed[..., half:])

        @once
        def back(dy: Array) -> Array:
            return back_fc1(array_module(dy).concatenate(back_swiglu(dy), axis=-1))

        return y, back
