"""mpiexec for the tests: where it is, and a program run under it."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import minivit

HERE = Path(__file__).resolve().parent
PROGRAM = HERE / "program.py"
_BESIDE = Path(sys.executable).with_name("mpiexec")  # where the wheel of MPICH puts it
MPIEXEC = str(_BESIDE) if _BESIDE.exists() else shutil.which("mpiexec")
MISSING = [name for name, there in (("mpi4py", importlib.util.find_spec("mpi4py")), ("mpiexec", MPIEXEC)) if not there]

needs_mpi = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (pip install mpi4py mpich)")


def environment(**more: str) -> dict[str, str]:
    """One core for each rank: they share a small machine."""
    path = [str(Path(minivit.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1", **more}


def command(ranks: int | None, program: Path | str, *arguments: Any) -> list[str]:
    """Of a program under mpiexec, or without it."""
    start = [] if ranks is None else [str(MPIEXEC), "-n", str(ranks)]
    return [*start, sys.executable, str(program), *map(str, arguments)]


def run(ranks: int | None, *arguments: Any, program: Path | str = PROGRAM, **more: str) -> Any:
    """What the program printed last, as JSON."""
    done = subprocess.run(
        command(ranks, program, *arguments),
        env=environment(**more), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
