"""A few hundred random files of every kind, read in a process of 1 GiB: only documented errors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("resource")  # of POSIX
pytest.importorskip("PIL.Image")
SCRIPT = Path(__file__).parents[1] / "tools" / "fuzz_readers.py"


def test_damaged_files_of_every_kind_raise_documented_errors_alone() -> None:
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(SCRIPT), "--seed", "3", "--count", "220"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "220 executions, 0 faults" in done.stdout
