"""AdamW on the CPU: in pieces that fit into a core's cache, shared among threads, with one scratch array each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minivit.fast.threads import in_threads
from minivit.protocol import Array

_PIECE = 1 << 18  # elements: a megabyte of float32; smaller ones cost more in calls, larger ones miss the cache
_WORTH_THREADS = 3  # pieces; fewer finish before a second thread has started


@dataclass
class _Piece:
    """A range of the flat moments with one learning rate; its parts: flat views of data and gradient, and a decay."""

    start: int
    stop: int
    lr: float
    parts: list[tuple[Array, Array, float]]


def adamw_step(
    first: Array,
    second: Array,
    shares: Sequence[Any],
    *,
    betas: tuple[float, float],
    eps: float,
    step: int,
    threads: int = 1,
) -> None:
    """Each number is read from memory once; threads change no bit. `shares` are optim.optimizers.Share."""
    pieces = _pieces(shares)

    def update(piece: _Piece) -> None:
        span = slice(piece.start, piece.stop)
        data, grad, decay = (list(column) for column in zip(*piece.parts))
        p = np.concatenate(data) if len(data) > 1 else data[0]
        decays: Any = decay[0]
        if any(each != decays for each in decay):
            decays = np.concatenate([np.full(part.size, each, part.dtype) for part, each in zip(data, decay)])
        g = np.concatenate(grad) if len(grad) > 1 else grad[0]
        adamw(p, g, first[span], second[span], lr=piece.lr, weight_decay=decays, betas=betas, eps=eps, step=step)
        start = 0
        for part in data if len(data) > 1 else ():
            part[...] = p[start : start + part.size]
            start += part.size

    in_threads(update, pieces, threads if len(pieces) >= _WORTH_THREADS else 1)


def _pieces(shares: Sequence[Any]) -> list[_Piece]:
    """A part of a large parameter, updated in place, or several small ones, which `update` gathers."""
    pieces: list[_Piece] = []
    for share in shares:
        data, grad = share.data.reshape(-1), share.grad.reshape(-1)
        for low in range(0, data.size, _PIECE):
            high = min(low + _PIECE, data.size)
            part = (data[low:high], grad[low:high], share.weight_decay)
            last = pieces[-1] if pieces else None
            fits = last and last.stop == share.start + low and share.start + high - last.start <= _PIECE
            if last and fits and last.lr == share.lr:
                last.stop = share.start + high
                last.parts.append(part)
            else:
                pieces.append(_Piece(share.start + low, share.start + high, share.lr, [part]))
    return pieces


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
