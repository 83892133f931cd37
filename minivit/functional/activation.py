"""Element by element: GELU, ReLU, tanh, sigmoid. Row by row: softmax and log-softmax, each with its true Jacobian.

Nothing here assumes what comes after it: softmax's vjp is softmax's, whatever the loss. Next: `norm.py`.
"""

from __future__ import annotations

from minivit.backend import array_module, kernels
from minivit.protocol import Array, Back, once, refuse


def gelu(x: Array, approximate: str = "none") -> tuple[Array, Back]:
    """y = x Phi(x), with Phi the standard normal distribution function (Hendrycks and Gimpel 2016).

    Args:
        x: any shape.
        approximate: "none" (exact; timm, torchvision, Swin) or "tanh" (Google's JAX ViT); they differ by up to 4.7e-4.

    Returns:
        y of x's shape, and vjp(dy) -> dx.
    """
    refuse(approximate not in ("none", "tanh"), f"gelu: approximate={approximate!r}: choose 'none' or 'tanh'")
    if approximate == "none":
        y, slope = kernels(x).gelu(x)
    else:
        y, slope = kernels(x).gelu_tanh(x)

    @once
    def vjp(dy: Array) -> Array:
        return array_module(dy).multiply(dy, slope, out=slope)  # in place: the slope is ours and done with

    return y, vjp


def inplace_gelu(x: Array, approximate: str = "none") -> Array:
    """Overwrites x by `gelu(x)` and returns it: the value without a way back, for inference."""
    if approximate == "none":
        return kernels(x).inplace_gelu(x)
    x[...] = gelu(x, approximate)[0]
    return x


def relu(x: Array) -> tuple[Array, Back]:
    """y = max(x, 0); the slope at 0 is taken as 0. Returns y, and vjp(dy) -> dx."""
    y = array_module(x).maximum(x, 0)  # not x * (x > 0), which makes NaN of -inf

    @once
    def vjp(dy: Array) -> Array:
        return dy * (y.real > 0)  # y is there anyway: whatever comes next keeps it as its input

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
    y = array_module(x).tanh(x * 0.5)  # (1 + tanh(x/2)) / 2 cannot overflow
    y += 1
    y *= 0.5

    @once
    def vjp(dy: Array) -> Array:
        return dy * (y * (1 - y))

    return y, vjp


def softmax(x: Array) -> tuple[Array, Back]:
    """y = exp(x) / sum(exp(x)) along the last axis, without overflow at any x.

    A row of -inf only gives 0, and gradient 0. Returns y of x's shape, and vjp(dy) -> dx.
    """
    y = x.copy()
    y *= kernels(x).inplace_exp(y)

    @once
    def vjp(dy: Array) -> Array:
        # dy_i/dx_j = y_i (1[i = j] - y_j), so dx = y (dy - sum(dy y))
        weighted = dy * y
        return weighted - y * weighted.sum(axis=-1, keepdims=True)

    return y, vjp


def log_softmax(x: Array) -> tuple[Array, Back]:
    """y = x - log(sum(exp(x))) along the last axis; NaN where all of a row is -inf. Returns y, and vjp(dy) -> dx."""
    xp = array_module(x)
    y = x - x.real.max(axis=-1, keepdims=True) if x.size else x.copy()
    y -= xp.log(xp.exp(y).sum(axis=-1, keepdims=True))

    @once
    def vjp(dy: Array) -> Array:
        return dy - xp.exp(y) * dy.sum(axis=-1, keepdims=True)

    return y, vjp
