"""The process that wrote a file: host, boot and number, by which another process finds whether it still runs.

A number alone is not enough in a folder that several machines share, or after a restart.
"""

from __future__ import annotations

import hashlib
import os
import platform
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

_POSIX = os.name == "posix"


class Process(NamedTuple):
    """A process as named in a file.

    Attributes:
        host: the name of its machine.
        machine: eight letters that distinguish machines of the same name, where the system provides them.
        boot: eight letters for the start of the system, "" where it is not known.
        space: eight letters for the namespace of its number: containers have their own.
        pid: its number.
        start: its start time, in the system's ticks; "" where that is not known.
    """

    host: str
    machine: str
    boot: str
    space: str
    pid: int
    start: str


def this_process() -> Process:
    """The current process."""
    return Process(*_machine(), os.getpid(), _start(os.getpid()) or "")


def has_ended(process: Process) -> bool | None:
    """Whether it has ended; None if that is unknown, for example on another machine."""
    here = this_process()
    if here.boot != process.boot or not here.boot:
        if here.machine != process.machine:
            return None
        if here.boot and process.boot:
            return True  # the machine was restarted since
    if here.space != process.space or not _POSIX:
        return None  # on Windows os.kill would end the process
    return not _is_running(process)


def _is_running(process: Process) -> bool:
    try:
        os.kill(process.pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    start = _start(process.pid)
    return start is None or start == process.start or not process.start  # another process has its number now


def _start(pid: int) -> str | None:
    """The start time of a process; "ended" for a zombie, None where the system has none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return "ended" if fields[0] in (b"Z", b"X") else fields[19].decode()
    except (OSError, IndexError):
        return None


@lru_cache(maxsize=1)
def _machine() -> tuple[str, str, str, str]:
    host = platform.node() or "unknown"
    return host, _short(host, _text("/etc/machine-id")), _short(_text("/proc/sys/kernel/random/boot_id")), _space()


def _space() -> str:
    try:
        return _short(os.readlink("/proc/self/ns/pid"))
    except OSError:
        return ""


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


def _short(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode("utf-8", "surrogateescape")).hexdigest()[:8] if any(texts) else ""
