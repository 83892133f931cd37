"""`minivit info`."""

from __future__ import annotations

import re

import numpy as np
import pytest

import minivit
from minivit.__main__ import main
from minivit.programs import info


def test_it_names_versions_cores_and_the_matrix_library(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    library = {"internal_api": "openblas", "version": "0.3.31", "architecture": "Zen", "num_threads": 2}
    monkeypatch.setattr(info, "blas_libraries", lambda: [library])
    monkeypatch.setattr(info, "advice", lambda libraries: "do this" if libraries == [library] else "")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    for line in (
        f"minivit\\s+{minivit.__version__}", f"NumPy\\s+{np.__version__}",
        "BLAS\\s+openblas 0.3.31 kernel Zen, 2 threads",
        "OMP_NUM_THREADS\\s+2", "cores\\s+\\d+ of \\d+ usable", "GPU\\s+none that CuPy reaches",
    ):  # fmt: skip
        assert re.search(line, out), line
    assert out.endswith("\ndo this\n")


def test_it_runs_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    assert "Python" in capsys.readouterr().out
