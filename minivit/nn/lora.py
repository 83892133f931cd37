"""LoRA: a linear map whose weight is constant, with a learned update of low rank beside it.

`minivit.lora` puts these layers into a model, `minivit.merge_lora` takes them out again.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minivit import functional as F
from minivit.device import array_module
from minivit.nn import init
from minivit.nn.basic import Linear, LinearGELU
from minivit.nn.layer import apply
from minivit.nn.parameter import Buffer, Parameter
from minivit.protocol import Array, Back, Rng, compose
from minivit.random import as_generator


class LoRALinear(Linear):
    """y = x W^T + b + (alpha / rank) (x A^T) B^T: (..., I) -> (..., O), in place of a `Linear`.

    lora_a (rank, I) starts uniform in +-1/sqrt(I), as in the authors' code, and lora_b (O, rank) at zero, so that the
    layer starts equal to the linear map. Its weight becomes a constant: a buffer, which is saved but not learned. Its
    bias stays a parameter.

    Args:
        linear: the map W, b. Its arrays are taken over, not copied.
        rank: r, from 1 to the smaller side of the weight.
        alpha: a factor of the update, which makes the learning rate depend less on the rank.
        seed: of lora_a.

    Source: Hu et al. 2021, section 4.1.
    """

    weight: Buffer  # type: ignore[assignment]

    def __init__(self, linear: Linear, rank: int, alpha: float = 16.0, *, seed: Any = None) -> None:
        outputs, inputs = linear.weight.shape
        if not isinstance(rank, int) or not 1 <= rank <= min(outputs, inputs):
            raise ValueError(
                f"rank={rank!r} must be an integer from 1 to {min(outputs, inputs)}, the shorter side of the weight"
            )
        if not isinstance(alpha, int | float) or not 0 < alpha < float("inf"):
            raise ValueError(f"alpha={alpha!r} must be a finite number above 0")
        data = linear.weight.data
        move = array_module(data).asarray
        self.weight, self.bias = Buffer(data), linear.bias
        self.lora_a = Parameter(move(init.conv_uniform(as_generator(seed), (rank, inputs), inputs, data.dtype)))
        self.lora_b = Parameter(move(init.zeros((outputs, rank), data.dtype)))
        self.alpha = alpha

    @property
    def rank(self) -> int:
        """r."""
        return self.lora_a.shape[0]

    @property
    def scale(self) -> float:
        """alpha / r."""
        return self.alpha / self.rank

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Back]:
        return self._updated(x, self.lora_b, self.bias, self.weight.data)

    def rows(self, x: Array, start: int, stop: int) -> tuple[Array, Back]:
        bias = None if self.bias is None else self.bias.rows(start, stop)
        return self._updated(x, self.lora_b.rows(start, stop), bias, self.weight.data[start:stop])

    def with_bias(self, x: Array, bias: Array) -> tuple[Array, Back]:
        return self._updated(x, self.lora_b, bias, self.weight.data)

    def _updated(self, x: Array, lora_b: Parameter, bias: Any, weight: Array) -> tuple[Array, Back]:
        return apply(F.lora_linear, x, self.lora_a, lora_b, bias, weight=weight, scale=self.scale)

    def merged(self) -> Linear:
        """The linear map with the weight W + scale B A, rounded once to the weight's dtype."""
        product = self.lora_b.data.astype(np.float64) @ self.lora_a.data.astype(np.float64)
        weight = (self.weight.data + self.scale * product).astype(self.weight.data.dtype)
        linear = self._plain()
        linear.weight, linear.bias = Parameter(weight), self.bias
        return linear

    def _plain(self) -> Linear:
        """A layer of the class that this one stands for, without arrays."""
        return object.__new__(Linear)


class LoRALinearGELU(LoRALinear):
    """y = gelu(x W^T + b + (alpha / rank) (x A^T) B^T), in place of a `LinearGELU`; see `LoRALinear`."""

    def __init__(self, linear: LinearGELU, rank: int, alpha: float = 16.0, *, seed: Any = None) -> None:
        super().__init__(linear, rank, alpha, seed=seed)
        self.approximate = linear.approximate

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Back]:
        return compose(x, super().forward, lambda a: F.gelu(a, self.approximate))

    def _plain(self) -> Linear:
        linear: LinearGELU = object.__new__(LinearGELU)
        linear.approximate = self.approximate
        return linear
