"""Locks that are free in a forked child, in which only the thread that forked continues.

A lock that another thread held at the fork would never be released in the child, which would wait forever.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from types import TracebackType


def _nothing() -> None:
    pass


def at_fork(
    in_child: Callable[[], object],
    *,
    before: Callable[[], object] = _nothing,
    in_parent: Callable[[], object] = _nothing,
) -> None:
    """Call `before()` whenever this process forks, and then `in_parent()` here and `in_child()` in the child."""
    if hasattr(os, "register_at_fork"):  # Windows cannot fork
        os.register_at_fork(before=before, after_in_parent=in_parent, after_in_child=in_child)


class Lock:
    """`threading.Lock` for `with`, free in a forked child unless the thread that forked holds it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holder: int | None = None
        _locks.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()
        self._holder = threading.get_ident()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._holder = None
        self._lock.release()

    @property
    def is_mine(self) -> bool:
        """Whether this thread holds it."""
        return self._holder == threading.get_ident()

    def renew(self) -> None:
        """The handler in a forked child."""
        if not self.is_mine:
            self._lock, self._holder = threading.Lock(), None


_locks: weakref.WeakSet[Lock] = weakref.WeakSet()


def _renew_all() -> None:
    for lock in list(_locks):
        lock.renew()


at_fork(_renew_all)
