"""Limits on the memory that reading a file may take, for every reader of the library.

A file may take as much memory as its size plus a constant. Packed content unpacks to at most `most_unpacked` bytes,
text has at most `MAX_TEXT` bytes, and images and models have limited numbers of pixels and parameters. Only regular
files are opened, because a pipe could block forever. docs/published_weights.md lists all limits.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from io import BufferedReader
from typing import Any

MAX_RATIO = 50  # bytes for each byte of a packed file: weights reach 1.5, handwritten digits 10, drawings 40
MAX_SMALL = 1 << 20  # 1 MiB: may unpack at any ratio
MAX_TEXT = 8 << 20  # 8 MiB: of JSON or labels, up to 40 times as large as Python objects; ImageNet-21k's take 2
MAX_DEPTH = 100  # nesting of lists and dicts in JSON: Python's recursion limit is 1,000
MAX_PADDING = 1 << 20  # 1 MiB: zero bytes after a gzip member, as on tapes
MAX_RESIZED = 1 << 24  # 16.8 million pixels of a resized image, 4096 x 4096
MAX_TABLES = 1 << 26  # 67 million numbers that a model may have beyond those in its file: tables of positions, windows


def most_unpacked(size: int) -> int:
    """The number of bytes that a packed file of `size` bytes may unpack to."""
    return MAX_RATIO * size + MAX_SMALL


def open_file(path: str | os.PathLike[str]) -> BufferedReader:
    """A regular file, opened to be read in binary.

    Raises:
        OSError: if it cannot be opened, or is a pipe, a socket or a device.
    """
    file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115 (it is handed on)
    if not stat.S_ISREG(os.stat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is a pipe or a device, not a regular file: copy its content to one", str(path))
    return file


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # opening a pipe without a writer would wait for one


def read_small(path: str | os.PathLike[str]) -> bytes:
    """All bytes of a small file, such as JSON or labels.

    Raises:
        OSError: as `open_file`.
        ValueError: if it has more than `MAX_TEXT` bytes.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_TEXT:
            raise ValueError(f"it has {size:,} bytes, and no file of its kind has more than {MAX_TEXT:,}")
        return file.read(size)


def parse_json(text: str | bytes) -> Any:
    """The content of JSON, if its nesting is not too deep.

    Raises:
        ValueError: if it is not JSON, or nested more than `MAX_DEPTH` deep.
    """
    try:
        content = json.loads(text)
    except RecursionError:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep") from None
    level, depth = [content], 0
    while level := [part for each in level for part in _parts(each)]:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
    return content


def _parts(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
