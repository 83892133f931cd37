"""Work shared among threads: NumPy releases Python's lock inside its loops and products, so threads run in parallel.

Threads get shards of a batch (`minivit/parallel/`). Single operations are not split: a thread that returns from a
loop of NumPy's waits for the lock, and below about 50 microseconds that costs more than the second core gains.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence

# imported here, so that its handler of forks is older than that of blas_threads.py: the latest runs first, and this one
# takes a lock that the step needs for which blas_threads.py waits
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from minivit.fork import at_fork

_mine = threading.local()  # of this thread: whether it is a worker, and how many threads may work for it


def usable_cores() -> int:
    """The cores this process may use: the CPU affinity where the system has it, and OMP_NUM_THREADS as a cap."""
    affinity = getattr(os, "sched_getaffinity", None)  # macOS and Windows have none
    cores = len(affinity(0)) if affinity else (os.cpu_count() or 1)
    cap = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # a list has one number for each level
    return min(cores, int(cap)) if cap.isdecimal() and int(cap) > 0 else cores


def in_threads(function: Callable[[Any], Any], items: Sequence[Any], threads: int) -> list[Any]:
    """[function(item) for item in items], by several threads in parallel, including the caller's.

    Each takes the next item when it is done with one. An error is raised after all have ended, because they share what
    the caller owns. A call from such a thread runs in it alone: the others are busy.
    """
    if threads == 1 or len(items) <= 1 or is_worker():
        return [function(item) for item in items]
    results: list[Any] = [None] * len(items)
    errors: dict[int, BaseException] = {}
    indices = iter(range(len(items)))

    def work() -> None:
        with _holding("is_worker", True):
            for index in indices:
                try:
                    results[index] = function(items[index])
                except BaseException as error:  # also a KeyboardInterrupt, which reaches the caller's thread
                    errors[index] = error
                    for _ in indices:  # skip items that have not begun
                        pass

    others = min(threads, len(items)) - 1
    futures = [_pool(threads).submit(work) for _ in range(others)]
    work()
    try:
        for future in futures:
            future.result()
    finally:  # also when the caller is interrupted while it waits
        for _ in indices:
            pass
        for future in futures:
            future.exception()
    if errors:
        raise errors[min(errors)]
    return results


@lru_cache(maxsize=4)
def _pool(threads: int) -> ThreadPoolExecutor:
    """Idle threads cost nothing, so they are kept; a forked process has none of its parent's and starts its own."""
    return ThreadPoolExecutor(threads, thread_name_prefix="minivit")


at_fork(_pool.cache_clear)


def is_worker() -> bool:
    """Whether this thread works for another, which waits for it."""
    return getattr(_mine, "is_worker", False)


def workers() -> int:
    """The number of threads that may work for this one: 1 in a worker, else the cores, or the limit of `at_most`."""
    if is_worker():
        return 1
    return getattr(_mine, "most", None) or usable_cores()


@contextmanager
def at_most(threads: int) -> Iterator[None]:
    """A context in which so many threads work for this one."""
    with _holding("most", threads):
        yield


@contextmanager
def _holding(name: str, value: int) -> Iterator[None]:
    before = getattr(_mine, name, None)
    setattr(_mine, name, value)
    try:
        yield
    finally:
        setattr(_mine, name, before)
