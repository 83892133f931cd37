"""What mpiexec tells a process, and what a process without it does."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

import minivit
from minivit import distributed
from minivit.distributed import Ranks, launch, launched_rank
from minivit.io.safetensors import CheckpointError
from minivit.train import Run


@pytest.mark.parametrize(
    "environment, rank",
    [
        ({}, None),
        ({"PMI_RANK": "2", "PMI_SIZE": "4"}, 2),
        ({"OMPI_COMM_WORLD_RANK": "1"}, 1),
        ({"PMIX_RANK": "0"}, 0),
        ({"PMI_RANK": ""}, None),
        ({"SLURM_PROCID": "3"}, None),  # of a program that no MPI started
    ],
)
def test_the_rank_is_read_from_the_environment(environment: dict[str, str], rank: int | None) -> None:
    assert launched_rank(environment) == rank


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*launch._RANKS, *launch._SIZES):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("alone")
def test_one_process_is_alone() -> None:
    ranks = distributed.join(3)
    assert type(ranks) is Ranks and (ranks.rank, ranks.size, ranks.shards, ranks.first) == (0, 1, 3, True)
    assert repr(ranks) == "Ranks(rank 0 of 1, shards=3)"
    assert distributed.join().shards is None


@pytest.mark.usefixtures("alone")
def test_a_scheduler_that_starts_one_process_needs_no_mpi(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMI_RANK", "0")
    monkeypatch.setenv("PMI_SIZE", "1")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert type(distributed.join()) is Ranks


@pytest.mark.usefixtures("alone")
def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minivit.device.gpu_available", lambda: False)
    with pytest.raises(RuntimeError, match="no GPU answers"):
        distributed.join(2, "gpu")


def test_a_process_that_has_used_a_gpu_does_not_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMI_RANK", "0")
    monkeypatch.setenv("PMI_SIZE", "2")
    assert not launch._gpu_in_use()
    monkeypatch.setattr("os.readlink", lambda file: "/dev/nvidiactl")
    with pytest.raises(RuntimeError, match="call join first"):
        distributed.join(2, "gpu")


def test_a_rank_that_fails_to_write_is_watched_again() -> None:
    marks: list[bool] = []
    ranks: Any = object.__new__(distributed.MpiRanks)
    ranks._watched = argparse.Namespace(mark=lambda slow: marks.append(slow))
    ranks._notes = argparse.Namespace(may_be_slow=lambda slow: marks.append(slow))
    with pytest.raises(OSError, match="full"), ranks.slow():
        raise OSError("the disk is full")
    assert marks == [True, True, False, False]


@pytest.mark.usefixtures("alone")
def test_a_run_with_fixed_sums_does_not_go_on_without_them(tmp_path: Path) -> None:
    model = minivit.ViT(img_size=4, patch_size=2, in_chans=1, num_classes=3, embed_dim=4, depth=1, num_heads=2)
    Run(tmp_path, {}, {"model": model}, quiet=True, ranks=distributed.join(2))
    with pytest.raises(CheckpointError, match="exact=None, now it is False"):
        Run(tmp_path, {}, {"model": model}, quiet=True, resume=True, ranks=distributed.join(2, exact=False))
