"""Data are read once on each machine, and lie in memory that its ranks share."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mpi import HERE, command, environment, needs_mpi, run

from minivit import distributed
from minivit.distributed import shared_data

READING = HERE / "reading.py"
needs_maps = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")
SUM = float(np.arange(30).sum())


@needs_mpi
@needs_maps
def test_one_rank_reads_and_all_map_its_file(tmp_path: Path) -> None:
    found = run(3, tmp_path / "log", "once", program=READING, TMPDIR=str(tmp_path))
    assert (tmp_path / "log").read_text() == "0\n"
    assert found["said"] == [[SUM, [0, 1, 2, 3, 4], ["a", "b"], False]] * 3
    assert found["files"][0] and found["files"] == [found["files"][0]] * 3 and found["left"] == []


@needs_mpi
@needs_maps
def test_a_rank_that_does_not_find_the_file_reads_for_itself(tmp_path: Path) -> None:
    found = run(3, tmp_path / "log", "elsewhere", program=READING, TMPDIR=str(tmp_path))
    assert (tmp_path / "log").read_text() == "0\n1\n"
    assert [part[0] for part in found["said"]] == [SUM] * 3 and found["left"] == []


@needs_mpi
@needs_maps
@pytest.mark.parametrize("ranks, calls", [(1, "0\n"), (None, "0\n")])
def test_a_rank_by_itself_shares_nothing(ranks: int | None, calls: str, tmp_path: Path) -> None:
    found = run(ranks, tmp_path / "log", "once", program=READING, TMPDIR=str(tmp_path))
    assert (tmp_path / "log").read_text() == calls
    assert found["said"][0][3] is True and found["files"] == [[]]


@needs_mpi
def test_data_that_are_missing_end_all_ranks(tmp_path: Path) -> None:
    done = subprocess.run(
        command(3, READING, tmp_path / "log", "missing"),
        env=environment(TMPDIR=str(tmp_path)), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode != 0 and done.stderr.count("FileNotFoundError: no such data: look elsewhere") == 1


def test_a_file_holds_arrays_in_pieces_and_empty_ones_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    value: Any = [np.arange(12).reshape(3, 4)[:, ::2], np.empty((0, 2)), np.asfortranarray(np.ones((2, 3))), "text"]
    file = shared_data.write(value)
    found = shared_data.read(file)
    for array, expected in zip(found[:3], value):
        np.testing.assert_array_equal(array, expected)
    assert found[3] == "text" and all(start % 64 == 0 for start, _ in file.parts)
    with pytest.raises((TypeError, AttributeError)):
        shared_data.write(lambda: None)
    assert [path.name for path in tmp_path.iterdir()] == [Path(file.path).name]


def test_a_disk_without_room_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def full(*arguments: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fdopen", full)
    with pytest.raises(OSError, match="No space left"):
        shared_data.write(np.ones(3))
    assert list(tmp_path.iterdir()) == []


def test_one_process_reads_for_itself() -> None:
    value = {"x": np.ones(3)}
    assert distributed.Ranks().per_machine(lambda: value) is value
