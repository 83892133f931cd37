"""Work shared among threads: NumPy lets go of Python's lock inside its loops and products, so threads run in parallel.

Next: `blas.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any


def usable_cores() -> int:
    """The cores this process may use: the CPU affinity where the system has it, and OMP_NUM_THREADS as a cap."""
    affinity = getattr(os, "sched_getaffinity", None)  # macOS and Windows have none
    cores = len(affinity(0)) if affinity else (os.cpu_count() or 1)
    cap = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(cores, int(cap))) if cap.isdigit() and int(cap) > 0 else cores


def in_threads(function: Callable[[Any], Any], items: Sequence[Any], threads: int) -> list[Any]:
    """[function(item) for item in items], by several threads at once; an error is raised after all have ended."""
    if threads == 1 or len(items) <= 1:
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
    return ThreadPoolExecutor(threads, thread_name_prefix="minivit")
