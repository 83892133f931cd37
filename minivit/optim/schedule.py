"""What happens around a step: gradients clipped before it, and the learning rate's course from step to step."""

from __future__ import annotations

from collections.abc import Callable
from math import cos, inf, isfinite, pi
from typing import Any

from minivit.optim.base import Params, check_params


def clip_grad_norm(params: Params, max_norm: float, *, gather: Callable[[list[Any]], list[Any]] = list) -> float:
    """Scale all gradients so that their common Euclidean norm is at most `max_norm`; returns the norm before.

    Where it is not finite, the gradients are cleared, so that the step which follows changes nothing: one NaN would
    damage every parameter for good.

    Args:
        gather: one number of each gradient here -> those of all gradients, where processes share them.
    """
    check_params("clip_grad_norm", params)
    if not max_norm > 0:
        raise ValueError(f"max_norm={max_norm} must be positive")
    grads = [param.grad for param in params.values() if param.grad is not None]
    lines = [grad.reshape(-1) for grad in grads]
    norm = (
        float(sum(gather([line @ line for line in lines]))) ** 0.5
    )  # one number travels from the device, not one a tensor
    if norm == inf:  # squares beyond 1e19 overflow float32: relative to the largest number they fit
        largest = max(gather([float(abs(line).max()) for line in lines if line.size]))
        if largest < inf:
            norm = largest * sum(gather([float((line / largest) @ (line / largest)) for line in lines])) ** 0.5
    if not isfinite(norm):
        for param in params.values():
            param.grad = None
    elif norm > max_norm:
        for grad in grads:
            grad *= max_norm / (norm + 1e-6)  # 1e-6 as torch.nn.utils.clip_grad_norm_
    return norm


def warmup_cosine(step: int, total: int, *, peak: float, warmup: int = 0, final: float = 0.0) -> float:
    """The learning rate at a step in [0, total): rising linearly to `peak`, then half a cosine down to `final`.

    Step 0 has peak/warmup, not 0, so that no step is wasted. Source: Loshchilov and Hutter 2017 (SGDR).
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
