"""Ten runs that are killed, disturbed or damaged; `python tests/tools/kill_runs.py` makes sixty."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "tools" / "kill_runs.py"


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
def test_ten_disturbed_runs_resume_bit_equal_or_say_what_is_lost() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SCRIPT.parents[2]), *filter(None, sys.path)])}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--count", "10", "--seed", "1"],
        env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
