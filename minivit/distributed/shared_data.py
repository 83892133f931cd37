"""Data that one process of a machine reads, and all of its processes use: arrays in a file that each maps.

The file is temporary and has no name any more once all have mapped it. The system keeps one copy of its pages.
"""

from __future__ import annotations

import mmap
import os
import pickle
import tempfile
from typing import Any, NamedTuple

_ALIGNED = 64  # bytes, as NumPy's own arrays


class SharedFile(NamedTuple):
    """Where the parts of a value lie: first its pickle, then the memory of its arrays."""

    path: str
    parts: list[tuple[int, int]]  # where each begins, and its length


def write(value: Any) -> SharedFile:
    """Write a value that can be pickled to a new temporary file.

    Raises:
        OSError: no room for it; TMPDIR names another folder.
    """
    buffers: list[pickle.PickleBuffer] = []
    content = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    handle, path = tempfile.mkstemp(prefix="minivit-data-")
    parts = []
    try:
        with os.fdopen(handle, "wb") as file:
            for part in (memoryview(content), *(buffer.raw() for buffer in buffers)):
                file.write(bytes(-file.tell() % _ALIGNED))
                parts.append((file.tell(), part.nbytes))
                file.write(part)
    except BaseException:
        os.unlink(path)
        raise
    return SharedFile(path, parts)


def read(file: SharedFile) -> Any:
    """The value, whose arrays are read-only views of the file.

    Raises:
        FileNotFoundError: the file is one of another machine.
    """
    with open(file.path, "rb") as opened:
        view = memoryview(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))
    content, *buffers = (view[start : start + length] for start, length in file.parts)
    return pickle.loads(content, buffers=buffers)
