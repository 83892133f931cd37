"""Gradient clipping and the learning-rate schedule."""

from __future__ import annotations

from collections.abc import Callable
from math import cos, inf, isfinite, pi
from typing import Any

from minivit.optim import together
from minivit.optim.base import Params, check_params


def clip_grad_norm(params: Params, max_norm: float, *, gather: Callable[[list[Any]], list[Any]] | None = None) -> float:
    """Scale all gradients so that their common Euclidean norm is at most `max_norm`; returns the norm before.

    If it is not finite, the gradients are cleared and the next step changes nothing: one NaN would permanently damage
    every parameter.

    Args:
        gather: one number of each gradient here -> those of all gradients, where processes share them.
    """
    check_params("clip_grad_norm", params)
    if not max_norm > 0:
        raise ValueError(f"max_norm={max_norm} must be positive")
    grads = [param.grad for param in params.values() if param.grad is not None]
    # one transfer from the device, not one per tensor
    if gather is None:
        norm = float(together.squared_norm(*grads)) ** 0.5 if grads else 0.0
    else:
        norm = float(sum(gather([together.squared_norm(grad) for grad in grads]))) ** 0.5
    if norm == inf:
        lines = [grad.reshape(-1) for grad in grads]
        collect = list if gather is None else gather
        # squares beyond 1e19 overflow float32: relative to the largest number they fit
        largest = max(collect([float(abs(line).max()) for line in lines if line.size]))
        if largest < inf:
            norm = largest * sum(collect([float((line / largest) @ (line / largest)) for line in lines])) ** 0.5
    if not isfinite(norm):
        for param in params.values():
            param.grad = None
    elif norm > max_norm:
        together.scale(*grads, factor=max_norm / (norm + 1e-6))  # 1e-6 as torch.nn.utils.clip_grad_norm_
    return norm


def warmup_cosine(step: int, total: int, *, peak: float, warmup: int = 0, final: float = 0.0) -> float:
    """The learning rate at a step in [0, total): rising linearly to `peak`, then half a cosine down to `final`.

    Step 0 has peak/warmup, not 0, so that the first step changes weights. Source: Loshchilov and Hutter 2017 (SGDR).
    """
    if not 0 < peak < inf:
        raise ValueError(f"peak={peak} must be positive and finite: at a learning rate of {peak} nothing is learned")
    if step < 0:
        raise ValueError(f"step={step} must not be negative")
    if total < 1 or warmup < 0 or warmup > total:
        raise ValueError(f"warmup={warmup} must lie between 0 and total={total}")
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return final + (peak - final) * 0.5 * (1 + cos(pi * progress))
