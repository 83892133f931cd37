"""Printing that never stops a run, even without the character, the pipe's reader or the disk space."""

from __future__ import annotations

import contextlib
import io
import os
from typing import Any


class Console(io.TextIOBase):
    """A text stream that escapes characters that it cannot encode, and drops text that it cannot write.

    Args:
        stream: the stream below; None, as in a program without a console, takes nothing.
        needed: raise the error of a stream that cannot be written, for a program that is there for its output.
    """

    def __init__(self, stream: Any, *, needed: bool = False) -> None:
        self.stream = stream
        self._ignored = () if needed and stream is not None else (OSError, ValueError, AttributeError)

    def write(self, text: str) -> int:
        with contextlib.suppress(*self._ignored):  # no reader, or no stream
            encoding = self.stream.encoding or "utf-8"
            self.stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(*self._ignored):
            self.stream.flush()

    def isatty(self) -> bool:
        try:
            return bool(self.stream.isatty())
        except (OSError, ValueError, AttributeError):
            return False

    def fileno(self) -> int:
        return int(self.stream.fileno())


def flush_or_discard(stream: Any) -> None:
    """Write what a stream still holds; if that cannot be done, discard it, so that Python does not fail at its end."""
    try:
        stream.flush()
    except (OSError, ValueError, AttributeError):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
