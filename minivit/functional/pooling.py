"""Many tokens to one: the mean over an axis.

Next: `resize.py`.
"""

from __future__ import annotations

from minivit.backend import array_module
from minivit.protocol import Array, Back, once, refuse


def mean_pool(x: Array, axis: int = 1) -> tuple[Array, Back]:
    """y = mean of x over one axis; each of its n elements has weight 1/n.

    Args:
        x: (B, N, D) with axis=1, or any shape and axis.

    Returns:
        y (B, D), and vjp(dy) -> dx.

    Raises:
        ValueError: if the axis has length 0.
    """
    shape, count = x.shape, x.shape[axis]
    refuse(count == 0, f"mean_pool: axis {axis} of shape {shape} is empty, so it has no mean")
    y = x.sum(axis=axis)
    y *= 1 / count

    @once
    def vjp(dy: Array) -> Array:
        xp = array_module(dy)
        return xp.broadcast_to(xp.expand_dims(dy * (1 / count), axis), shape)

    return y, vjp
