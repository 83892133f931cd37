"""AdamW in place: one scratch array, and one multiplication less than the formula."""

from __future__ import annotations

import numpy as np

from minivit.protocol import Array


def adamw(
    p: Array,
    g: Array,
    m: Array,
    v: Array,
    *,
    lr: float,
    weight_decay: Array | float,
    betas: tuple[float, float],
    eps: float,
    step: int,
) -> None:
    """With c = sqrt(1 - b2^t), mhat / (sqrt(vhat) + eps) is (c / (1 - b1^t)) m / (sqrt(v) + c eps)."""
    beta1, beta2 = betas
    correction = (1 - beta2**step) ** 0.5
    scratch = g * (1 - beta1)
    m *= beta1
    m += scratch
    np.multiply(g, g, out=scratch)
    scratch *= 1 - beta2
    v *= beta2
    v += scratch
    np.sqrt(v, out=scratch)
    scratch += eps * correction
    np.divide(m, scratch, out=scratch)
    scratch *= lr * correction / (1 - beta1**step)
    if np.any(weight_decay):
        p *= 1 - lr * weight_decay
    p -= scratch
