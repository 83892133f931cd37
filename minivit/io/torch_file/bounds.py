"""Reading an untrusted file within its bounds: its claims are compared with its content before they are used.

Every fault is an Unreadable, which `torch_file/__init__.py` turns into the CheckpointError that names the file.
"""

from __future__ import annotations

from typing import Any, BinaryIO

DAMAGED = "it is damaged, fetch it again"
REFUSED = "it was refused: fetch it again, from a source that you trust"
MAX_NAME = 256  # characters of a module or class; the longest that torch writes has 42


class Unreadable(Exception):
    """A fault of the file, as the end of a sentence that begins with its name."""


def check(condition: Any, fault: str) -> None:
    """Raise Unreadable(fault) unless the condition holds."""
    if not condition:
        raise Unreadable(fault)


class Source:
    """`size` bytes of a file from `start` on; taking more than are left is a fault and allocates nothing."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        file.seek(start)
        self._file, self._end = file, start + size
        self.left = size

    @property
    def position(self) -> int:
        """The position of the next byte in the file."""
        return self._end - self.left

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        self._check_left(count)
        data = self._file.read(count)
        if len(data) != count:
            raise Unreadable(f"ends at byte {self.position + len(data)}, before its claimed size: fetch it again")
        self.left -= count
        return data

    def skip(self, count: int) -> None:
        """Skip the next `count` bytes."""
        self._check_left(count)
        self.left -= count
        self._file.seek(self.position)

    def line(self) -> bytes:
        """The bytes up to the next end of line, without it."""
        start = self.position
        data = self._file.readline(min(MAX_NAME + 1, self.left))
        check(data.endswith(b"\n"), f"has no end of line after byte {start}: {DAMAGED}")
        self.left -= len(data)
        return data[:-1]

    def _check_left(self, count: int) -> None:
        if not 0 <= count <= self.left:
            raise Unreadable(f"claims {count} bytes at byte {self.position}, but {self.left} are left: {DAMAGED}")
