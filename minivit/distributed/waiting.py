"""How long a rank waits for others, and what it says when one of them does not come."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from minivit.distributed.notes import Notes
from minivit.distributed.supervisor import patience

_SPIN, _NAP = 200e-6, 50e-6  # seconds: an exchange in shared memory takes some microseconds
_LONGEST = 30  # times the patience with a silent rank: 10 minutes, in which ranks may load data, and compile
_AWAITED = 1.5  # times the patience: 30 s, since the process that watches a rank that sleeps speaks before
_UNEQUAL = 4  # times: a rank may have twice the shards of another, on a core of half the speed
_RECENT = 100  # messages: some 20 steps, after which the loading of data does not count any more
_QUIET = 1 / 6  # of the time for which a rank waits: then it lets the others know, before theirs is over
_PRECEDENCE = 3.0  # seconds in which the first of the waiting ranks speaks


class Waiting:
    """What a rank knows of its waits; all ranks make them in the same order.

    Attributes:
        is_under_way: whether the first step is over.
        processes: each rank in words.

    Args:
        notes: of the ranks that wait.
    """

    def __init__(self, notes: Notes) -> None:
        self._notes, self.is_under_way = notes, False
        self.processes: list[str] = []
        self._number, self._last = 0, time.monotonic()
        self._intervals: deque[float] = deque([0.0], maxlen=_RECENT)  # seconds between the ends of messages

    def until(self, done: Callable[[], Any]) -> float:
        """Wait for a message; returns the seconds. Most take microseconds; then the core is left to ranks that compute.

        Raises:
            RuntimeError: another rank has come to the end of its program, or one is awaited for too long.
        """
        begin = time.monotonic()
        self._number += 1
        look, since = begin + 1.0, begin
        while not done():
            now = time.monotonic()
            if now - begin > _SPIN:
                time.sleep(_NAP)
            if now < look:
                continue
            look = now + 1.0
            self._notes.hear()
            if self._notes.ended:
                raise RuntimeError(f"{self.processes[min(self._notes.ended)]} has ended, while this rank waits for it")
            since = now if self._notes.slow and not self._is_too_long(now - begin) else since
            self._go_on(now - since, begin - self._last)
        end = time.monotonic()
        self._intervals.append(end - self._last)
        self._last = end
        return end - begin

    def _is_too_long(self, seconds: float) -> bool:
        return seconds > _LONGEST * patience()

    def _go_on(self, seconds: float, computed: float) -> None:
        """Refuse to wait any longer for a rank that computes forever; let the others know early that this one waits."""
        most = longest_wait(patience(), max(computed, *self._intervals) if self.is_under_way else None)
        if seconds > most * _QUIET and self._notes.waits.get(self._notes.rank) != self._number:
            self._notes.wait(self._number)
        if seconds <= most:
            return
        late = self._notes.latest(self._number)
        first = min(rank for rank in range(self._notes.size) if rank not in late)
        if self._notes.rank != first and seconds <= most + _PRECEDENCE:
            return
        if not late:
            raise RuntimeError(f"waited {seconds:.0f} s for other ranks, which all wait: a network link may be cut")
        raise RuntimeError(
            f"waited {seconds:.0f} s for {', and for '.join(self.processes[rank] for rank in late)}, which computes "
            "without coming to its next message. If it may take longer, write `with ranks.slow():` around what it does "
            f"alone, or set MINIVIT_PATIENCE to more than {most / _AWAITED:.0f} s"
        )


def longest_wait(patience: float, interval: float | None) -> float:
    """Seconds for which a rank waits for others.

    All have about the same work between two messages, so one that is still missing after a multiple of the time that
    has ever been needed lately will not come.

    Args:
        patience: seconds, `supervisor.patience`.
        interval: the longest time between two messages lately, in seconds; None before the first step is over: data
            may then come from disks of different speeds.
    """
    return _LONGEST * patience if interval is None else max(_AWAITED * patience, _UNEQUAL * interval)
