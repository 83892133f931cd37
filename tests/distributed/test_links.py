"""Two ranks with a link between them, as on two machines; and the model of what a step costs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from mpi import HERE, MPIEXEC, environment, needs_mpi, run

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import shaped_link
from scaling_ranks import Link, on_paper, step_seconds

LINK = Link(latency=1e-3, overhead=1e-5, rate=1e8)


def test_one_rank_only_computes() -> None:
    assert step_seconds(2.0, 1, 1e9, LINK) == 2.0


@pytest.mark.parametrize(
    "ranks, ratio, seconds",
    [
        (2, 1.0, 1.0 + 7e-3 + 4e-5 + 0.2),  # half of the work, one round, one other rank, 2 G / 2 bytes
        (3, 1.5, 2 / 3 + 14e-3 + 8e-5 + 0.4),
        (1024, 1.0, 2 / 1024 + 70e-3 + 4 * 1023e-5 + 0.4 * 1023 / 1024),
    ],
)
def test_a_step_costs_work_rounds_messages_and_bytes(ranks: int, ratio: float, seconds: float) -> None:
    assert step_seconds(2.0, ranks, 2e7, LINK, ratio) == pytest.approx(seconds)


def test_more_machines_than_images_for_their_cores_are_no_faster(capsys: pytest.CaptureFixture[str]) -> None:
    on_paper([8, 64, 1024])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    seconds = {tuple(map(int, row[:3])): float(row[3]) for row in rows}
    assert seconds[8, 1024, 10] > seconds[64, 1024, 10] < seconds[1024, 1024, 10]
    assert seconds[1024, 16384, 10] == seconds[1024, 1024, 10]  # as many images as cores
    assert seconds[64, 1024, 100] < seconds[64, 1024, 10]


def test_what_is_missing_for_namespaces_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert shaped_link.missing() == "the program ip is missing (iproute2)"


@needs_mpi
@pytest.mark.parametrize("gbits, delay", [(10, 0.0), (1, 1e-3)])
def test_two_ranks_with_a_link_between_them_end_with_the_bits_of_one(gbits: float, delay: float) -> None:
    if lacks := shaped_link.missing():
        pytest.skip(lacks)
    with shaped_link.shaped_link(gbits, delay, str(MPIEXEC)) as start:
        done = subprocess.run(
            [*start, sys.executable, str(HERE / "program.py"), "vit", "2", "4"],
            env=environment(), capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found, alone = json.loads(done.stdout.splitlines()[-1]), run(None, "vit", 2, 4)
    for name in ("weights", "optimizer", "average", "logits", "losses", "norms"):
        assert found[name] == alone[name]
    assert min(found["sent"]) > 0
