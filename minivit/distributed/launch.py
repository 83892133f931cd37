"""How a program becomes one rank of several, and how it ends: `join` and `fail`."""

from __future__ import annotations

import atexit
import importlib.util
import os
import platform
import secrets
import socket
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from minivit.device import check_device
from minivit.distributed.agreement import check_agreement, environment_facts
from minivit.distributed.ranks import MpiRanks, Ranks
from minivit.distributed.supervisor import Watched, supervise

SHARDS = 8  # of a batch where mpiexec starts a program that names none: the same for any number of ranks up to it

# what tells each process its number, that on its machine, and how many there are: MPICH and Intel MPI, Open MPI,
# MVAPICH; Slurm's plugins for PMI and PMIx set the first of a row and PMIX_RANK
_RANKS = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK", "PMIX_RANK")
_LOCAL_RANKS = ("MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID")
_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
# the name of this machine for others: what the user says, MPICH's mpiexec, Slurm
_ADDRESSES = ("MINIVIT_ADDRESS", "PMI_HOSTNAME", "SLURMD_NODENAME")
_PRECEDENCE = 1.0  # seconds

_watched: Watched | None = None  # once this process is a rank
_joined = False


def launched_rank(environment: Mapping[str, str] = os.environ) -> int | None:
    """The number that mpiexec gave this process, or None where no mpiexec has started it."""
    return _number(environment, _RANKS)


def _number(environment: Mapping[str, str], names: tuple[str, ...]) -> int | None:
    return next((int(environment[name]) for name in names if environment.get(name, "").isdecimal()), None)


def join(shards: int | None = None, device: str = "cpu", exact: bool = True) -> Ranks:
    """The ranks of this run: all processes that mpiexec has started, or this one alone.

    Without mpiexec nothing is imported, and without `shards` nothing changes. With it, the program goes on in a child
    process that the present one watches, so call it early; and an uncaught error ends all ranks.

    Args:
        shards: into how many parts a batch is cut; under mpiexec 8 by default. Rank 0's count.
        device: "cpu" or "gpu", which gives each rank of a machine another GPU, as far as there are enough.
        exact: add gradients in one fixed order. False leaves the order to NCCL's all-reduce (MPI's on CPUs), so the
            last bits depend on the number of ranks. Rank 0's choice.

    Raises:
        ValueError: fewer shards than ranks, or ranks that differ in what decides the last bits.
        ImportError: mpi4py or the MPI library is missing.
        RuntimeError: mpiexec and mpi4py belong to different MPI libraries, a second call, or one after this process has
            used a GPU; no GPU answers.
    """
    global _watched, _joined
    rank, size = launched_rank(), _number(os.environ, _SIZES)
    alone = size == 1 and importlib.util.find_spec("mpi4py") is None  # as Slurm starts any program
    if rank is None or alone:
        check_device(device)
        return Ranks(shards, exact)
    if _watched is not None:
        raise RuntimeError("this process has joined already: use the ranks that the first call returned")
    if device == "gpu" and _gpu_in_use():
        raise RuntimeError("this process has used a GPU already, which it cannot after a fork: call join first")
    _watched = supervise(rank, size)
    sys.excepthook = _fail_with_traceback
    check_device(device)
    MPI = _mpi()
    if size is not None and MPI.COMM_WORLD.Get_size() != size:
        library = MPI.Get_library_version().partition("\n")[0].strip(" \0")
        raise RuntimeError(
            f"mpiexec has started {size} processes, of which mpi4py sees {MPI.COMM_WORLD.Get_size()}: they belong to "
            f"different MPI libraries. mpi4py uses {library}: start with its own mpiexec"
        )
    ranks = MpiRanks(MPI.COMM_WORLD, SHARDS if shards is None else shards, _watched, exact)
    _joined = True
    atexit.register(ranks.leave)
    gpu = ranks.take_gpus() if device == "gpu" else {}
    check_agreement(ranks, {"device": device, **environment_facts(), **gpu}, "the ranks differ")
    by_hosts = ranks.connect_gpus()
    if by_hosts and ranks.first:
        print(f"minivit: {by_hosts}: what the GPUs send each other goes through the hosts", file=sys.stderr)
    _link(ranks, _watched)
    _watched.mark(slow=False)
    return ranks


def _link(ranks: MpiRanks, watched: Watched) -> None:
    """Let the ranks of several machines watch each other, in a ring."""
    address = next((os.environ[name] for name in _ADDRESSES if os.environ.get(name)), platform.node())
    said = ranks.gather((address, watched.link.port if watched.link else 0))
    token = ranks.broadcast(secrets.token_hex(16))
    host, port = said[(ranks.rank + 1) % ranks.size]
    if watched.link is None or len({host for host, _ in said}) == 1:
        return
    with suppress(OSError):  # an unknown name; the rank behind will say that it hears nothing
        host = socket.gethostbyname(host)
    watched.link.connect(host, port, token, ranks.processes[ranks.rank - 1])


def _gpu_in_use() -> bool:
    """Whether this process has opened a GPU of NVIDIA's; where the system does not say so, no."""
    for file in Path("/proc/self/fd").glob("*"):
        with suppress(OSError):  # closed meanwhile
            if os.readlink(file).startswith("/dev/nvidia"):
                return True
    return False


def fail(cause: str) -> NoReturn:
    """End this rank, and with it the run, with one message; for a process that mpiexec has started.

    What is wrong everywhere is said once: the others leave rank 0 a second for it, and mpiexec then ends them. Before
    the ranks know each other, one on each machine speaks.
    """
    if launched_rank():
        time.sleep(_PRECEDENCE)
    (_watched or Watched()).end(cause if _joined or _number(os.environ, _LOCAL_RANKS) in (None, 0) else "")


def _fail_with_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if kind.__module__.startswith("mpi4py"):  # the rank that this one has lost speaks first
        time.sleep(3 * _PRECEDENCE)
    fail("".join(traceback.format_exception(kind, error, trace)))


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
