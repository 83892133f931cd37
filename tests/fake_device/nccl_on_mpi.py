"""A strict stand-in for CuPy's NCCL between processes of mpiexec, for arrays on the fake device.

It refuses what NCCL refuses or hangs at: two ranks on one GPU, a unique id that not all have from one rank, messages
outside of a group, sizes that differ between sender and receiver, and addresses that are not of this device's memory.
Buffers are read, and written, when the group ends; until then a receiver's memory is filled with the worst.
"""

from __future__ import annotations

import ctypes
import os
import types
from typing import Any

import fake_cupy
import numpy as np

NCCL_SUM, NCCL_UINT8, NCCL_FLOAT32, NCCL_FLOAT64 = 0, 1, 7, 8  # as nccl.h numbers them
_SIZES = {NCCL_UINT8: np.uint8, NCCL_FLOAT32: np.float32, NCCL_FLOAT64: np.float64}
_ID_BYTES = 128

_group: list[tuple[Any, ...]] | None = None  # the calls since groupStart


class NcclError(RuntimeError):
    """What NCCL answers with."""


def get_version() -> int:
    return 22304


def get_unique_id() -> bytes:
    return os.urandom(_ID_BYTES)


def groupStart() -> None:
    global _group
    if _group is not None:
        raise NcclError("groups are not nested here")
    _group = []


def groupEnd() -> None:
    """All calls of the group together; those between two ranks in order."""
    global _group
    if _group is None:
        raise NcclError("groupEnd without groupStart")
    calls, _group = _group, None
    fake_cupy._note(lambda: None, None)
    requests, kept = [], []
    for kind, comm, address, count, other in calls:
        sent = np.array(_memory(address, count, NCCL_UINT8)) if kind == "send" else np.empty(count + 1, np.uint8)
        kept.append((kind, address, count, other, sent))  # the receiver has room for one byte too many, to see it
        requests.append(comm.Isend(sent, other) if kind == "send" else comm.Irecv(sent, other))
    from mpi4py import MPI

    statuses = [MPI.Status() for _ in requests]
    MPI.Request.Waitall(requests, statuses)
    for (kind, address, count, other, found), status in zip(kept, statuses):
        if kind == "recv":
            if status.Get_count(MPI.BYTE) != count:
                raise NcclError(f"rank {other} sent {status.Get_count(MPI.BYTE)} bytes, {count} were expected")
            _memory(address, count, NCCL_UINT8)[...] = found[:count]


class NcclCommunicator:
    """Made by all ranks together."""

    def __init__(self, ndev: int, commId: bytes, rank: int) -> None:
        from mpi4py import MPI

        self._comm = MPI.COMM_WORLD.Dup()
        if (ndev, rank) != (self._comm.Get_size(), self._comm.Get_rank()):
            raise NcclError(f"{ndev} devices and rank {rank} are not those of MPI")
        said = self._comm.allgather((commId, fake_cupy.Device().pci_bus_id))
        if len(commId) != _ID_BYTES or len({unique for unique, _ in said}) > 1:
            raise NcclError("the ranks have different unique ids, and would wait for each other forever")
        if len({bus for _, bus in said}) < ndev:
            raise NcclError("NCCL_ERROR_INVALID_USAGE: duplicate GPU detected")

    def check_async_error(self) -> None:
        """Nothing fails later here."""

    def send(self, sendbuf: int, count: int, datatype: int, peer: int, stream: int) -> None:
        self._add("send", sendbuf, count, datatype, peer, stream)

    def recv(self, recvbuf: int, count: int, datatype: int, peer: int, stream: int) -> None:
        self._add("recv", recvbuf, count, datatype, peer, stream)
        _memory(recvbuf, _group[-1][3], NCCL_UINT8)[...] = 0xFF  # NaN

    def _add(self, kind: str, address: int, count: int, datatype: int, peer: int, stream: int) -> None:
        _check_stream(stream)
        if _group is None:
            raise NcclError(f"{kind} outside of a group blocks the GPU until the other rank is there")
        _memory(address, count, datatype)
        _group.append((kind, self._comm, address, count * np.dtype(_SIZES[datatype]).itemsize, peer))

    def allReduce(self, sendbuf: int, recvbuf: int, count: int, datatype: int, op: int, stream: int) -> None:
        """The sum from the last rank to the first: NCCL's order is its own as well."""
        _check_stream(stream)
        if op != NCCL_SUM:
            raise NcclError("only sums are added here")
        fake_cupy._note(lambda: None, None)
        parts = self._comm.allgather(np.array(_memory(sendbuf, count, datatype)))
        total = parts.pop()
        while parts:
            total = total + parts.pop()
        _memory(recvbuf, count, datatype)[...] = total


def _check_stream(stream: int) -> None:
    if stream != fake_cupy.Stream.current.ptr:
        raise NcclError("the stream is not the one in which the arrays are computed")


def _memory(address: int, count: int, datatype: int) -> np.ndarray:
    """The numbers at an address, all of them inside of one live array of the device."""
    size = count * np.dtype(_SIZES[datatype]).itemsize
    array = fake_cupy._at_address(address)
    if array is None or not array.flags.c_contiguous or array.nbytes < size:
        raise NcclError(f"no array of {size} bytes in one piece is at this address")
    return np.frombuffer((ctypes.c_char * size).from_address(address), _SIZES[datatype])


def module() -> types.ModuleType:
    """What to put in the place of `cupy.cuda.nccl`."""
    found = types.ModuleType("cupy.cuda.nccl")
    names = "NCCL_SUM NCCL_UINT8 NCCL_FLOAT32 NCCL_FLOAT64 NcclError NcclCommunicator"
    calls = "get_version get_unique_id groupStart groupEnd"
    vars(found).update({name: globals()[name] for name in f"{names} {calls}".split()}, available=True)
    return found
