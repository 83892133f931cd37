"""Forward and backward as one CUDA graph: recorded once, then launched as a whole, without Python between the kernels.

What changes from step to step enters through arrays that the graph reads: images, targets, and the random numbers of
dropout and drop path, which the host draws in the order in which the recorded step requested them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import cupy
import numpy as np

from minivit import device
from minivit.protocol import Array

_WARM_UP = 2  # runs before the recording: kernels are compiled, cuBLAS gets its workspace, constants move to the GPU


_unfilled: list[tuple[Any, Any]] | None = None  # arrays of the step that is being recorded, and their numbers


def on_device(values: np.ndarray[Any, Any]) -> Array:
    """The numbers in an array on the GPU. A recorded step has the same ones at every launch.

    A recording cannot copy from the host: the array is filled when it has ended.
    """
    if _unfilled is None:
        moved: Array = cupy.asarray(values)
        return moved
    array: Array = cupy.empty(values.shape, values.dtype)
    _unfilled.append((array, values))
    return array


class Draws:
    """Stands for a generator in a recorded step: hands out arrays on the GPU, which `refill` fills before each launch.

    A copy replays the same arrays, as a copied generator draws the same numbers.
    """

    def __init__(self, arrays: list[Array] | None = None, start: int = 0) -> None:
        self.arrays: list[Array] = [] if arrays is None else arrays
        self._next = start

    def random(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """The next array; a new one at the first request."""
        if self._next == len(self.arrays):
            self.arrays.append(cupy.zeros(shape, dtype))
        self._next += 1
        return self.arrays[self._next - 1]

    def __deepcopy__(self, memo: Any) -> Draws:
        return Draws(self.arrays, self._next)

    def rewind(self) -> None:
        """The step begins again."""
        self._next = 0

    def refill(self, rng: np.random.Generator) -> None:
        """Fresh numbers in all arrays, drawn as the step itself would draw them."""
        each: Any
        for each in self.arrays:
            each.set(rng.random(each.shape, each.dtype))


class Graph:
    """`run(*inputs)` recorded for inputs of one shape; `launch` repeats it with others and returns the same arrays.

    Args:
        run: computes on the GPU from the arrays it is given, and returns arrays. It may not look at a value.
        inputs: arrays on the GPU or the host, for their shapes and dtypes.
        draws: what stands for the generator in `run`, or None.

    Raises:
        RuntimeError: saying what cannot be recorded.
    """

    def __init__(self, run: Callable[..., Any], inputs: tuple[Array, ...], draws: Draws | None) -> None:
        self.draws = draws
        # memory of its own: what the graph writes to may not be given to others between two launches
        self._pool = cupy.cuda.MemoryPool()
        stream, current = _stream(cupy.cuda.Device().id), cupy.cuda.get_current_stream()
        stream.wait_event(current.record())
        with cupy.cuda.using_allocator(self._pool.malloc), stream:
            self._inputs = tuple(cupy.zeros(x.shape, x.dtype) for x in inputs)
            self._fill(inputs)
            for _ in range(_WARM_UP):
                self._begin()
                run(*self._inputs)
            stream.synchronize()
            self._begin()
            self._graph, self.outputs, filled = _record(stream, lambda: run(*self._inputs))
            stream.synchronize()
        self._constants = device.moved_constants(), filled  # the graph has their addresses

    def _begin(self) -> None:
        if self.draws is not None:
            self.draws.rewind()

    def _fill(self, inputs: tuple[Array, ...]) -> None:
        for ours, given in zip(self._inputs, inputs):
            if isinstance(given, cupy.ndarray):
                ours[...] = given
            else:
                ours.set(np.asarray(given, order="C"))

    def memory(self) -> int:
        """Bytes that it holds on the GPU."""
        return int(self._pool.total_bytes())

    def launch(self, inputs: tuple[Array, ...], rng: np.random.Generator | None) -> Any:
        """What `run` returns for these inputs, in the same arrays each time; the host does not wait for it."""
        self._fill(inputs)
        if self.draws is not None and rng is not None:
            self.draws.refill(rng)
        self._graph.launch()
        return self.outputs


@cache
def _stream(device: int) -> Any:
    """The stream of all recordings: cuBLAS needs a workspace for each stream."""
    return cupy.cuda.Stream(non_blocking=True)


def _record(stream: Any, run: Callable[[], Any]) -> tuple[Any, Any, Any]:
    """The graph of what `run` does, what it returns, and what `on_device` made; nothing is computed."""
    global _unfilled

    def refuse(size: int) -> Any:
        raise RuntimeError("an array of the host is copied to the GPU within the step")

    cupy.cuda.set_pinned_memory_allocator(refuse)  # such a copy would repeat this moment's numbers
    stream.begin_capture()
    filled: list[tuple[Any, Any]] = []
    _unfilled = filled
    outputs, error = None, None
    try:
        outputs = run()
    except Exception as caught:
        error = caught
    finally:
        _unfilled = None
        cupy.cuda.set_pinned_memory_allocator(cupy.get_default_pinned_memory_pool().malloc)
    try:
        graph = stream.end_capture()
    except Exception as caught:  # the capture was broken off
        error = error or caught
    if error is not None:
        raise RuntimeError(
            f"this step cannot be recorded as a CUDA graph: {error}. Train it with minivit.parallel.DataParallel"
        ) from error
    for array, values in filled:
        array.set(values)
    return graph, outputs, filled
