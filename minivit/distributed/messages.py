"""What the processes of a run say to each other, here for a single one; every rank makes the same calls in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from minivit.protocol import Array

T = TypeVar("T")


class Messages:
    """One process by itself, which hears only what it says.

    Attributes:
        rank: the number of this process, from 0.
        size: how many there are.
        shards: into how many parts a batch is cut, whoever computes them; None leaves it to `parallel.DataParallel`.
        sent: bytes of arrays that this rank has sent.
        waited: seconds that it has spent in messages, and in waiting for other ranks.
        exact: whether gradients are added in one fixed order; else in that of NCCL or MPI.

    Args:
        shards: at least 1.
        exact: see above.
    """

    rank, size, sent = 0, 1, 0
    waited = 0.0

    def __init__(self, shards: int | None = None, exact: bool = True) -> None:
        if shards is not None and shards < 1:
            raise ValueError(f"shards={shards} must be at least 1")
        self.shards, self.exact = shards, exact

    def __repr__(self) -> str:
        return f"{type(self).__name__}(rank {self.rank} of {self.size}, shards={self.shards})"

    @property
    def first(self) -> bool:
        """Whether this is the rank that prints, draws and writes."""
        return self.rank == 0

    @contextmanager
    def slow(self) -> Iterator[None]:
        """A context in which this rank may take its time, because it reads or writes a disk, or computes alone, say."""
        yield

    def per_machine(self, make: Callable[[], T]) -> T:
        """What `make` returns, which one rank of each machine calls, for all of its ranks: for the reading of data.

        Args:
            make: () -> a value that can be pickled. Its arrays are then read-only, in memory that the ranks share.
        """
        return make()

    def under_way(self) -> None:
        """Called after each step: from the first one on, no rank waits much longer for another than it ever did."""

    def gather(self, value: Any) -> list[Any]:
        """The small values of all ranks, in their order, on each of them."""
        return [value]

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value on each rank."""
        return value

    def most(self, *values: int) -> tuple[int, ...]:
        """The largest of each value over the ranks."""
        return values

    def wait(self) -> None:
        """Return when all ranks have come here."""

    def exchange(self, outgoing: Sequence[Sequence[Array]], incoming: Sequence[Sequence[Array]]) -> None:
        """Send flat contiguous arrays and fill others.

        Args:
            outgoing: for each rank, what it is sent; nothing for this one.
            incoming: for each rank, what is filled by it, in the order in which it sends.
        """

    def add_all(self, flat: Array) -> None:
        """Replace a flat contiguous array by its sum over the ranks, whose order is not fixed: for exact=False."""

    def share(self, flat: Array, bounds: Sequence[int]) -> None:
        """Give every rank the segments flat[bounds[r] : bounds[r + 1]] of all ranks r, in place."""
