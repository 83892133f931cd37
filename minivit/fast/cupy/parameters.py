"""One launch for all parameters, wherever they lie: AdamW, the norm of the gradients, their scaling, the average."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import cupy
import numpy as np

from minivit.device import constant
from minivit.fast.cupy.launch import launch, total
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
    rates = cupy.asarray(np.array([(s.lr, s.weight_decay) for s in shares], first.dtype))
    stretches = _stretches(tuple(share.data.size for share in shares))
    corrections = (1 - betas[0] ** step, 1 - betas[1] ** step)
    launch(
        "adamw", "adamw", first.dtype, (len(stretches),), (256,), _table(places), constant(stretches, first), rates,
        first, second, float(betas[0]), float(betas[1]), float(eps), *corrections,
    )  # fmt: skip


def sum_of_squares(*arrays: Array) -> Array:
    """kernels/parameters.cu, in an order that the sizes alone fix."""
    dtype = arrays[0].dtype
    contiguous = [cupy.ascontiguousarray(array.astype(dtype, copy=False)) for array in arrays]
    parts = cupy.empty(len(_stretches(_sizes(contiguous))), dtype)
    if not parts.size:
        return cupy.zeros((), dtype)
    _run("squares", contiguous, [(each.data.ptr,) for each in contiguous], parts)
    return total(parts)


def scale_all(*arrays: Array, factor: float) -> None:
    """kernels/parameters.cu; what does not lie in one piece by the formula."""
    direct, others = _split([(array,) for array in arrays])
    for (array,) in others:
        array *= factor
    _run("scale", [each for (each,) in direct], [(each.data.ptr,) for (each,) in direct], float(factor))


def average_all(*arrays: Array, decay: float) -> None:
    """kernels/parameters.cu; what does not lie in one piece by the formula."""
    count = len(arrays) // 2
    direct, others = _split([*zip(arrays[:count], arrays[count:])])
    for average, weights in others:
        average *= decay
        average += (1 - decay) * weights
    places = [(average.data.ptr, weights.data.ptr) for average, weights in direct]
    _run("average", [each for each, _ in direct], places, float(decay), float(1 - decay))


def _split(groups: list[tuple[Any, ...]]) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """The groups of arrays that a kernel reaches by their addresses, all of the first one's dtype, and the others."""
    dtype = groups[0][0].dtype
    fits = [all(each.flags.c_contiguous and each.dtype == dtype for each in group) for group in groups]
    return [g for g, fit in zip(groups, fits) if fit], [g for g, fit in zip(groups, fits) if not fit]


def _run(name: str, arrays: list[Any], places: Sequence[tuple[int, ...]], *arguments: Any) -> None:
    """A kernel of parameters.cu: a block for each stretch of each array."""
    stretches = _stretches(_sizes(arrays))
    if len(stretches):
        dtype, on_device = arrays[0].dtype, constant(stretches, arrays[0])
        launch("parameters", name, dtype, (len(stretches),), (256,), _table(places), on_device, *arguments)


def _table(places: Sequence[tuple[int, ...]]) -> Array:
    return cupy.asarray(np.array(places, np.int64))


def _sizes(arrays: list[Any]) -> tuple[int, ...]:
    return tuple(array.size for array in arrays)


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
