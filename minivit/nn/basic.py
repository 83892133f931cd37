"""The first layers: Linear, norms, Embedding, Identity, the activations, dropout and drop path, and Sequential.

Each calls its function of `minivit.functional` on its parameters.
"""

from __future__ import annotations

from typing import Any

from minivit import functional as F
from minivit.functional.dropout import check_rate
from minivit.nn import init
from minivit.nn.layer import Chain, Layer, apply
from minivit.nn.parameter import Parameter
from minivit.protocol import Array, Back, Rng, once
from minivit.random import as_generator


class Linear(Layer):
    """y = x W^T + b: (..., in_features) -> (..., out_features).

    weight (out_features, in_features) starts truncated-normal with std 0.02, bias (out_features,) at zero.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, *, dtype: Any = "float32", seed: Any = None
    ) -> None:
        dtype = init.dtype_of(dtype)
        self.weight = Parameter(init.trunc_normal(as_generator(seed), (out_features, in_features), 0.02, dtype))
        self.bias = Parameter(init.zeros((out_features,), dtype)) if bias else None

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Back]:
        return apply(F.linear, x, self.weight, self.bias)

    def rows(self, x: Array, start: int, stop: int) -> tuple[Array, Back]:
        """Some of the outputs alone, (..., stop - start), from these rows of the weight."""
        bias = None if self.bias is None else self.bias.rows(start, stop)
        return apply(F.linear, x, self.weight.rows(start, stop), bias)

    def with_bias(self, x: Array, bias: Array) -> tuple[Array, Back]:
        """The map with this bias (out_features,) in place of its own; the back gives (dx, dbias)."""
        return apply(F.linear, x, self.weight, bias)


class LinearGELU(Linear):
    """y = gelu(x W^T + b): (..., in_features) -> (..., out_features), the first half of a transformer's MLP.

    One layer instead of two, so that GELU can reuse the memory of the linear map's output.

    Args:
        approximate: "none" (exact) or "tanh".
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        approximate: str = "none",
        dtype: Any = "float32",
        seed: Any = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, dtype=dtype, seed=seed)
        self.approximate = approximate

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Back]:
        return apply(F.linear_gelu, x, self.weight, self.bias, approximate=self.approximate)


class LayerNorm(Layer):
    """Each token normalized over its channels, then gain and offset: (..., dim) -> (..., dim).

    weight (dim,) starts at 1, with `zero` at 0, bias (dim,) at 0. eps: 1e-6 in ViT, 1e-5 in Swin.
    """

    def __init__(self, dim: int, eps: float = 1e-6, *, zero: bool = False, dtype: Any = "float32") -> None:
        dtype = init.dtype_of(dtype)
        self.weight = Parameter((init.zeros if zero else init.ones)((dim,), dtype))
        self.bias = Parameter(init.zeros((dim,), dtype))
        self.eps = eps

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Back]:
        return apply(F.layer_norm, x, self.weight, self.bias, eps=self.eps)


class RMSNorm(Layer):
    """Each token divided by the root of its mean square, then a gain: (..., dim) -> (..., dim).

    weight (dim,) starts at 1, with `zero` at 0.
    """

    def __init__(self, dim: int, eps: float = 1e-6, *, zero: bool = False, dtype: Any = "float32") -> None:
        self.weight = Parameter((init.zeros if zero else init.ones)((dim,), init.dtype_of(dtype)))
        self.eps = eps

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Back]:
        return apply(F.rms_norm, x, self.weight, eps=self.eps)


class LayerScale(Layer):
    """y = x * gamma: a factor for each channel of a residual branch, (..., dim) -> (..., dim).

    gamma (dim,) starts at `init_value`: near 0, so that a new block is nearly the identity.
    """

    def __init__(self, dim: int, init_value: float = 1e-5, *, dtype: Any = "float32") -> None:
        self.gamma = Parameter(init.ones((dim,), init.dtype_of(dtype)) * init.dtype_of(dtype).type(init_value))

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Back]:
        return apply(F.layer_scale, x, self.gamma)


class Embedding(Layer):
    """A table of vectors looked up by index: integers (...) -> (..., dim). Its back returns None."""

    def __init__(self, count: int, dim: int, *, dtype: Any = "float32", seed: Any = None) -> None:
        self.weight = Parameter(init.trunc_normal(as_generator(seed), (count, dim), 0.02, init.dtype_of(dtype)))

    def check_dtype(self, x: Array) -> None:
        if x.dtype.kind not in "iu":
            raise ValueError(f"Embedding: input is {x.dtype}, but row numbers must be integers")

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Back]:
        return apply(F.embedding, x, self.weight)


class Identity(Layer):
    """y = x."""

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Back]:
        return x, once(lambda dy: dy)


class GELU(Layer):
    """GELU, exact ("none") or by its tanh approximation ("tanh")."""

    def __init__(self, approximate: str = "none") -> None:
        self.approximate = approximate

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Back]:
        return F.gelu(x, self.approximate)


class QuickGELU(Layer):
    """x sigmoid(1.702 x)."""

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Back]:
        return F.quick_gelu(x)


class SiLU(Layer):
    """x sigmoid(x)."""

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Back]:
        return F.silu(x)


class ReLU(Layer):
    """max(x, 0)."""

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Back]:
        return F.relu(x)


class Tanh(Layer):
    """tanh(x)."""

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Back]:
        return F.tanh(x)


class Dropout(Layer):
    """Single elements dropped with probability `rate` while training."""

    def __init__(self, rate: float) -> None:
        check_rate("dropout", rate)
        self.rate = rate

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Back]:
        return F.dropout(x, self.rate, rng)


class DropPath(Layer):
    """Whole samples of a residual branch dropped with probability `rate` while training."""

    def __init__(self, rate: float) -> None:
        check_rate("drop_path", rate)
        self.rate = rate

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Back]:
        return F.drop_path(x, self.rate, rng)


class Sequential(Chain):
    """Layers one after the other; parameters are named `0.weight`, `1.weight`, ... as in PyTorch."""

    def __init__(self, *layers: Layer) -> None:
        for index, layer in enumerate(layers):
            setattr(self, str(index), layer)
