"""Which process wrote a file: by host, boot and number, so that a later one can tell whether it still runs.

A number alone says nothing in a folder that several machines share, or after a restart.
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
    """A process, as a file may name it.

    Attributes:
        host: the name of its machine.
        machine: eight letters that tell machines of the same name apart, as far as the system says so.
        boot: eight letters for the start of the system, "" where it is not known.
        space: eight letters for the space in which its number counts: containers have their own.
        pid: its number.
        start: when it began, in the system's ticks; "" where that is not known.
    """

    host: str
    machine: str
    boot: str
    space: str
    pid: int
    start: str


def this_process() -> Process:
    """The process that asks."""
    return Process(*_machine(), os.getpid(), _start(os.getpid()) or "")


def has_ended(process: Process) -> bool | None:
    """Whether it has ended; None if that cannot be told from here: on another machine, say, it may run."""
    here = this_process()
    if here.boot != process.boot or not here.boot:
        if here.machine != process.machine:
            return None
        if here.boot and process.boot:
            return True  # the machine was restarted since
    if here.space != process.space or not _POSIX:
        return None  # on Windows os.kill would be no question but the end of the process
    return not _is_running(process)


def _is_running(process: Process) -> bool:
    try:
        os.kill(process.pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    start = _start(process.pid)
    return start is None or start == process.start or not process.start  # another one has its number by now


def _start(pid: int) -> str | None:
    """When a process began; "ended" if it only waits for its parent to take note, None where the system is silent."""
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
