"""How a program becomes one rank of several: `join`, and what is wrong with a start in one line."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from minivit.distributed.ranks import MpiRanks, Ranks

SHARDS = 8  # of a batch where mpiexec starts a program that names none: the same for any number of ranks up to it

# what tells each process the number of all: MPICH and Intel MPI, Open MPI, MVAPICH, and Slurm's plugin for PMIx
_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_RANKS = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK", "PMIX_RANK")


def launched_rank(environment: Mapping[str, str] = os.environ) -> int | None:
    """The number that mpiexec gave this process, or None where no mpiexec has started it."""
    return next((int(environment[name]) for name in _RANKS if environment.get(name, "").isdecimal()), None)


def launched_size(environment: Mapping[str, str] = os.environ) -> int | None:
    """How many processes mpiexec has started, where it says so."""
    return next((int(environment[name]) for name in _SIZES if environment.get(name, "").isdecimal()), None)


def join(shards: int | None = None) -> Ranks:
    """The ranks of this run: all processes that mpiexec has started, or this one alone.

    Without mpiexec nothing is imported, and without `shards` nothing changes.

    Args:
        shards: into how many parts a batch is cut; under mpiexec 8 by default.

    Raises:
        ValueError: fewer shards than ranks, or ranks that differ in what decides the last bits.
        ImportError: mpi4py or the MPI library is missing.
        RuntimeError: mpiexec and mpi4py belong to different MPI libraries.
    """
    if launched_rank() is None:
        return Ranks(shards)
    from minivit.distributed.agreement import check_agreement, environment_facts

    MPI = _mpi()
    size = launched_size()
    if size is not None and MPI.COMM_WORLD.Get_size() != size:
        library = MPI.Get_library_version().partition("\n")[0].strip(" \0")
        raise RuntimeError(
            f"mpiexec has started {size} processes, of which mpi4py sees {MPI.COMM_WORLD.Get_size()}: they belong to "
            f"different MPI libraries. mpi4py uses {library}: start with its own mpiexec"
        )
    ranks = MpiRanks(MPI.COMM_WORLD, SHARDS if shards is None else shards)
    check_agreement(ranks, environment_facts(), "ranks differ")
    return ranks


def _mpi() -> Any:
    try:
        import mpi4py
    except ImportError:
        raise ImportError("mpiexec needs mpi4py: pip install mpi4py mpich, on every machine") from None
    mpi4py.rc.thread_level = "funneled"  # only the main thread communicates
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise ImportError(
            f"mpi4py finds no MPI library ({reason}): pip install mpich, or load your cluster's MPI"
        ) from None
    return MPI
