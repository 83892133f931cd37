"""Under mpiexec: the same bits on any number of ranks, and what they send to each other."""

from __future__ import annotations

import gzip
import struct
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mpi import HERE, command, environment, needs_mpi, run
from table import PROFILE

import minivit

STEPS = {"quick": 6, "long": 200}.get(PROFILE, 12)
EXACT = ("weights", "optimizer", "average", "logits", "losses", "norms")


@lru_cache
def trained(ranks: int | None, family: str, shards: int) -> Any:
    return run(ranks, family, STEPS, shards)


@needs_mpi
@pytest.mark.parametrize(
    "family, ranks", [*((family, ranks) for family in ("vit", "swin") for ranks in (1, 2, 3, 4)), ("sgd", 3)]
)
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


@needs_mpi
def test_fine_tuning_ends_with_the_same_bits(tmp_path: Path) -> None:
    one, three = (run(ranks, tmp_path / str(ranks), 4, program=HERE / "tuning.py") for ranks in (None, 3))
    assert one == three


def write_digits(folder: Path) -> None:
    """Four IDX files of noise: 1,100 training images, of which the example holds 1,000 out, and 50 test images."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for name, count in (("train", 1100), ("t10k", 50)):
        pixels = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        for what, array in (("images-idx3", pixels), ("labels-idx1", (np.arange(count) % 10).astype(np.uint8))):
            header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            (folder / f"{name}-{what}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes(), 1))


@needs_mpi
def test_the_example_trains_under_mpiexec_and_one_rank_prints_and_writes(tmp_path: Path) -> None:
    example = Path(minivit.__file__).parents[1] / "examples" / "train_mnist_vit.py"
    if not example.exists():
        pytest.skip("an installed package has no examples")
    write_digits(tmp_path / "digits")
    options = ["--data", tmp_path / "digits", "--epochs", 1, "--batch-size", 32, "--shards", 2]
    models = []
    for ranks in (None, 2):
        out = tmp_path / str(ranks)
        done = subprocess.run(
            command(ranks, example, *options, "--out", out),
            env=environment(), capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("test accuracy") == 1
        models.append((out / "model.safetensors").read_bytes())
    assert models[0] == models[1]
    assert not (tmp_path / "2.1").exists()  # where an earlier run would have been kept
