"""Work shared among threads: NumPy lets go of Python's lock inside its loops and products, so threads run in parallel.

Whole shards of a batch go to threads where that is possible (`minivit/parallel.py`); `sharing` is for the rest, where
single large operations are cut. Next: `kernels_numpy.py`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

_mine = threading.local()  # what holds in this thread: whether it is a worker, and how many may work for it
WORTH_SHARING = 1 << 16  # elements: below, handing over to another thread (50 microseconds) costs more than it gains


def usable_cores() -> int:
    """The cores this process may use: the CPU affinity where the system has it, and OMP_NUM_THREADS as a cap."""
    affinity = getattr(os, "sched_getaffinity", None)  # macOS and Windows have none
    cores = len(affinity(0)) if affinity else (os.cpu_count() or 1)
    cap = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(cores, int(cap))) if cap.isdigit() and int(cap) > 0 else cores


def in_threads(function: Callable[[Any], Any], items: Sequence[Any], threads: int) -> list[Any]:
    """[function(item) for item in items], by several threads at once; an error is raised after all have ended.

    What already runs in such a thread goes on in it alone: the others are busy with the like.
    """
    if threads == 1 or len(items) <= 1 or getattr(_mine, "is_worker", False):
        return [function(item) for item in items]
    futures = [_pool(os.getpid(), threads).submit(function, item) for item in items]
    try:
        return [future.result() for future in futures]
    finally:
        for future in futures:  # after an error the others still use what they share with the caller: wait for them
            future.exception()


@lru_cache(maxsize=4)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Idle threads cost nothing, so they are kept; a forked process has none of its parent's and starts its own."""
    return ThreadPoolExecutor(threads, thread_name_prefix="minivit", initializer=_mark)


def _mark() -> None:
    _mine.is_worker = True


def workers() -> int:
    """How many threads may work for this one: 1 if it is one of them itself, else the cores, or what `at_most` says."""
    if getattr(_mine, "is_worker", False):
        return 1
    return getattr(_mine, "most", None) or usable_cores()


@contextmanager
def at_most(threads: int) -> Iterator[None]:
    """A context in which so many threads work for this one."""
    with _holding("most", threads):
        yield


@contextmanager
def sharing(threads: int) -> Iterator[None]:
    """A context in which this thread's kernels cut large operations and share them among so many threads."""
    with _holding("shares", threads):
        yield


@contextmanager
def _holding(name: str, value: int) -> Iterator[None]:
    before = getattr(_mine, name, None)
    setattr(_mine, name, value)
    try:
        yield
    finally:
        setattr(_mine, name, before)


def in_slabs(function: Callable[[slice], Any], count: int, size: int) -> None:
    """function(slice) for slices that together are range(count): one for each thread that shares, if it is worth it.

    Args:
        count: rows, or elements.
        size: elements in all.
    """
    threads = (getattr(_mine, "shares", None) or 1) if size >= WORTH_SHARING else 1
    slabs = min(threads, count)
    bounds = [count * place // slabs for place in range(slabs + 1)] if slabs else []
    in_threads(function, [slice(*pair) for pair in zip(bounds, bounds[1:])], threads)
