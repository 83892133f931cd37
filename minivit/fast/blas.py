"""How many threads the matrix products use: one call to hold BLAS to a number, and to give it back.

`minivit/parallel.py` runs shards of a batch in threads of its own and holds BLAS to one thread meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any


@lru_cache(maxsize=1)
def _controller() -> Any:
    from threadpoolctl import ThreadpoolController  # asks every loaded library once: milliseconds, so only when needed

    return ThreadpoolController()


_turn = threading.RLock()  # BLAS has one number of threads for the whole process, so those who set it take turns


@contextmanager
def limit_threads(count: int) -> Iterator[None]:
    """A context in which BLAS (and nothing else) uses `count` threads; the old number is restored, also on errors.

    Another thread that wants to limit BLAS waits meanwhile: if the two overlapped, the later one would save the
    earlier one's limit as "the old number" and leave it behind.
    """
    with _turn, _controller().limit(limits=count, user_api="blas"):
        yield
