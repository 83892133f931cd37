"""The largest resident memory of this process: from the kernel's high-water mark, which Linux lets one set back.

Elsewhere the mark cannot be set back, so what was reached before counts as the floor.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path
from typing import Any

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Meter:
    """Bytes above the level at which the meter was made."""

    def __init__(self) -> None:
        self.exact = self.restart()
        self.floor = _status("VmRSS") if self.exact else _high_water()

    def restart(self) -> bool:
        """Forget the peaks until now; False where the system cannot.

        What has been freed goes back to the system, or what comes next would live in it and seem to take nothing.
        """
        gc.collect()
        if sys.platform == "linux":
            getattr(ctypes.CDLL(None), "malloc_trim", int)(0)  # the GNU C library's; others have none
        try:
            CLEAR.write_text("5")
        except OSError:
            return False
        return True

    def read(self) -> dict[str, Any] | None:
        """The peak over the floor, and whether earlier peaks were left out; None where nothing can be measured."""
        peak = _status("VmHWM") if self.exact else _high_water()
        if peak is None or self.floor is None:
            return None
        return {"added": peak - self.floor, "peak": peak, "exact": self.exact}


def _status(key: str) -> int | None:
    for line in STATUS.read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    return None


def _high_water() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, the others KiB
