"""What ranks tell each other beside their work: that they have ended, wait, or may be slow.

A rank that waits for another learns by this whether it waits in vain.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

_ENDS, _WAITS, _IS_SLOW, _GOES_ON = range(4)
_DELIVERY = 1.0  # seconds for notes to leave, of a rank that then does not communicate for a while


class Notes:
    """Notes of two numbers, on a communicator of their own.

    Attributes:
        ended: the ranks that have come to the end of their program.
        slow: those that may take their time, because they write to a disk, say.
        waits: for some ranks the number of the last message for which they have waited long.

    Args:
        mpi, comm: of mpi4py.
    """

    def __init__(self, mpi: Any, comm: Any) -> None:
        self._mpi, self._comm, self._requests = mpi, comm, [mpi.REQUEST_NULL]
        self.rank, self.size = comm.Get_rank(), comm.Get_size()
        self.ended: set[int] = set()
        self.slow: set[int] = set()
        self.waits: dict[int, int] = {}

    def end(self) -> None:
        """Tell all that this rank has come to its end, and return when they have come to theirs."""
        self._tell(_ENDS)
        while len(self.ended) < self.size - 1:
            self.hear()
            time.sleep(50e-6)
        self._mpi.Request.Waitall(self._requests)

    def wait(self, message: int) -> None:
        """Tell all for which message this rank waits."""
        self.waits[self.rank] = message
        self._tell(_WAITS, message)

    def may_be_slow(self, slow: bool) -> None:
        """Tell all whether this rank may take its time."""
        self._tell(_IS_SLOW if slow else _GOES_ON)
        begin = time.monotonic()
        while not self._mpi.Request.Testall(self._requests) and time.monotonic() - begin < _DELIVERY:
            time.sleep(50e-6)

    def hear(self) -> None:
        """Read what has come."""
        status, note = self._mpi.Status(), np.empty(2, np.int64)
        while self._comm.Iprobe(status=status):
            other = status.Get_source()
            self._comm.Recv(note, other)
            kind, message = note.tolist()
            if kind == _ENDS:
                self.ended.add(other)
            elif kind == _WAITS:
                self.waits[other] = message
            elif kind == _IS_SLOW:
                self.slow.add(other)
            else:
                self.slow.discard(other)

    def latest(self, message: int) -> list[int]:
        """The ranks for which all others wait, of which those that are at this message wait too.

        A rank that goes on leaves its last note behind, of an earlier message than those that wait for it now.
        """
        known = [self.waits.get(rank, -1) for rank in range(self.size)]
        return [rank for rank, last in enumerate(known) if last == min(known) and last < message]

    def _tell(self, kind: int, message: int = 0) -> None:
        note = np.array([kind, message], np.int64)
        others = [rank for rank in range(self.size) if rank != self.rank]
        self._requests = [request for request in self._requests if not request.Test()]
        self._requests += [self._comm.Isend(note, other) for other in others]
