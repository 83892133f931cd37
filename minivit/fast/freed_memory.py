"""Keeping freed memory in the process: each training step allocates the same arrays again.

glibc returns large freed blocks to the system immediately, and gets them back as fresh pages that must be zeroed. For a
small ViT that was a fifth of the step's processor time (12.7 of 60 ms; 0.5 ms with the settings below). So the
C library's allocator is configured to keep them. No pool is needed here.
"""

from __future__ import annotations

import ctypes
import os
from functools import lru_cache
from typing import Any

# glibc's malloc.h: the parameters of mallopt
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_LARGEST_BLOCK = 32 << 20  # the largest M_MMAP_THRESHOLD that glibc accepts; larger arrays still come fresh
_TRIM = 1 << 30  # of freed memory at the end of the heap, kept before any is returned


@lru_cache(maxsize=1)
def keep_freed_memory() -> bool:
    """Let this process reuse freed arrays instead of returning them to the system; True if the C library can.

    Set once for the process, by `minivit.parallel` or a large `predict`. At most 1 GiB is kept, and
    `release_freed_memory` returns it. MINIVIT_KEEP_MEMORY=0 in the environment disables it. No effect where the C
    library is not glibc (macOS, Windows, musl).
    """
    library = _glibc()
    if library is None or os.environ.get("MINIVIT_KEEP_MEMORY") == "0":
        return False
    # one arena for all threads: those of other threads hold at most 64 MiB together, and map the rest afresh
    settings = ((_M_ARENA_MAX, 1), (_M_MMAP_THRESHOLD, _LARGEST_BLOCK), (_M_TRIM_THRESHOLD, _TRIM))
    return all(library.mallopt(name, value) == 1 for name, value in settings)


def release_freed_memory() -> bool:
    """Return freed memory to the system now; True if there was any."""
    library = _glibc()
    return library is not None and bool(library.malloc_trim(0))


def _glibc() -> Any:
    try:
        library = ctypes.CDLL(None)
        return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
    except (OSError, TypeError):  # Windows has no library of that name
        return None
