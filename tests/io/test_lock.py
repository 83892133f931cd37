"""A folder has one writer: who lives is respected, and who was killed is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import minivit
from minivit.io import atomic
from minivit.io.atomic import temporary_name
from minivit.io.lock import LOCK, FolderLock, LockedError
from minivit.io.process import this_process

pytestmark = pytest.mark.skipif(os.name != "posix", reason="elsewhere processes are not looked up")
HOLD = "import sys, time; from minivit.io.lock import FolderLock; l = FolderLock(sys.argv[1]); print(1, flush=True); "


def holder(folder: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(minivit.__file__).parents[1])}
    command = [sys.executable, "-c", HOLD + "time.sleep(60)", str(folder)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "1\n"
    return process


def test_a_living_process_is_named_and_a_killed_one_leaves_no_lock(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        with pytest.raises(LockedError, match=rf"process {process.pid} on host .* already writes .*delete .*{LOCK}"):
            FolderLock(tmp_path)
        process.kill()
    assert (tmp_path / LOCK).exists(), "kill -9 leaves the file"
    lock = FolderLock(tmp_path)
    lock.check()
    lock.release()
    assert os.listdir(tmp_path) == []


def test_what_a_process_that_was_killed_while_it_took_a_lock_left_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        dead = this_process()._replace(start="1")
        patch.setattr(atomic, "this_process", lambda: dead)
        (tmp_path / temporary_name(LOCK)).write_bytes(b"")
    FolderLock(tmp_path).release()
    assert not list(tmp_path.iterdir())


def test_another_host_that_may_live_is_respected_and_a_boot_that_is_over_is_not(tmp_path: Path) -> None:
    me = this_process()
    (tmp_path / LOCK).write_text(json.dumps(me._replace(host="node7", machine="0", boot="1", pid=123)._asdict()))
    with pytest.raises(LockedError, match="process 123 on host node7"):
        FolderLock(tmp_path)
    (tmp_path / LOCK).write_text("")
    with pytest.raises(LockedError, match="cannot be read.*delete"):
        FolderLock(tmp_path)
    for gone in (me._replace(boot="1"), me._replace(start="1")):
        (tmp_path / LOCK).write_text(json.dumps(gone._asdict()))
        FolderLock(tmp_path).release()


def test_the_newest_of_a_thread_has_the_lock_and_another_thread_is_refused(tmp_path: Path) -> None:
    first = FolderLock(tmp_path)
    second = FolderLock(tmp_path)
    with pytest.raises(LockedError, match="another run has begun"):
        first.check()
    second.check()
    errors: list[LockedError] = []

    def other() -> None:
        try:
            FolderLock(tmp_path)
        except LockedError as error:
            errors.append(error)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert len(errors) == 1 and "of this process already writes" in str(errors[0])
    first.release()
    second.check()
    second.release()


def test_a_lock_that_was_deleted_is_taken_again_or_lost_to_another(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    (tmp_path / LOCK).unlink()
    lock.check()
    (tmp_path / LOCK).unlink()
    with holder(tmp_path) as process:
        with pytest.raises(LockedError, match=f"process {process.pid}"):
            lock.check()
        process.kill()
    lock.release()


def test_a_forked_child_has_no_lock_and_keeps_none_alive(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    child = os.fork()
    if child == 0:
        try:
            lock.check()
        except LockedError:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    lock.check()
    lock.release()
