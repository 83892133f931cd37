"""Signs of life between machines: the process that watches rank r sends datagrams to the one of rank r + 1, in a ring.

A machine that has lost its power, or the network, can say nothing, and MPI and mpiexec may wait for it for minutes.
"""

from __future__ import annotations

import json
import mmap
import socket
import time
from contextlib import suppress

LOST = 10.0  # seconds without a sign
_EVERY = 1.0  # seconds between two signs
_BYE = b" bye"  # of a rank that has come to its end
_SIZE = 1024  # bytes of what the rank says of its neighbors


class Link:
    """Of one rank, held by the process that watches it; the rank itself says who its neighbors are.

    Args:
        limit: seconds without a sign after which the rank before counts as lost, at most 10.
    """

    def __init__(self, limit: float) -> None:
        self.limit = min(LOST, limit)
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("", 0))
        self.socket.setblocking(False)
        self.port: int = self.socket.getsockname()[1]
        self._page = mmap.mmap(-1, _SIZE)
        self._to: tuple[str, int] | None = None
        self._token, self._before = b"", ""
        self._sent = self._heard = 0.0
        self._ever = False

    def connect(self, address: str, port: int, token: str, before: str) -> None:
        """Called by the rank.

        Args:
            address, port: of the rank behind.
            token: a secret of the ranks of this run.
            before: the rank before this one, in words.
        """
        content = json.dumps([address, port, token, before]).encode()[: _SIZE - 1]
        self._page[1 : 1 + len(content)] = content
        self._page[0] = 1  # last: now it is whole

    def lost(self) -> str | None:
        """What has happened, if no sign came for too long; sends one if it is time."""
        now = time.monotonic()
        if self._to is None:
            if not self._page[0]:
                return None
            address, port, token, self._before = json.loads(self._page[1:].rstrip(b"\0"))
            self._to, self._token, self._heard = (address, port), token.encode(), now
        if now - self._sent > min(_EVERY, self.limit / LOST):
            self._sent = now
            self._send(self._token)
        with suppress(OSError):  # nothing more to read
            while True:
                message = self.socket.recv(256)
                if message.startswith(self._token):
                    self._heard, self._ever = now, True
                    if message.endswith(_BYE):
                        self._heard = float("inf")
        if now - self._heard < self.limit:
            return None
        self._heard = float("inf")
        if self._ever:
            return f"hears nothing from {self._before} for {self.limit:.0f} s: its machine, or the link to it, is lost"
        return ""  # never a sign

    def warning(self) -> str:
        """Of a rank from which no sign ever came."""
        return (
            f"hears nothing from {self._before}: let datagrams (UDP) pass between the machines, or set MINIVIT_ADDRESS "
            "on each to the address by which others reach it. Until then the loss of a machine is noticed late"
        )

    def close(self) -> None:
        """Say that this rank has come to its end."""
        if self._to is not None:
            self._send(self._token + _BYE)

    def _send(self, message: bytes) -> None:
        if self._to is not None:
            with suppress(OSError):
                self.socket.sendto(message, self._to)
