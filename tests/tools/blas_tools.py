"""What NumPy's BLAS is set to, for tests."""

from __future__ import annotations

import threadpoolctl


def blas_threads() -> list[int]:
    """The number of threads of each BLAS that NumPy brings: another test may have loaded SciPy, with one of its own."""
    found = [info for info in threadpoolctl.threadpool_info() if info["user_api"] == "blas"]
    of_numpy = [info for info in found if "numpy" in info["filepath"]]
    return [info["num_threads"] for info in of_numpy or found]
