"""A lock on a folder for one writer, which does not outlive a killed process, even in a folder that machines share.

The file `.run.lock` names the writer: host and process. Where the system can lock a file, the file is also locked until
its owner ends; its text decides between machines and where no such locks exist.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from pathlib import Path

from minivit.fork import Lock, at_fork
from minivit.io.atomic import remove_stale, temporary_name
from minivit.io.process import Process, has_ended, this_process

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".run.lock"


class LockedError(RuntimeError):
    """Another process or thread writes in this folder, or has begun to; names it and the remedy."""


class FolderLock:
    """Held from its construction to `release`, or to the end of the process.

    A later lock of the same thread replaces it: the first belongs to an abandoned run, for example in a notebook.

    Args:
        folder: made if missing.

    Raises:
        LockedError: another process or thread holds it, and may still run.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(os.path.realpath(folder))
        self.path = self.folder / LOCK
        self.thread = threading.current_thread()
        self._file: int | None = None
        with _turn:
            earlier = _held.get(str(self.folder))
            if earlier is not None:
                if earlier.thread is not self.thread and earlier.thread.is_alive():
                    raise LockedError(
                        f"the thread {earlier.thread.name} of this process already writes in {self.folder}: choose "
                        "another folder, or wait until it is done"
                    )
                earlier._drop()
            self._take()
            _held[str(self.folder)] = self

    def check(self) -> None:
        """Call it before a write: it takes a deleted lock again, and renews the lock's time.

        Raises:
            LockedError: another writer has taken over.
        """
        with _turn:
            if self._file is None:
                raise LockedError(
                    f"another run has begun in {self.folder} since, or this one was copied into a forked process: "
                    "only the newest run of a process may write there"
                )
            if not self._is_ours(self._file):
                os.close(self._file)
                self._file = None
                self._take()
            with contextlib.suppress(OSError):
                os.utime(self.path)

    def release(self) -> None:
        with _turn:
            if _held.get(str(self.folder)) is self:
                del _held[str(self.folder)]
            self._drop()

    def _drop(self) -> None:
        if self._file is not None:
            if self._is_ours(self._file):
                with contextlib.suppress(OSError):
                    self.path.unlink()
            os.close(self._file)
            self._file = None

    def leave_to_parent(self) -> None:
        """In a forked child: the lock stays the parent's."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _take(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / temporary_name(LOCK)
        file = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            _lock(file)
            os.write(file, json.dumps(this_process()._asdict()).encode())
            os.fsync(file)
            remove_stale(self.path, os.fstat(file).st_mtime)
            for _ in range(100):  # until no other process interferes
                if self._put(temporary, file):
                    self._file = file
                    return
            raise LockedError(f"{self.path} keeps changing: other runs start there. Choose another folder")
        finally:
            if self._file is None:
                os.close(file)
            with contextlib.suppress(OSError):
                temporary.unlink()

    def _put(self, temporary: Path, file: int) -> bool:
        """Replace the stale lock by the new one; False if another lock has replaced it."""
        try:
            os.link(temporary, self.path)
            return True
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            if not self.path.exists():
                os.replace(temporary, self.path)
                return self._is_ours(file)
        try:
            there = os.open(self.path, os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            busy = not _lock(there)
            if not busy and not self._is_ours(there):
                return False
            self._refuse_if_alive(there, busy, os.fstat(file).st_mtime)
            os.replace(temporary, self.path)  # reached only by the thread that locked the stale one
            return True
        finally:
            os.close(there)

    def _refuse_if_alive(self, there: int, busy: bool, now: float) -> None:
        age = max(0.0, now - os.fstat(there).st_mtime) / 60
        remedy = (
            f"wait for it, stop it, or choose another folder. If no such process runs any more, delete {self.path} and "
            "start again"
        )
        try:
            owner = Process(**json.loads(os.read(there, 4096)))
            ended = has_ended(owner)
        except (ValueError, TypeError):
            raise LockedError(f"{self.folder} is locked by {self.path}, which cannot be read: {remedy}") from None
        if fcntl is not None and not busy and owner.boot and owner.boot == this_process().boot and ended is None:
            ended = True  # a container on this machine: the system would have kept its lock
        if busy or not ended:
            raise LockedError(
                f"process {owner.pid} on host {owner.host} already writes in {self.folder} (last sign {age:.0f} "
                f"minutes ago): {remedy}"
            )

    def _is_ours(self, file: int) -> bool:
        try:
            return os.path.samestat(os.fstat(file), os.stat(self.path))
        except FileNotFoundError:
            return False


def _lock(file: int) -> bool:
    """Lock an open file for this process; False if another has it. True also where the system has no such locks."""
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            pass
    return True


_turn = Lock()
_held: dict[str, FolderLock] = {}  # of this process, by the path of the folder


def _leave_all_to_parent() -> None:
    for lock in _held.values():
        lock.leave_to_parent()
    _held.clear()


at_fork(_leave_all_to_parent)
