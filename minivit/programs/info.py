"""Print versions, the matrix library with its kernel and threads, cores, and GPU.

    minivit info

For reports of problems and of times. A last line says it where the kernel is older than the processor, and the remedy.
"""

from __future__ import annotations

import argparse
import os
import platform
from importlib import metadata
from typing import Any

import numpy as np

from minivit.device import gpu_available
from minivit.fast.blas_kernel import advice, blas_libraries, instructions
from minivit.fast.threads import usable_cores
from minivit.tables import aligned
from minivit.version import __version__

_OPTIONAL = ("threadpoolctl", "safetensors", "matplotlib", "Pillow", "cupy", "mpi4py")
_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENBLAS_CORETYPE", "MKL_ENABLE_INSTRUCTIONS")


def add_options(parser: argparse.ArgumentParser) -> None:
    """`minivit info` has no options."""


def main(args: argparse.Namespace) -> None:
    """Print a line for each fact."""
    libraries = blas_libraries()
    rows = [
        ("minivit", __version__),
        ("Python", f"{platform.python_version()}, {platform.system()} {platform.machine()}"),
        ("NumPy", np.__version__),
        *((name, version) for name in _OPTIONAL if (version := _version(name))),
        *(("BLAS", _described(each)) for each in libraries),
        ("instructions", ", ".join(sorted(instructions())) or "unknown"),
        ("cores", f"{usable_cores()} of {os.cpu_count()} usable"),
        ("GPU", _gpu()),
        *((name, os.environ[name]) for name in _VARIABLES if name in os.environ),
    ]
    print(*aligned(rows, left=(0, 1)), sep="\n")
    text = advice(libraries)
    if text:
        print(f"\n{text}")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _described(library: dict[str, Any]) -> str:
    kernel = library.get("architecture")
    words = [library["internal_api"], library.get("version") or "", f"kernel {kernel}," if kernel else ""]
    return " ".join(filter(None, words)) + f" {library['num_threads']} threads"


def _gpu() -> str:
    return "one that CuPy reaches" if gpu_available() else "none that CuPy reaches"
