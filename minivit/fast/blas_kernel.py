"""Which kernel the matrix products run on, and a warning where it is older than the processor.

OpenBLAS chooses its kernel by the processor when it is loaded. A variable of the environment, or a processor that it
does not know, can make it take one for older instructions, which multiplies at half the rate.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Set
from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np

# OpenBLAS's names of kernels (its DYNAMIC_CORE list for x86-64) without AVX, and with at most AVX2
_BEFORE_AVX2 = {
    "Prescott", "Core2", "Penryn", "Dunnington", "Nehalem", "Atom", "Athlon", "Opteron", "Opteron_SSE3", "Barcelona",
    "Bobcat", "Nano", "Katmai", "Coppermine", "Northwood", "Banias", "Sandybridge", "Bulldozer", "Piledriver",
    "Steamroller",
}  # fmt: skip
_BEFORE_AVX512 = _BEFORE_AVX2 | {"Haswell", "Zen", "Excavator"}


@lru_cache(maxsize=1)
def instructions() -> frozenset[str]:
    """The vector instructions of this processor that matter for products: of "AVX2" and "AVX512"."""
    core = "numpy._core" if hasattr(np, "_core") else "numpy.core"  # before NumPy 2
    features = import_module(f"{core}._multiarray_umath").__cpu_features__
    found = {"AVX2": features.get("AVX2") and features.get("FMA3"), "AVX512": features.get("AVX512_SKX")}
    return frozenset(name for name, has in found.items() if has)


def blas_libraries() -> list[dict[str, Any]]:
    """What threadpoolctl says of each loaded BLAS; empty where it is not installed or knows none."""
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return []
    return [each for each in threadpool_info() if each["user_api"] == "blas"]


def older_kernel(libraries: list[dict[str, Any]], known: Set[str]) -> str:
    """The kernel of a loaded BLAS that is older than the processor's instructions, or ""."""
    older = _BEFORE_AVX512 if "AVX512" in known else _BEFORE_AVX2 if "AVX2" in known else set()
    return next((each["architecture"] for each in libraries if each.get("architecture") in older), "")


def advice(libraries: list[dict[str, Any]]) -> str:
    """What to do about the kernel of a loaded BLAS that is older than the processor; "" where none is."""
    kernel = older_kernel(libraries, instructions())
    if not kernel:
        return ""
    newest = max(instructions(), key=len)
    remedy = "install a newer NumPy, whose OpenBLAS knows this processor"
    if "OPENBLAS_CORETYPE" in os.environ:
        remedy = f"unset OPENBLAS_CORETYPE, which is {os.environ['OPENBLAS_CORETYPE']!r} in the environment"
    return (
        f"OpenBLAS uses its kernel {kernel}, but this processor has {newest}: matrix products may take twice as long; "
        f"{remedy}"
    )


def warn_of_older_kernel(libraries: list[dict[str, Any]]) -> None:
    """Warn of such a kernel; MINIVIT_BLAS_WARNING=0 in the environment silences it."""
    text = "" if os.environ.get("MINIVIT_BLAS_WARNING") == "0" else advice(libraries)
    if text:
        warnings.warn(f"{text}. MINIVIT_BLAS_WARNING=0 silences this warning.", RuntimeWarning, stacklevel=2)
