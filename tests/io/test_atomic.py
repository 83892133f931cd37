"""Which temporary files belong to writers that still run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from minivit.io import atomic


def test_a_process_runs_unless_the_system_knows_none_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    for error, running in ((None, True), (PermissionError(), True), (ProcessLookupError(), False)):

        def kill(process: int, number: int, error: Any = error) -> None:
            assert (process, number) == (7, 0)
            if error is not None:
                raise error

        monkeypatch.setattr(os, "kill", kill)
        assert atomic._is_running(7) is running


def test_elsewhere_than_on_posix_no_process_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "kill", lambda *arguments: asked.append(0))
        patch.setattr(os, "name", "nt")
        assert atomic._is_running(7)
    assert not asked


def test_files_of_writers_that_were_killed_are_removed_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic, "_is_running", lambda process: process == 8)
    kept = [".a.bin.8-1.tmp", ".a.bin.7-1", ".b.bin.7-1.tmp", ".aXbin.7-1.tmp", "..a.bin.7-1.tmp", ".a.bin.7.tmp"]
    for name in [*kept, ".a.bin.7-1.tmp", ".a.bin.77-123.tmp"]:
        (tmp_path / name).write_bytes(b"x")
    atomic.write_atomically(tmp_path / "a.bin", b"one", memoryview(b"two"))
    assert (tmp_path / "a.bin").read_bytes() == b"onetwo"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, "a.bin"])
