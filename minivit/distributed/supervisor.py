"""The death of a rank ends the run: a small parent process watches each rank, and says what happened.

`supervise` forks. The child goes on as the rank; the parent only waits for it. When the rank is killed, fails, or falls
silent, the parent prints one line with the rank, the host, the process and the cause, and exits with an error, upon
which mpiexec ends all other ranks. A rank whose parent is gone ends too. So no rank waits forever for a dead one.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import select
import signal
import sys
import threading
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from minivit.distributed.link import Link

# seconds without any processor time after which a rank counts as stopped: one that computes, or waits in an exchange,
# uses some all the time
PATIENCE = 20.0
_TICK = 0.25  # seconds between two looks
_GRACE = 5.0  # seconds that mpiexec has to end by itself
_STARTING, _BUSY, _SLOW = range(3)  # what a rank does; it may be silent while it starts, or writes to a slow disk
_FORWARDED = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")


def patience() -> float:
    """Seconds of silence after which a rank is ended: MINIVIT_PATIENCE, or 20."""
    text = os.environ.get("MINIVIT_PATIENCE", "")
    try:
        return float(text) if text else PATIENCE
    except ValueError:
        raise ValueError(f"MINIVIT_PATIENCE={text!r} must be a number of seconds") from None


class Watched:
    """What a rank says to the process that watches it.

    Attributes:
        link: to the ranks beside this one; None where no process watches.

    Args:
        page: one byte, shared with it.
        pipe: where the reason of a failure is written; None where no process watches.
    """

    def __init__(self, page: mmap.mmap | None = None, pipe: int | None = None, link: Link | None = None) -> None:
        self._page, self._pipe, self.link = page, pipe, link

    def mark(self, slow: bool) -> None:
        """Say whether this rank may use no processor time for a while."""
        if self._page is not None:
            self._page[0] = _SLOW if slow else _BUSY

    def end(self, cause: str) -> NoReturn:
        """End this process immediately, without MPI's own end, which would wait for the other ranks."""
        with suppress(OSError, ValueError):
            sys.stdout.flush()
        if self._pipe is not None:
            os.write(self._pipe, cause.encode("utf-8", "replace")[:60_000])  # what a pipe takes in one call
        elif cause:
            sys.stderr.write(cause + "\n")
        with suppress(OSError, ValueError):
            sys.stderr.flush()
        os._exit(1)


def supervise(rank: int, size: int | None) -> Watched:
    """Go on in a child process, which the present one watches until it ends; returns in the child only.

    Args:
        rank, size: for messages.
    """
    if not hasattr(os, "fork"):  # Windows: mpiexec alone watches the ranks
        return Watched()
    page, limit = mmap.mmap(-1, 1), patience()
    link = Link(limit)
    report, said = os.pipe()
    alive, held = os.pipe()  # the child reads the end of the parent
    with warnings.catch_warnings():  # the threads of BLAS, which end for the fork
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        os.close(report)
        os.close(held)
        os.setsid()  # signals come through the parent, once
        _die_with_parent(alive)
        return Watched(page, said, link)
    os.close(said)
    os.close(alive)
    _killed_with_parent()
    os._exit(_watch(child, page, report, link, f"rank {rank}" + (f" of {size}" if size else ""), limit))


