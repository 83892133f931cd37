"""The matrix products of a step: recorded as they really happen, with shapes and memory layouts, and run again alone.

What remains of a step beyond them is not BLAS. Next: `roofline.py` and `profile_step.py`, which both ask.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from cases import Case, Start, draw_batch
from minivit_side import MinivitSide, start_of

from minivit.fast.blas_threads import limit_threads
from minivit.fast.threads import at_most

ROUNDS = 5  # of what is timed alone; the fastest counts, because the floor of a time is wanted


@dataclass(frozen=True)
class Operand:
    """Where an array's elements lie; BLAS is fast or slow by it, and NumPy copies some layouts first."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in bytes
    dtype: str

    @classmethod
    def of(cls, array: np.ndarray) -> Operand:
        return cls(array.shape, tuple(map(abs, array.strides)), array.dtype.name)

    def make(self, rng: np.random.Generator) -> np.ndarray:
        """Random numbers in the same layout."""
        itemsize = np.dtype(self.dtype).itemsize
        last = sum((size - 1) * stride for size, stride in zip(self.shape, self.strides))
        memory = rng.random(last // itemsize + 1, np.float32).astype(self.dtype, copy=False)
        return np.lib.stride_tricks.as_strided(memory, self.shape, self.strides)


@dataclass(frozen=True)
class Product:
    """a @ b, into `out` where the caller gave one."""

    a: Operand
    b: Operand
    out: Operand | None = None

    @classmethod
    def square(cls, size: int) -> Product:
        side = Operand((size, size), (4 * size, 4), "float32")
        return cls(side, side)

    @property
    def macs(self) -> int:
        """Multiply-adds: each element of `a` meets each column of `b`; a stack of `b` may be wider than that of `a`."""
        if len(self.b.shape) == 1:
            return prod(self.a.shape)
        stack = np.broadcast_shapes(self.a.shape[:-2], self.b.shape[:-2])
        return prod(stack) * prod(self.a.shape[-2:]) * self.b.shape[-1]

    @property
    def is_sum(self) -> bool:
        """Whether it is a sum of rows or columns written as a product with a vector of ones, and no layer's product."""
        return len(self.a.shape) == 1 or len(self.b.shape) == 1 or self.b.shape[-1] == 1

    def ready(self) -> Callable[[], Any]:
        """A function that computes it again, on random numbers that lie as its own did."""
        rng = np.random.default_rng(0)
        a, b = self.a.make(rng), self.b.make(rng)
        if self.out is None:
            return lambda: a @ b
        out = self.out.make(rng)
        return lambda: np.matmul(a, b, out=out)


def alone(products: Counter[Product], rounds: int = ROUNDS) -> dict[Product, float]:
    """Seconds of each product by itself: the mean of as many runs as it has in the step, in the fastest round.

    Its operands stay in the cache where they fit, so in the midst of a step it takes longer, if anything.
    """
    seconds = {}
    for product, count in products.items():
        run = product.ready()
        run()  # not timed: the first is slow
        times = []
        for _ in range(rounds):
            begin = time.perf_counter()
            for _ in range(count):
                run()
            times.append((time.perf_counter() - begin) / count)
        seconds[product] = min(times)
    return seconds


# --- recording ------------------------------------------------------------------------------------------------------


class _Recorded(np.ndarray):
    """An array that tells of every product it takes part in, and so does all that is computed from it."""

    note: Callable[[Product], None]

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = None, **options: Any) -> Any:
        inputs = tuple(map(_plain, inputs))
        if out is not None:
            options["out"] = tuple(map(_plain, out))
        if ufunc is np.matmul:
            into = Operand.of(options["out"][0]) if out is not None else None
            _Recorded.note(Product(Operand.of(inputs[0]), Operand.of(inputs[1]), into))
        result = getattr(ufunc, method)(*inputs, **options)
        return result.view(_Recorded) if isinstance(result, np.ndarray) else result


def _plain(value: Any) -> Any:
    return value.view(np.ndarray) if isinstance(value, _Recorded) else value


@contextmanager
def recording(side: MinivitSide, note: Callable[[Product], None]) -> Iterator[None]:
    """A context in which `note` is called with each product of the side's model; results are the same to the last bit.

    Everything is computed from the weights, so they are made to tell. It costs microseconds for each operation: do
    not take times within.
    """
    params = side.model.parameters().values()
    _Recorded.note = note
    for param in params:
        param.swap(param.data.view(_Recorded))
    try:
        yield
    finally:
        for param in params:
            param.swap(_plain(param.data))
            param.grad = None


def products_of(side: MinivitSide) -> Counter[Product]:
    """How often one step of a side computes which product; not its first, which also plans its shards."""
    side.step()
    found: Counter[Product] = Counter()
    with recording(side, lambda product: found.update([product])):
        side.step()
    return found


# --- the step -------------------------------------------------------------------------------------------------------


def prepare(case: Case, variant: str, threads: int, images: int | None = None) -> MinivitSide:
    """A case in this process, with the first so many images of its batch; weights are as initialized."""
    batch, labels = draw_batch(case)
    return MinivitSide(case, Start(batch[:images], labels[:images], start_of(case)[1]), threads, variant)


@contextmanager
def holding(threads: int) -> Iterator[None]:
    """A context in which minivit and BLAS use so many threads, whatever the environment says."""
    with limit_threads(threads), at_most(threads):
        yield


def spread(case: Case, threads: int) -> tuple[int, int]:
    """How many threads have a shard of the batch, and how many BLAS has in each, as minivit arranges it.

    Each thread has a shard; where inference has fewer images than threads, all threads work on each product.
    """
    if case.task == "infer" and case.batch < threads:
        return 1, threads
    return min(threads, case.batch), 1
