"""Element by element: GELU, ReLU, tanh, sigmoid. Row by row: softmax and log-softmax, each with its full Jacobian.

Softmax's vjp is its full Jacobian product: it assumes no particular loss after it.
"""

from __future__ import annotations

from math import pi

from minivit.device import array_module
from minivit.functional.erf import erf
from minivit.functional.linear import check_linear, linear
from minivit.protocol import Array, Back, once


def gelu(x: Array, approximate: str = "none") -> tuple[Array, Back]:
    """y = x Phi(x), with Phi the standard normal distribution function (Hendrycks and Gimpel 2016).

    Args:
        x: any shape.
        approximate: "none" (exact; timm, torchvision, Swin) or "tanh" (Google's JAX ViT); they differ by up to 4.7e-4.

    Returns:
        y of x's shape, and vjp(dy) -> dx.

    Raises:
        ValueError: for any other value of `approximate`.

    Derivation: docs/derivations/gelu.md.
    """
    xp = array_module(x)
    if approximate == "tanh":
        square = xp.where(abs(x) < 10, x, 10) ** 2  # beyond, tanh is 1 to the last digit, and x^3 would overflow
        tanh = xp.tanh((2 / pi) ** 0.5 * x * (1 + 0.044715 * square))
        cdf = 0.5 * (1 + tanh)
        density = 0.5 * (1 - tanh * tanh) * (2 / pi) ** 0.5 * (1 + 3 * 0.044715 * square)
    else:
        cdf = 0.5 * (1 + erf(x * 0.5**0.5))  # Phi(x)
        density = (2 * pi) ** -0.5 * xp.exp(-0.5 * x * x)  # phi(x), its derivative
    slope = cdf + x * density  # of x Phi(x), by the product rule

    @once
    def vjp(dy: Array) -> Array:
        return dy * slope

    return x * cdf, vjp


def check_gelu(x: Array, approximate: str = "none") -> None:
    if approximate not in ("none", "tanh"):
        raise ValueError(f"gelu: approximate={approximate!r}: choose 'none' or 'tanh'")


def linear_gelu(x: Array, weight: Array, bias: Array | None = None, approximate: str = "none") -> tuple[Array, Back]:
    """y = gelu(x W^T + b), the first half of a transformer's MLP. Fusing them saves memory.

    Args:
        x: (..., I).
        weight: (O, I).
        bias: (O,) or None.
        approximate: as in `gelu`.

    Returns:
        y (..., O), and vjp(dy) -> (dx, dweight, dbias).

    Raises:
        ValueError: as `linear` and `gelu` do.
    """
    hidden, back_linear = linear(x, weight, bias)
    y, back_gelu = gelu(hidden, approximate)

    @once
    def vjp(dy: Array) -> tuple[Array, Array, Array | None]:
        return back_linear(back_gelu(dy))

    return y, vjp


def check_linear_gelu(x: Array, weight: Array, bias: Array | None = None, approximate: str = "none") -> None:
    check_linear(x, weight, bias)
    check_gelu(x, approximate)


def relu(x: Array) -> tuple[Array, Back]:
    """y = max(x, 0); the slope at 0 is taken as 0. Returns y, and vjp(dy) -> dx."""
    y = array_module(x).maximum(x, 0)  # not x * (x > 0), which makes NaN of -inf

    @once
    def vjp(dy: Array) -> Array:
        return dy * (y.real > 0)

    return y, vjp


def tanh(x: Array) -> tuple[Array, Back]:
    """y = tanh(x), with slope 1 - y^2. Returns y, and vjp(dy) -> dx."""
    y = array_module(x).tanh(x)

    @once
    def vjp(dy: Array) -> Array:
        return dy * (1 - y * y)

    return y, vjp


def sigmoid(x: Array) -> tuple[Array, Back]:
    """y = 1 / (1 + exp(-x)), with slope y (1 - y). Returns y, and vjp(dy) -> dx."""
    y = 0.5 * (1 + array_module(x).tanh(0.5 * x))  # the same function, and it cannot overflow

    @once
    def vjp(dy: Array) -> Array:
        return dy * y * (1 - y)

    return y, vjp


def quick_gelu(x: Array) -> tuple[Array, Back]:
    """y = x sigmoid(1.702 x), the coarsest approximation of GELU: off by up to 0.0203 (Hendrycks and Gimpel 2016).

    OpenAI's CLIP was trained with it. Returns y, and vjp(dy) -> dx.
    """
    return _times_sigmoid(x, 1.702)


def silu(x: Array) -> tuple[Array, Back]:
    """y = x sigmoid(x), also called Swish (Ramachandran et al. 2017). Returns y, and vjp(dy) -> dx."""
    return _times_sigmoid(x, 1.0)


def _times_sigmoid(x: Array, rate: float) -> tuple[Array, Back]:
    gate = 0.5 * (1 + array_module(x).tanh(0.5 * rate * x))  # sigmoid(rate x), which cannot overflow

    @once
    def vjp(dy: Array) -> Array:
        return dy * (gate + rate * x * gate * (1 - gate))  # the product rule; sigmoid' = sigmoid (1 - sigmoid)

    return x * gate, vjp


def swiglu(gate: Array, value: Array) -> tuple[Array, Back]:
    """y = silu(gate) * value: one half of a hidden layer decides how much of the other passes (Shazeer 2020).

    Args:
        gate, value: of one shape.

    Returns:
        y of that shape, and vjp(dy) -> (dgate, dvalue).

    Raises:
        ValueError: if the shapes differ.
    """
    opened, back_silu = silu(gate)

    @once
    def vjp(dy: Array) -> tuple[Array, Array]:
        return back_silu(dy * value), dy * opened

    return opened * value, vjp


def check_swiglu(gate: Array, value: Array) -> None:
    if gate.shape != value.shape:
        raise ValueError(f"swiglu: gate {gate.shape} and value {value.shape} must have one shape")


def softmax(x: Array) -> tuple[Array, Back]:
    """y = exp(x) / sum(exp(x)) along the last axis, without overflow at any x.

    A row that holds only -inf gives 0, with gradient 0. Returns y of x's shape, and vjp(dy) -> dx.

    Derivation: docs/derivations/softmax.md.
    """
    exponential = array_module(x).exp(x - row_maximum(x))  # the shift cancels in the quotient
    total = exponential.sum(axis=-1, keepdims=True)
    y = exponential / (total + (total == 0))  # a row that holds only -inf: 0 / 1

    @once
    def vjp(dy: Array) -> Array:
        # dy_i/dx_j = y_i (1[i = j] - y_j), so dx = y (dy - sum(dy y))
        return y * (dy - (dy * y).sum(axis=-1, keepdims=True))

    return y, vjp


def log_softmax(x: Array) -> tuple[Array, Back]:
    """y = x - log(sum(exp(x))) along the last axis; NaN for a row of only -inf. Returns y, and vjp(dy) -> dx."""
    xp = array_module(x)
    shifted = x - row_maximum(x)
    y = shifted - xp.log(xp.exp(shifted).sum(axis=-1, keepdims=True))

    @once
    def vjp(dy: Array) -> Array:
        return dy - xp.exp(y) * dy.sum(axis=-1, keepdims=True)

    return y, vjp


def row_maximum(x: Array) -> Array:
    """The largest real part along the last axis (..., 1); 0 where a row is empty or holds only -inf."""
    xp = array_module(x)
    if x.shape[-1] == 0:
        return xp.zeros((*x.shape[:-1], 1), x.real.dtype)
    top = x.real.max(axis=-1, keepdims=True)
    return xp.where(xp.isneginf(top), xp.zeros_like(top), top)