def _killed_with_parent() -> None:
    """Let Linux kill this process when its parent ends, also while it is stopped."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _die_with_parent(alive: int) -> None:
    _killed_with_parent()

    def wait() -> None:
        os.read(alive, 1)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, daemon=True, name="end of the supervisor").start()


def _watch(child: int, page: mmap.mmap, report: int, link: Link, name: str, limit: float) -> int:
    """The exit code of the child, once it has ended, after a message if it failed."""
    _forward_signals(child)
    who = f"minivit: {name} on host {platform.node()}, process {child}"
    cause, silence = b"", _Silence(child, limit)
    while True:
        ready, _, _ = select.select([report], [], [], _TICK)
        if ready:
            part = os.read(report, 65536)
            cause += part
            if not part:  # the child is ending
                break
            continue
        lost = link.lost()
        if lost == "":
            _say(f"{who}: {link.warning()}")
        hangs = silence.is_over(page[0] != _BUSY)
        if hangs or lost:
            _say(f"{who}: {silence.cause() if hangs else lost}; all ranks are ended")
            _send(child, signal.SIGKILL)
            os.waitpid(child, 0)
            _end_all()
            return 1
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        _say(f"{who}: was ended by {_signal_name(-code)}; all ranks are ended")
    elif cause:
        _say(f"{who}: {cause.decode('utf-8', 'replace')}")
    link.close()
    if code:
        _end_all()
    return 128 - code if code < 0 else code


def _forward_signals(child: int) -> None:
    """Pass signals on; mpiexec sends some of them twice, to the process and to its group, which counts as once."""
    last: dict[int, float] = {}

    def forward(number: int, _: object) -> None:
        now = time.monotonic()
        if now - last.get(number, -1.0) > _TICK:
            last[number] = now
            _send(child, number)

    for number in (getattr(signal, word) for word in _FORWARDED if hasattr(signal, word)):
        signal.signal(number, forward)


def _say(text: str) -> None:
    with suppress(OSError):
        os.write(2, (text.strip() + "\n").encode())


def _send(process: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, number)


def _signal_name(number: int) -> str:
    with suppress(ValueError):
        name = signal.Signals(number).name
        return name + (" (by a user, a scheduler, or the system for lack of memory)" if name == "SIGKILL" else "")
    return f"signal {number}"


class _Silence:
    """How long a process has used no processor time, as far as the system says so."""

    def __init__(self, process: int, limit: float) -> None:
        self.process, self.limit = process, limit
        self.used, self.since = 0.0, time.monotonic()

    def is_over(self, allowed: bool) -> bool:
        """Whether the process has been silent for the limit, and may not be."""
        used = self._processor_time()
        if allowed or used is None or used > self.used:
            self.used, self.since = used or 0.0, time.monotonic()
        return time.monotonic() - self.since > self.limit

    def cause(self) -> str:
        """In words."""
        stopped = self._fields()[:1] == [b"T"]
        what = "is stopped (by SIGSTOP, or a debugger)" if stopped else "hangs"
        return f"{what}: no processor time for {self.limit:.0f} s (MINIVIT_PATIENCE)"

    def _processor_time(self) -> float | None:
        fields = self._fields()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if fields else None

    def _fields(self) -> list[bytes]:
        with suppress(OSError):
            return Path(f"/proc/{self.process}/stat").read_bytes().rpartition(b")")[2].split()
        return []


def _end_all() -> None:
    """Let mpiexec end all ranks before this process exits.

    MPICH's mpiexec ends them when the rank's channel closes while the process still runs; where it finds the process
    gone first, it leaves the others alone. An mpiexec of this machine that has not ended some seconds later is killed:
    after a cut link it can hang.
    """
    launchers = _launchers()
    if launchers and os.fork() == 0:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):  # whoever reads the output of the run must not wait for this process
            os.dup2(null, stream)
        os.closerange(3, 256)
        time.sleep(_GRACE)
        for process, start in launchers:
            if _start(process) == start:
                _send(process, signal.SIGKILL)
        os._exit(0)
    channel = os.environ.get("PMI_FD", "")
    if channel.isdecimal():
        time.sleep(_TICK)  # the message is on its way through mpiexec
        with suppress(OSError):
            os.close(int(channel))
        time.sleep(4 * _TICK)


def _launchers() -> list[tuple[int, bytes]]:
    """The processes above this one that belong to mpiexec, with the times at which they began."""
    found, process = [], os.getppid()
    while process > 1:
        try:
            name = Path(f"/proc/{process}/comm").read_text().strip()
            fields = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            break
        if not name.startswith(("mpiexec", "mpirun", "hydra", "orte", "prte")):
            break
        found.append((process, fields[19]))
        process = int(fields[1])
    return found


def _start(process: int) -> bytes | None:
    with suppress(OSError):
        return Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()[19]
    return None
