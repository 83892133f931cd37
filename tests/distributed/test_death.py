"""A rank that ends ends them all, soon, with one message; a killed run resumes on any number of ranks."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from mpi import HERE, MPIEXEC, command, environment, needs_mpi
from table import PROFILE

from minivit.distributed import supervisor
from minivit.distributed.notes import Notes
from minivit.distributed.waiting import longest_wait

DYING, TRAINING = HERE / "dying.py", HERE / "training.py"
KILLS = {"long": 100}.get(PROFILE, 10)
pytestmark = [needs_mpi, pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")]


def death(cause: str, rank: int) -> tuple[float, str, str]:
    """Seconds from a death to the end of mpiexec, and its stdout and stderr."""
    more = {"MINIVIT_PATIENCE": "2"}
    done = subprocess.run(
        command(3, DYING, cause, rank),
        env=environment(**more), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    end = time.time()
    assert done.returncode != 0 and "all ended" not in done.stdout
    died = re.search(r"\d+\.\d+", done.stdout)  # the ranks' lines may run into each other
    assert died, done.stderr
    return end - float(died[0]), done.stdout, done.stderr


@pytest.mark.parametrize(
    "cause, rank, said, most",
    [
        ("SIGKILL", 1, "was ended by SIGKILL", 5),
        ("SIGSEGV", 0, "was ended by SIGSEGV", 5),
        ("raise", 2, "TypeError: a slip", 5),
        ("memory", 0, "MemoryError: no room for 1 TB", 5),
        ("error", 1, "error: the disk is full", 5),
        ("exit3", 1, "has ended, while this rank waits for it", 5),
        ("SIGSTOP", 1, "is stopped .*: no processor time for 2 s", 8),
        ("sleep", 0, "hangs: no processor time for 2 s", 8),
        ("compute", 2, r"waited \d+ s for rank 2 on host \S+, process \d+, which computes without", 12),
    ],
)
def test_a_death_ends_all_ranks_soon_with_one_message(cause: str, rank: int, said: str, most: float) -> None:
    seconds, _, text = death(cause, rank)
    assert seconds < most
    messages = re.findall(r"^minivit: rank (\d) of 3 on host (\S+), process (\d+): ", text, re.MULTILINE)
    assert messages, text
    assert re.search(said, text)
    if cause in ("exit3", "compute"):  # whoever waits for it says so
        assert re.search(rf"rank {rank} on host \S+, process \d+,? (has ended|which)", text)
    else:
        assert [int(number) for number, _, _ in messages] == [rank]
        assert not Path(f"/proc/{messages[0][2]}").exists()


def test_the_first_that_waits_speaks_for_all() -> None:
    _, _, text = death("compute", 0)
    assert re.findall(r"^minivit: rank (\d)", text, re.MULTILINE) == ["1"] and "with ranks.slow()" in text


def test_a_rank_that_is_slow_is_waited_for() -> None:
    """Four times as long as for one that does not say so; at its end it has ended, which the others see."""
    _, _, text = death("slow", 0)
    assert "rank 0 on host" in text and "has ended, while this rank waits" in text and "computes" not in text


@pytest.mark.parametrize(
    "interval, seconds",
    [(None, 600), (0.0, 30), (1.0, 30), (7.5, 30), (10.0, 40), (60.0, 240)],
)
def test_a_rank_waits_for_four_times_the_longest_interval(interval: float | None, seconds: float) -> None:
    assert longest_wait(supervisor.PATIENCE, interval) == seconds


def test_the_rank_that_all_wait_for_is_the_one_that_is_not_known_to_wait() -> None:
    notes: Any = object.__new__(Notes)
    notes.size = 4
    for waits, message, late in (
        ({}, 7, [0, 1, 2, 3]),
        ({0: 7, 1: 7, 3: 7}, 7, [2]),
        ({0: 8, 1: 7, 2: 3, 3: 7}, 8, [2]),  # its last note is of an earlier message, which has come since
        ({0: 7, 1: 7, 2: 7, 3: 7}, 7, []),
    ):
        notes.waits = waits
        assert notes.latest(message) == late


def test_a_machine_that_falls_silent_is_noticed_by_the_next() -> None:
    one, two = (["-n", "1", "-env", "MINIVIT_ADDRESS", f"127.0.0.{number}"] for number in (1, 2))
    _, _, _, *program = command(1, DYING, "freeze", 1)
    begin = time.monotonic()
    done = subprocess.run(
        [str(MPIEXEC), *one, *program, ":", *two, *program],
        env=environment(MINIVIT_PATIENCE="2"), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode != 0 and time.monotonic() - begin < 15
    assert re.search(
        r"rank 0 of 2 on host \S+, process \d+: hears nothing from rank 1 on host \S+, process \d+ for 2 s", done.stderr
    )


def test_an_error_of_all_ranks_is_said_once() -> None:
    _, _, text = death("error", -1)
    assert text.count("the disk is full") == 1 and "rank 0 of 3" in text


def test_an_mpiexec_that_does_not_end_is_killed() -> None:
    rank = "from minivit.distributed import supervisor; supervisor._GRACE = 0.5; supervisor._end_all()"
    launcher = (
        "import subprocess, sys, time; open('/proc/self/comm', 'w').write('mpiexec');"
        f"subprocess.run([sys.executable, '-c', {rank!r}], check=True); time.sleep(60)"
    )
    begin = time.monotonic()
    more = {name: value for name, value in environment().items() if name != "PMI_FD"}
    done = subprocess.run([sys.executable, "-c", launcher], env=more, timeout=50, check=False)
    assert done.returncode == -signal.SIGKILL and time.monotonic() - begin < 20


def test_mpiexec_hears_of_an_end_before_the_process_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    monkeypatch.setenv("PMI_FD", str(writer))
    supervisor._end_all()
    assert os.read(reader, 1) == b""  # closed, while this process lives
    os.close(reader)


# --- runs -----------------------------------------------------------------------------------------------------------


def train(ranks: int | None, out: Path, *options: str) -> list[str]:
    return command(ranks, TRAINING, out, *options)


def finished(ranks: int | None, out: Path, *options: str) -> str:
    done = subprocess.run(
        train(ranks, out, *options), env=environment(), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout.splitlines()[-1])["digest"])


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(tmp_path: Path) -> None:
    """A random rank at a random moment; the restart has a random number of ranks."""
    steps = ["--steps", str(max(60, 5 * KILLS))]
    expected = finished(None, tmp_path / "undisturbed", *steps)
    draw, out, furthest = random.Random(int(os.environ.get("MINIVIT_KILLS", "7"))), tmp_path / "killed", 0
    for kill in range(KILLS):
        begin = time.monotonic()
        process = subprocess.Popen(
            train(draw.randint(1, 4), out, *steps, *(["--resume"] if kill else [])),
            env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(draw.randint(2, 8))]
        try:
            pids, done = json.loads(said[0]), [json.loads(line)["step"] for line in said[1:]]
        except (ValueError, KeyError):
            pytest.fail(f"start {kill}: {said} {process.communicate(timeout=30)}")
        assert time.monotonic() - begin < 10  # the restart
        assert done[0] >= furthest - 5  # a checkpoint is written every 20 ms, and at the end of each epoch of 5 steps
        furthest = max(furthest, done[-1])
        time.sleep(draw.random() * 0.03)
        os.kill(draw.choice(pids), signal.SIGKILL)
        begin = time.monotonic()
        _, errors = process.communicate(timeout=30)
        assert time.monotonic() - begin < 10
        assert process.returncode != 0 and "was ended by SIGKILL" in errors
    assert finished(draw.randint(1, 4), out, *steps, "--resume") == expected


def test_a_stopped_run_resumes_in_one_process(tmp_path: Path) -> None:
    expected = finished(None, tmp_path / "undisturbed")
    process = subprocess.Popen(
        train(3, tmp_path / "stopped"), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    pids = json.loads(process.stdout.readline())
    process.stdout.readline()
    os.kill(pids[1], signal.SIGTERM)  # as a scheduler does before it kills
    _, errors = process.communicate(timeout=60)
    assert process.returncode not in (0, None) and "was ended by" not in errors
    assert finished(None, tmp_path / "stopped", "--resume") == expected


# --- bad starts -----------------------------------------------------------------------------------------------------


def refused(ranks: int, *arguments: Any, program: Path = TRAINING, **more: str) -> str:
    """The one line of an error that all ranks see."""
    done = subprocess.run(
        command(ranks, program, *arguments),
        env=environment(**more), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("minivit:")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return lines[0]


def test_more_ranks_than_shards_are_refused(tmp_path: Path) -> None:
    line = refused(3, tmp_path, "--shards", "2")
    assert "3 ranks but 2 shards: start at most 2 ranks, or choose --shards 3" in line


def test_other_data_is_refused_with_both_fingerprints(tmp_path: Path) -> None:
    line = refused(2, tmp_path, "--other-data", "1")
    assert re.search(r"data is '\w{16}' on rank 0 \(host \S+\) and '\w{16}' on rank 1 \(host \S+\)", line)
    assert not (tmp_path / "checkpoint.safetensors").exists()


def test_other_code_is_refused_with_both_versions(tmp_path: Path) -> None:
    line = refused(2, tmp_path, "--other-code", "1")
    assert re.search(r"minivit is '\S+ \(\w{12}\)' on rank 0 \(host \S+\) and '99.0.0 \(\w{12}\)' on rank 1", line)


@pytest.mark.parametrize("hidden, said", [("mpi4py", "pip install mpi4py mpich"), ("library", "no MPI library")])
def test_what_is_missing_is_named(tmp_path: Path, hidden: str, said: str) -> None:
    package = tmp_path / "mpi4py"
    package.mkdir()
    if hidden == "mpi4py":
        (package / "__init__.py").write_text("raise ImportError('no module named mpi4py')\n")
    else:
        (package / "__init__.py").write_text("class rc: pass\n")
        (package / "MPI.py").write_text("raise RuntimeError('cannot load MPI library')\n")
    path = os.pathsep.join([str(tmp_path), environment()["PYTHONPATH"]])
    assert said in refused(2, tmp_path / "run", PYTHONPATH=path)


def test_without_mpiexec_mpi4py_is_not_imported(tmp_path: Path) -> None:
    code = f"import sys; sys.argv = ['x', {str(tmp_path / 'run')!r}, '--steps', '5']; import training, json; " \
           "training.run(); assert 'mpi4py' not in sys.modules"  # fmt: skip
    path = os.pathsep.join([str(HERE), environment()["PYTHONPATH"]])
    subprocess.run([sys.executable, "-c", code], env=environment(PYTHONPATH=path), check=True, capture_output=True)


def test_an_mpiexec_of_another_library_is_refused(tmp_path: Path) -> None:
    """Each process is then a world of its own, and all would write the same files."""
    more = {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "3"}
    done = subprocess.run(
        train(None, tmp_path / "run"), env=environment(**more), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1 and not (tmp_path / "run").exists()
    assert (
        "mpiexec has started 3 processes, of which mpi4py sees 1: they belong to different MPI libraries" in done.stderr
    )


@pytest.mark.parametrize("saved, asked, said", [(3, None, ""), (3, "4", "shards=3, now it is 4")])
def test_the_number_of_shards_is_saved_with_the_run(tmp_path: Path, saved: int, asked: str | None, said: str) -> None:
    finished(2, tmp_path / "run", "--steps", "5", "--shards", str(saved))
    options = ["--steps", "10", "--resume", "--shards", asked or "0"]
    done = subprocess.run(
        train(2, tmp_path / "run", *options), env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode == 0) == (not said) and said in done.stderr
