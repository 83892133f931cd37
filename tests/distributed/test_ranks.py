"""Under mpiexec: the same bits on any number of ranks, and what they send to each other."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any

import pytest
from mpi import needs_mpi, run

STEPS = {"quick": 6, "default": 12, "long": 200}[os.environ.get("HYPOTHESIS_PROFILE", "default")]
EXACT = ("weights", "optimizer", "average", "logits", "losses", "norms")


@lru_cache
def trained(ranks: int | None, family: str, shards: int) -> Any:
    return run(ranks, family, STEPS, shards)


@needs_mpi
@pytest.mark.parametrize("family", ["vit", "swin"])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_any_number_of_ranks_ends_with_the_same_bits(family: str, ranks: int) -> None:
    alone, found = trained(None, family, 4), trained(ranks, family, 4)
    assert {name: found[name] for name in EXACT} == {name: alone[name] for name in EXACT}


@needs_mpi
def test_other_shards_end_with_other_bits() -> None:
    assert trained(None, "vit", 4)["weights"] != trained(None, "vit", 3)["weights"]


@needs_mpi
def test_threads_of_a_rank_do_not_change_the_bits() -> None:
    found = run(2, "vit", STEPS, 4, OMP_NUM_THREADS="2")
    assert {name: found[name] for name in EXACT} == {name: trained(None, "vit", 4)[name] for name in EXACT}


@needs_mpi
@pytest.mark.parametrize("ranks, most", [(2, 1.05), (3, 1.4), (4, 1.05)])
def test_a_step_sends_little_more_than_the_least(ranks: int, most: float) -> None:
    """Two gradients are accumulated: each sums G (R-1)/R, and the new weights are as much again."""
    found = trained(ranks, "vit", 4)
    least = 3 * found["bytes"] * (ranks - 1) / ranks
    mean = sum(found["sent"]) / ranks
    assert 0.99 * least <= mean <= most * least
