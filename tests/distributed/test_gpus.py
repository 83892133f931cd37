"""Ranks with a GPU each, here the fake device with a stand-in for NCCL: the bits of one process with one GPU."""

from __future__ import annotations

import json
import re
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any

import cuda_emulator
import fake_cupy
import nccl_on_mpi
import numpy as np
import pytest
from mpi import HERE, command, environment, needs_mpi, run
from table import PROFILE
from test_cupy_api import NAMES

import minivit
from minivit import distributed, optim

FAKE = HERE.parent / "fake_device"
STEPS = {"quick": 2, "long": 20}.get(PROFILE, 3)
EXACT = ("weights", "optimizer", "average", "logits", "losses", "norms")
needs_compiler = pytest.mark.skipif(cuda_emulator.compiler() is None, reason="no C++ compiler")


@lru_cache
def trained(ranks: int | None, *how: str) -> Any:
    """What a training printed last, and its stderr."""
    done = subprocess.run(
        command(ranks, HERE / "program.py", "vit", STEPS, 4, *how),
        env=environment(), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    return {name: found[name] for name in EXACT}, done.stderr


@needs_mpi
@needs_compiler
@pytest.mark.parametrize(
    "ranks, how, said",
    [
        (2, "fake", ""),
        (3, "fake", ""),
        (2, "shared", "2 ranks share GPU 0000:01:00.0 of host .*, which NCCL refuses"),
        (2, "without-nccl", "CuPy finds no NCCL"),
    ],
)
def test_ranks_with_gpus_end_with_the_bits_of_one_process(ranks: int, how: str, said: str) -> None:
    found, text = trained(ranks, how)
    assert found == trained(None, "fake")[0]
    messages = re.findall("^minivit: (.*): what the GPUs send each other goes through the hosts", text, re.MULTILINE)
    assert len(messages) == bool(said) and all(re.match(said, message) for message in messages)


@needs_mpi
@needs_compiler
def test_nccl_adds_in_its_own_order_if_it_may() -> None:
    exact, found = trained(None, "fake")[0], trained(3, "fake", "inexact")[0]
    assert found["weights"] != exact["weights"]  # the stand-in's order is another one
    np.testing.assert_allclose(found["losses"], exact["losses"], rtol=1e-5)
    np.testing.assert_allclose(found["norms"], exact["norms"], rtol=1e-5)


@needs_mpi
def test_mpi_adds_in_its_own_order_on_cpus() -> None:
    exact, found = run(None, "sgd", 2, 3), run(3, "sgd", 2, 3, "cpu", "inexact")
    np.testing.assert_allclose(found["losses"], exact["losses"], rtol=1e-5)
    least = 3 * 2 / 3 * exact["bytes"]  # two sums, each as long as all parameters on every rank, and the new values
    assert sum(found["sent"]) / 3 >= least


def test_a_model_on_a_gpu_needs_ranks_with_gpus() -> None:
    ranks: Any = object.__new__(distributed.MpiRanks)
    ranks.rank, ranks.size, ranks.shards, ranks._gpus = 0, 2, 2, None
    with fake_cupy.installed():
        model = minivit.ViT(img_size=4, patch_size=2, in_chans=1, num_classes=3, embed_dim=4, depth=1, num_heads=2)
        minivit.to_device(model, "gpu")
        with pytest.raises(ValueError, match=r'join\(device="gpu"\)'):
            ranks.data_parallel(model, optim.AdamW(model.parameters()))
        with pytest.raises(ValueError, match="in shards models are trained in float32"):
            distributed.Ranks(2).data_parallel(model, None, precision="bfloat16")


# --- the stand-in ---------------------------------------------------------------------------------------------------


def test_the_stand_in_has_no_name_that_cupy_lacks() -> None:
    module = nccl_on_mpi.module()
    public = {f"cuda.nccl.{name}" for name in vars(module) if not name.startswith("_")}
    public |= {f"cuda.nccl.NcclCommunicator.{n}" for n in vars(nccl_on_mpi.NcclCommunicator) if not n.startswith("_")}
    assert public <= NAMES


REFUSED = """
import sys
sys.path.insert(0, {fake!r})
import fake_cupy, nccl_on_mpi as nccl
from mpi4py import MPI

world = MPI.COMM_WORLD
rank, kind = world.Get_rank(), sys.argv[1]
fake_cupy.Device.pci_bus_id = "one" if kind == "one GPU" else f"{{rank}}"
unique = nccl.get_unique_id()
with fake_cupy.installed() as cupy:
    try:
        comm = nccl.NcclCommunicator(2, unique if kind == "two ids" else world.bcast(unique), rank)
        array = cupy.zeros(8, "float32")
        nccl.groupStart()
        if kind == "other sizes":
            comm.send(array.data.ptr, 4, nccl.NCCL_FLOAT32, 1 - rank, 0)
        elif kind == "too much":
            comm.send(array.data.ptr, 9, nccl.NCCL_FLOAT32, 1 - rank, 0)
        elif kind == "another stream":
            comm.send(array.data.ptr, 8, nccl.NCCL_FLOAT32, 1 - rank, 7)
        elif kind == "no group":
            nccl.groupEnd()
            comm.send(array.data.ptr, 8, nccl.NCCL_FLOAT32, 1 - rank, 0)
        comm.recv(array.data.ptr, 8, nccl.NCCL_FLOAT32, 1 - rank, 0)
        assert cupy.isnan(array).all()
        nccl.groupEnd()
    except nccl.NcclError as error:
        world.gather(str(error)) and print(error)
        MPI.Finalize()
"""


@needs_mpi
@pytest.mark.parametrize(
    "kind, said",
    [
        ("one GPU", "duplicate GPU"),
        ("two ids", "different unique ids"),
        ("other sizes", "sent 16 bytes, 32 were expected"),
        ("too much", "no array of 36 bytes"),
        ("another stream", "the stream is not"),
        ("no group", "outside of a group"),
    ],
)
def test_the_stand_in_refuses_what_nccl_refuses_or_hangs_at(kind: str, said: str, tmp_path: Path) -> None:
    program = tmp_path / "refused.py"
    program.write_text(REFUSED.format(fake=str(FAKE)))
    done = subprocess.run(
        command(2, program, kind), env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert said in done.stdout, done.stderr
    assert done.returncode == 0, done.stderr
