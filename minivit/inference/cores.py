"""Cores that compute one network together: each has buffers, a share of the work, and meets the others.

All run the same program. Between two meetings a core works on its own, with BLAS on one thread: an image then costs a
few dozen meetings of some 30 microseconds, instead of one in each product and none of the loops shared.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from minivit.fast.blas_threads import limit_threads
from minivit.fast.threads import in_threads
from minivit.fork import Lock
from minivit.protocol import Array, inference

ALONE, BY_TOKENS, BY_HEADS = "alone", "by tokens", "by heads"

_turn = Lock()  # one team at a time: a second one would only wait for the same cores


class Buffers:
    """Memory by name that is used again at every call: it grows to the largest shape requested."""

    def __init__(self, dtype: Any) -> None:
        self.dtype, self._turn = np.dtype(dtype), Lock()
        self._memory: dict[str, Array] = {}

    def get(self, name: str, *shape: int) -> Array:
        """An array of the shape, in the memory of this name; its content is arbitrary."""
        size = prod(shape)
        with self._turn:
            if name not in self._memory or self._memory[name].size < size:
                self._memory[name] = np.empty(size, self.dtype)
            return self._memory[name][:size].reshape(shape)

    @property
    def nbytes(self) -> int:
        """The bytes of all memory."""
        return sum(memory.nbytes for memory in self._memory.values())


class Core:
    """One of `count` cores, the `number`-th.

    Attributes:
        share: ALONE: what the core is given is its own. BY_TOKENS: it has a part of the tokens of each image, and
            reads the keys and values of all. BY_HEADS: it has all tokens, and a part of the heads and hidden units.
        buffers, shared: its own memory, and that of all cores.
    """

    def __init__(self, number: int, count: int, shared: Buffers) -> None:
        self.number, self.count, self.share = number, count, ALONE
        self.buffers, self.shared, self._exchanges = Buffers(shared.dtype), shared, 0
        self.barrier: threading.Barrier | None = None  # of one run

    def buffer(self, name: str, *shape: int) -> Array:
        """Memory of this core alone."""
        return self.buffers.get(name, *shape)

    def exchange(self, name: str, *shape: int) -> Array:
        """Memory that all cores write to before they meet, and read afterwards.

        Names alternate between two memories: a core may write the next values while another reads these.
        """
        self._exchanges += 1
        return self.shared.get(f"{name} {self._exchanges % 2}", *shape)

    def meet(self) -> None:
        """Wait for the other cores."""
        if self.barrier is not None:
            self.barrier.wait()

    def part(self, count: int) -> slice:
        """This core's part of so many things."""
        return slice(count * self.number // self.count, count * (self.number + 1) // self.count)

    def heads(self, count: int) -> slice:
        """This core's part of so many heads, or of so many hidden units."""
        return self.part(count) if self.share == BY_HEADS else slice(0, count)

    def total(self, term: Array) -> Array:
        """The sum of all heads' or hidden units' terms, of which `term` is the sum of this core's."""
        if self.share != BY_HEADS:
            return term
        terms = self.exchange("terms", self.count, *term.shape)
        terms[self.number] = term
        self.meet()
        return np.sum(terms, axis=0, out=term)


class Team:
    """So many cores with their buffers, which last from call to call."""

    def __init__(self, count: int, dtype: Any) -> None:
        shared = Buffers(dtype)
        self.cores = [Core(number, count, shared) for number in range(count)]

    def run(self, program: Callable[[Core], Any]) -> list[Any]:
        """What `program(core)` returns for each core; an error in one of them ends all."""
        barrier = threading.Barrier(len(self.cores)) if len(self.cores) > 1 else None
        for core in self.cores:
            core.barrier = barrier
        errors: list[BaseException] = []

        def guarded(core: Core) -> Any:
            try:
                with inference():
                    return program(core)
            except BaseException as error:
                if not isinstance(error, threading.BrokenBarrierError):
                    errors.append(error)
                if barrier is not None:
                    barrier.abort()  # the others stop waiting, with a BrokenBarrierError
                raise

        with _turn, limit_threads(1):
            try:
                return in_threads(guarded, self.cores, len(self.cores))
            except threading.BrokenBarrierError:
                raise errors[0] from None

    @property
    def nbytes(self) -> int:
        """The bytes of all buffers."""
        return self.cores[0].shared.nbytes + sum(core.buffers.nbytes for core in self.cores)
