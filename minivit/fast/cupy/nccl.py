"""Messages between GPUs by NCCL, through CuPy, and the choice of a GPU for each process of a machine."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import cupy
from cupy.cuda import nccl

from minivit.fast.cupy.products import cublas
from minivit.protocol import Array


def choose_gpu(number: int) -> str:
    """Let this process compute on one GPU of its machine, the processes of a machine in turn; returns its bus address.

    Args:
        number: of this process on its machine, from 0.
    """
    device = cupy.cuda.Device(number % cupy.cuda.runtime.getDeviceCount())
    device.use()
    return str(device.pci_bus_id)


def gpu_facts() -> dict[str, Any]:
    """What decides the last bits on a GPU: the card, CuPy, and cuBLAS."""
    device = cupy.cuda.Device()
    name = cupy.cuda.runtime.getDeviceProperties(device.id)["name"]
    version = ctypes.c_int()
    parts = []
    for part in range(3):  # libraryPropertyType: major, minor, patch
        cublas().cublasGetProperty(part, ctypes.byref(version))
        parts.append(version.value)
    return {
        "GPU": name.decode() if isinstance(name, bytes) else name,
        "CuPy": cupy.__version__,
        "cuBLAS": ".".join(map(str, parts)),
    }


def nccl_version() -> int:
    """Of the library, such as 22304; 0 where CuPy finds none."""
    return int(nccl.get_version()) if nccl.available else 0


def unique_id() -> Any:
    """What brings the ranks of one communicator together: one of them makes it, for all."""
    return nccl.get_unique_id()


class Nccl:
    """The communicator of some ranks, each with a GPU of its own.

    Every call only gives work to the current stream; `done` says whether the GPU has come to its end.

    Args:
        size, rank: their number, and that of this process.
        unique: of rank 0's `unique_id`.
    """

    def __init__(self, size: int, rank: int, unique: Any) -> None:
        self._nccl = nccl.NcclCommunicator(size, unique, rank)

    def exchange(self, outgoing: Sequence[Sequence[Array]], incoming: Sequence[Sequence[Array]]) -> None:
        """As of `distributed.messages.Messages`, of arrays on this GPU.

        All calls stand in one group, since they must go on side by side; those with one rank are done in order.
        """
        stream = cupy.cuda.get_current_stream().ptr
        nccl.groupStart()
        for other, (sent, received) in enumerate(zip(outgoing, incoming)):
            for call, arrays in ((self._nccl.send, sent), (self._nccl.recv, received)):
                for array in arrays:
                    if array.size:
                        call(_address(array), array.nbytes, nccl.NCCL_UINT8, other, stream)
        nccl.groupEnd()

    def add_all(self, flat: Array) -> None:
        """Replace flat, float32 or float64, by its sum over the ranks, in the order that NCCL chooses."""
        kind = {"float32": nccl.NCCL_FLOAT32, "float64": nccl.NCCL_FLOAT64}[flat.dtype.name]
        stream = cupy.cuda.get_current_stream().ptr
        self._nccl.allReduce(_address(flat), _address(flat), flat.size, kind, nccl.NCCL_SUM, stream)

    def done(self) -> bool:
        """Whether the GPU has done everything in the current stream.

        Raises:
            RuntimeError: NCCL has met an error, such as a lost network link.
        """
        self._nccl.check_async_error()
        return bool(cupy.cuda.get_current_stream().done)


def _address(array: Any) -> int:
    """Of a flat array in one piece."""
    if not array.flags.c_contiguous:
        raise ValueError(f"NCCL sends arrays in one piece, got strides {array.strides} of shape {array.shape}")
    return int(array.data.ptr)
