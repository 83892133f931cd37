"""Atomic writing: after a crash at any moment, either the old file or the new one exists, never a part.

Data and checkpoints are written by it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
from pathlib import Path

from minivit.io.process import Process, has_ended, this_process

_DAY = 86400.0  # seconds; no file takes as long to write, so older ones were left by a stopped machine


def write_atomically(path: Path, *parts: bytes | memoryview) -> None:
    """Write parts in turn to a temporary file in the same folder, flush it to disk, and rename it over `path`.

    A reader sees the old file or the new.

    Raises:
        OSError: names `path`, also where the disk is full; the old file is then unchanged.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(temporary_name(path.name))
        try:
            with open(temporary, "wb") as file:
                for part in parts:
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
                now = os.fstat(file.fileno()).st_mtime  # by the clock of the file system
            remove_stale(path, now)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        if hasattr(os, "O_DIRECTORY"):  # Windows cannot open a folder, and needs no flush of its names
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        raise _naming(error, path) from error


def _naming(error: OSError, path: Path) -> OSError:
    """The same error with the file's name, which an error of a write lacks."""
    return OSError(error.errno, f"{error.strerror or error}; the file from before is unchanged", str(path))


def temporary_name(name: str) -> str:
    """A name for this thread only, of bounded length: the file's name may already have the maximum of 255 bytes."""
    me = this_process()
    machine = f"{me.machine}-{me.boot}-{me.space}-{me.pid}-{me.start}"
    return f".{_digest(name)}.{machine}-{threading.get_ident()}.tmp"


_TEMPORARY = re.compile(r"\.([0-9a-f]{12})\.([0-9a-f]*)-([0-9a-f]*)-([0-9a-f]*)-(\d+)-(\w*)-\d+\.tmp")


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:12]


def remove_stale(path: Path, now: float) -> None:
    """Remove what killed writers of `path` left under a `temporary_name`.

    Another machine's writer may live, unless its file is a day old at `now`, by the clock of the file system.
    """
    digest = _digest(path.name)
    for name in os.listdir(path.parent):
        found = _TEMPORARY.fullmatch(name)
        if not found or found[1] != digest:
            continue
        ended = has_ended(Process("", found[2], found[3], found[4], int(found[5]), found[6]))
        with contextlib.suppress(OSError):  # gone by now, or another user's
            stale = path.parent / name
            if ended or (ended is None and now - stale.stat().st_mtime > _DAY):
                stale.unlink()
