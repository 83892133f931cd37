"""Writing a file so that a crash, at any moment, leaves either the old file or the new one, never half of it.

Data and checkpoints both come through here.
"""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path


def write_atomically(path: Path, *parts: bytes | memoryview) -> None:
    """Parts, one after the other, into a temporary file beside it, flushed to disk, then renamed over it.

    A reader sees the old file or the new.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        with open(temporary, "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if hasattr(os, "O_DIRECTORY"):  # Windows cannot open a folder, and needs no flush of its names
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _remove_stale(path: Path) -> None:
    """Temporary files of writers that were killed."""
    mine = re.compile(re.escape(f".{path.name}.") + r"(\d+)-\d+\.tmp")
    for name in os.listdir(path.parent):
        found = mine.fullmatch(name)
        if found and not _is_running(int(found[1])):
            (path.parent / name).unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    if os.name != "posix":
        return True  # elsewhere os.kill(process, 0) is no question: on Windows it would end the process
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
