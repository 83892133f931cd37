"""One launch for all parameters, wherever they lie: AdamW, the norm of the gradients, their scaling, the average."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import cupy
import numpy as np

from minivit.device import constant
from minivit.fast.cupy.capture import on_device
from minivit.fast.cupy.launch import launch, total
from minivit.protocol import Array

_STRETCH = 4096  # elements for a block: 16 for each thread
_RATES = 6  # numbers of a plan before those of the parameters, as in kernels/adamw.cu
_AVERAGE = 5
_DOUBLE = np.dtype(np.float64)


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
    _adamw(first, second, shares, on_device(np.array([1, 1, step, *betas, 1, *_rates(shares)], _DOUBLE)), eps)


def _rates(shares: Sequence[Any]) -> list[float]:
    return [number for share in shares for number in (share.lr, share.weight_decay)]


def _adamw(first: Array, second: Array, shares: Sequence[Any], plan: Array, eps: float) -> None:
    contiguous: Any = [cupy.ascontiguousarray(share.grad) for share in shares]
    places: Any = [(s.data.data.ptr, g.data.ptr, s.start) for s, g in zip(shares, contiguous)]
    stretches = _stretches(tuple(share.data.size for share in shares))
    launch(
        "adamw", "adamw", first.dtype, (len(stretches),), (256,), _table(places), constant(stretches, first), plan,
        first, second, float(eps),
    )  # fmt: skip


def recorded_update(
    first: Array,
    second: Array,
    shares: Sequence[Any],
    averages: Sequence[tuple[Array, Array]],
    *,
    loss: Array,
    correct: Array | None,
    settings: Array,
    skipped: Array,
    max_norm: float,
    betas: tuple[float, float],
    eps: float,
    every: Sequence[Array] = (),
    scale: Any = None,
) -> Array:
    """Clipping, AdamW and the averaged weights, of which a graph can change everything from launch to launch.

    Args:
        first, second, shares, betas, eps: as in `adamw_step`; `lr` of a share is a factor.
        averages: (average, weights) of each parameter, or nothing.
        loss, correct: of the step, which go into the result.
        settings: (3,) float64, the learning rate, the number of the step, and the decay of the average; with number 0
            nothing is changed.
        skipped: (1,) float64, where steps are counted whose gradient is not finite.
        max_norm: infinite for none.
        every, scale: in float16 the gradients of all parameters, which are scaled, and their optim.LossScale.

    Returns:
        (3,) float64: loss, the gradient's norm before clipping, correct.

    Raises:
        ValueError: for averages that the kernel cannot reach by their addresses.
    """
    if scale is not None:
        direct, others = _split([(grad,) for grad in every])
        for (array,) in others:
            array *= (1 / scale.state[0]).astype(array.dtype)
        _run("unscale", [each for (each,) in direct], [(each.data.ptr,) for (each,) in direct], scale.state)
    squares = sum_of_squares(*(share.grad for share in shares))
    all_squares = sum_of_squares(*every) if len(every) > len(shares) else squares
    recipe = [max_norm, *betas, *_rates(shares)]
    plan, results = cupy.empty(_RATES + 2 * len(shares), _DOUBLE), cupy.empty(3, _DOUBLE)
    launch(
        "adamw", "decide", first.dtype, (1,), (256,), squares, all_squares, settings,
        on_device(np.array(recipe, _DOUBLE)), loss, correct, skipped, None if scale is None else scale.state, plan,
        results, 0 if scale is None else scale.growth, len(shares),
    )  # fmt: skip
    _adamw(first, second, shares, plan, eps)
    if averages:
        direct, others = _split(list(averages))
        if others:
            raise ValueError("averaged weights, or the model's, do not lie in one piece or have different dtypes")
        _average(direct, plan[_AVERAGE:_RATES])
    return results


def sum_of_squares(*arrays: Array) -> Array:
    """kernels/parameters.cu, in float64 and in an order that the sizes alone fix."""
    dtype = arrays[0].dtype
    contiguous = [cupy.ascontiguousarray(array.astype(dtype, copy=False)) for array in arrays]
    parts = cupy.empty(len(_stretches(_sizes(contiguous))), _DOUBLE)
    if not parts.size:
        return cupy.zeros((), _DOUBLE)
    places = [(each.data.ptr,) for each in contiguous]
    _run("squares", contiguous, places, parts, computed=_DOUBLE, BITS=8 * dtype.itemsize)
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
    _average(direct, on_device(np.array([decay], _DOUBLE)))


def _average(pairs: list[tuple[Any, ...]], decay: Array) -> None:
    places = [(average.data.ptr, weights.data.ptr) for average, weights in pairs]
    _run("average", [each for each, _ in pairs], places, decay)


def _split(groups: list[tuple[Any, ...]]) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """The groups of arrays that a kernel reaches by their addresses, all of the first one's dtype, and the others."""
    dtype = groups[0][0].dtype
    fits = [all(each.flags.c_contiguous and each.dtype == dtype for each in group) for group in groups]
    return [g for g, fit in zip(groups, fits) if fit], [g for g, fit in zip(groups, fits) if not fit]


def _run(
    name: str,
    arrays: list[Any],
    places: Sequence[tuple[int, ...]],
    *arguments: Any,
    computed: np.dtype[Any] | None = None,
    **defines: int,
) -> None:
    """A kernel of parameters.cu: a block for each stretch of each array; `computed` if not in the arrays' dtype."""
    stretches = _stretches(_sizes(arrays))
    if len(stretches):
        dtype, where = computed or arrays[0].dtype, constant(stretches, arrays[0])
        launch(
            "parameters", name, dtype, (len(stretches),), (256,), _table(places), where, *arguments, **defines
        )  # fmt: skip


def _table(places: Sequence[tuple[int, ...]]) -> Array:
    return on_device(np.array(places, np.int64))


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
