"""From seconds to the printed table: medians, quartiles, and ratios of turns that ran side by side.

A ratio below 1 says that minivit needs less time, or less memory, than PyTorch.
"""

from __future__ import annotations

import os
import platform
import subprocess
from typing import Any

import numpy as np

Row = dict[str, Any]
COLUMNS = (
    "case", "side: variant", "median ms", "quartiles", "fastest", "ratio", "its quartiles", "peak MiB", "ratio",
    "agreement",
)  # fmt: skip


def row(case: str, side: str, seconds: np.ndarray, difference: float | None) -> Row:
    """Times of one side, seconds (rounds, steps); a round counts as the median of its steps."""
    low, median, high = np.percentile(seconds * 1e3, (25, 50, 75))
    return {
        "case": case,
        "side": side,
        "median_ms": float(median),
        "quartiles_ms": [float(low), float(high)],
        "fastest_ms": float(seconds.min() * 1e3),
        "rounds_ms": [float(value) for value in np.median(seconds, axis=1) * 1e3],
        "difference": difference,
    }


def add_ratio(mine: Row, best: Row) -> None:
    """The ratio of the medians, and the quartiles of the ratios of turns that stood side by side."""
    paired = np.array(mine["rounds_ms"]) / np.array(best["rounds_ms"])
    mine["ratio"] = mine["median_ms"] / best["median_ms"]
    mine["ratio_quartiles"] = [float(value) for value in np.percentile(paired, (25, 75))]


def table(rows: list[Row]) -> str:
    """The rows as text, one line each, in columns."""
    lines = [COLUMNS, *(_cells(entry) for entry in rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(COLUMNS))]
    text = []
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line[:2], widths[:2], strict=True)]
        cells += [cell.rjust(width) for cell, width in zip(line[2:], widths[2:], strict=True)]
        text.append("  ".join(cells).rstrip())
    return "\n".join([text[0], "-" * max(map(len, text)), *text[1:]])


def _cells(entry: Row) -> tuple[str, ...]:
    timed = "median_ms" in entry
    spread = entry.get("ratio_quartiles")
    return (
        entry["case"],
        entry["side"],
        f"{entry['median_ms']:.2f}" if timed else "",
        "{:.2f} - {:.2f}".format(*entry["quartiles_ms"]) if timed else "",
        f"{entry['fastest_ms']:.2f}" if timed else "",
        f"{entry['ratio']:.3f}" if "ratio" in entry else "",
        "{:.3f} - {:.3f}".format(*spread) if spread else "",
        f"{entry['peak_bytes'] / 2**20:.1f}" if entry.get("peak_bytes") else "",
        f"{entry['peak_ratio']:.3f}" if entry.get("peak_ratio") else "",
        "" if entry.get("difference") is None else f"{entry['difference']:.1e}",
    )


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    affinity = getattr(os, "sched_getaffinity", None)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "processor": _processor(),
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "load_before": load,
    }


def _processor() -> str:
    try:
        if platform.system() == "Darwin":
            command = ["sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        with open("/proc/cpuinfo") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
        return names[0]
    except (OSError, IndexError, subprocess.CalledProcessError):
        return platform.processor() or "unknown"
