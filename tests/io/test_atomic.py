"""A file is replaced whole or not at all, whatever its name, and only dead writers' temporary files are removed."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from minivit.io import atomic, process
from minivit.io.atomic import temporary_name, write_atomically
from minivit.io.process import has_ended, this_process


def test_a_process_has_ended_where_that_can_be_determined(monkeypatch: pytest.MonkeyPatch) -> None:
    me = this_process()
    assert has_ended(me) is False
    assert has_ended(me._replace(start="1")) is True, "another process has its number by now"
    assert has_ended(me._replace(boot="other")) is True, "the machine was restarted since"
    assert has_ended(me._replace(machine="other", boot="other")) is None, "on another machine it may run"
    assert has_ended(me._replace(space="other")) is None, "in another container it may run"
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert process._start(child) in ("ended", None) and has_ended(me._replace(pid=child)) in (True, False)
    os.waitpid(child, 0)
    assert has_ended(me._replace(pid=child)) is True
    monkeypatch.setattr(process, "_POSIX", False)
    assert has_ended(me) is None, "there os.kill would end the process"


def test_only_files_of_dead_writers_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another host's living temporary file stays, and so does that of another file."""
    me = this_process()

    def name_by(writer: Any, file: str = "a.bin") -> str:
        with monkeypatch.context() as patch:
            patch.setattr(atomic, "this_process", lambda: writer)
            return temporary_name(file)

    elsewhere = me._replace(machine="0" * 8, boot="1" * 8)
    kept = [name_by(me._replace(space="0" * 8)), name_by(elsewhere), name_by(me._replace(start="2"), "b.bin"), ".a.tmp"]
    dead, old = (
        [name_by(me._replace(start="1")), name_by(me._replace(boot="0" * 8))],
        name_by(elsewhere._replace(pid=7)),
    )
    for name in [*kept, *dead, old]:
        (tmp_path / name).write_bytes(b"x")
    os.utime(tmp_path / old, (1, 1))  # no file takes a day to write
    write_atomically(tmp_path / "a.bin", b"one", memoryview(b"two"))
    assert (tmp_path / "a.bin").read_bytes() == b"onetwo"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, "a.bin"])


@pytest.mark.parametrize("name", ["x" * 255, "猫" * 85, "x" * 225])
def test_a_file_may_have_any_name_that_the_file_system_allows(tmp_path: Path, name: str) -> None:
    write_atomically(tmp_path / name, b"content")
    assert os.listdir(tmp_path) == [name] and (tmp_path / name).read_bytes() == b"content"


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="the system does not list a process's open files")
def test_no_file_stays_open(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    write_atomically(tmp_path / "a.bin", b"content")
    assert os.listdir("/proc/self/fd") == before


def test_a_full_disk_names_the_file_and_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomically(tmp_path / "a.bin", b"old")

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device.*unchanged.*a.bin") as caught:
        write_atomically(tmp_path / "a.bin", b"new")
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(tmp_path / "a.bin")
    assert os.listdir(tmp_path) == ["a.bin"] and (tmp_path / "a.bin").read_bytes() == b"old"


def test_a_machine_that_says_nothing_of_itself_has_no_number() -> None:
    assert process._short("", "") == "" and process._short("host", "") != process._short("host", "id") != ""
