"""AdamW in one launch, wherever the parameters lie."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import cupy
import numpy as np

from minivit.device import constant
from minivit.fast.cupy.launch import launch
from minivit.protocol import Array

_STRETCH = 4096  # elements for a block: 16 for each thread


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
    """kernels/adamw.cu; `shares` are optim.optimizers.Share."""
    contiguous: Any = [cupy.ascontiguousarray(share.grad) for share in shares]
    places: Any = [(s.data.data.ptr, g.data.ptr, s.start) for s, g in zip(shares, contiguous)]
    addresses = cupy.asarray(np.array(places, np.int64))
    rates = cupy.asarray(np.array([(s.lr, s.weight_decay) for s in shares], first.dtype))
    stretches = _stretches(tuple(share.data.size for share in shares))
    corrections = (1 - betas[0] ** step, 1 - betas[1] ** step)
    launch(
        "adamw", "adamw", first.dtype, (len(stretches),), (256,), addresses, constant(stretches, first), rates, first,
        second, float(betas[0]), float(betas[1]), float(eps), *corrections,
    )  # fmt: skip


@lru_cache(maxsize=16)  # the same at every step
def _stretches(sizes: tuple[int, ...]) -> Array:
    """(parameter, first element, count) for each block."""
    found = [
        (number, low, min(_STRETCH, size - low))
        for number, size in enumerate(sizes)
        for low in range(0, size, _STRETCH)
    ]
    array = np.array(found, np.int32)
    array.setflags(write=False)
    return array
