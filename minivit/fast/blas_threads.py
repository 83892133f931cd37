"""The number of BLAS threads: contexts that set it and restore it.

`minivit/parallel/` runs shards of a batch in its own threads, and limits BLAS to one thread meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from minivit.fast.blas_kernel import warn_of_older_kernel
from minivit.fast.threads import is_worker
from minivit.fork import at_fork


@lru_cache(maxsize=1)
def _controller() -> Any:
    from threadpoolctl import ThreadpoolController  # inspects every loaded library: milliseconds, so only when needed

    controller = ThreadpoolController()
    warn_of_older_kernel([each for each in controller.info() if each["user_api"] == "blas"])  # once in a process
    return controller


def _set_threads(count: int) -> Callable[[], None]:
    """Sets the number, and returns a function that restores the old one. Any thread may call either."""
    with _control():
        limiter = _controller().limit(limits=count, user_api="blas")

    def restore() -> None:
        with _control():
            limiter.restore_original_limits()

    return restore


@contextmanager
def _control() -> Iterator[None]:
    """A context in which this thread may set OpenBLAS's number, which holds for the process.

    Since threadpoolctl 3.8 the thread that sets it first keeps control, and other threads' settings are silently
    ignored. Here the last of several holders restores the number, in any thread.
    """
    from threadpoolctl import OpenBLASController

    clear = getattr(OpenBLASController, "clear_controlling_thread", lambda force: None)
    clear(force=True)
    try:
        yield
    finally:
        clear(force=True)


# BLAS has one number of threads per process: threads that need the same number share it, others wait
_changed = threading.Condition()
_holders = 0
_held: tuple[int, Callable[[], None]] | None = None  # the number, and the function that restores the old one
_mine = threading.local()  # whether this thread is among the holders
_forks = 0  # threads that fork or are about to: no thread becomes a holder meanwhile
_PATIENCE = 60.0  # seconds that a fork waits for the holders


@contextmanager
def limit_threads(count: int) -> Iterator[None]:
    """A context in which BLAS (and nothing else) uses `count` threads; the old number is restored, also on errors.

    Threads that need the same number share it; a thread that needs another number waits until they are done.
    """
    if getattr(_mine, "holds", False):  # nested in such a context
        restore = _set_threads(count)
        try:
            yield
        finally:
            restore()
        return
    global _holders, _held
    with _changed:
        _changed.wait_for(lambda: not _forks and (_held is None or _held[0] == count))
        if _held is None:
            _held = (count, _set_threads(count))
        _holders += 1
    _mine.holds = True
    try:
        yield
    finally:
        _mine.holds = False
        with _changed:
            _holders -= 1
            if not _holders and _held is not None:
                _held[1]()
                _held = None
                _changed.notify_all()


def _wait_for_holders() -> None:
    """Before a fork, wait for running products: OpenBLAS ends its threads, and a running product would never end.

    A thread that holds the number, or works for one that does, would wait for itself.
    """
    global _forks
    with _changed:
        _forks += 1
        if not (getattr(_mine, "holds", False) or is_worker()):
            _changed.wait_for(lambda: _held is None, timeout=_PATIENCE)


def _go_on_in_parent() -> None:
    global _forks
    with _changed:
        _forks -= 1
        _changed.notify_all()


def _restore_in_child() -> None:
    """A forked child has none of the other holders; a thread that forks within its own context goes on in it."""
    global _changed, _holders, _held, _forks
    _changed, _forks = threading.Condition(), 0
    if getattr(_mine, "holds", False):
        _holders = 1
    elif _held is not None:
        _held[1]()
        _holders, _held = 0, None


at_fork(_restore_in_child, before=_wait_for_holders, in_parent=_go_on_in_parent)
