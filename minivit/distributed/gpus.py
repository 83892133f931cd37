"""Ranks on GPUs: which rank has which GPU, and what they send each other.

NCCL moves arrays from GPU to GPU. It refuses two ranks on one GPU; then, and where CuPy finds no NCCL, arrays go
through the hosts by MPI.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import Any

import numpy as np

from minivit.device import array_module, to_numpy
from minivit.distributed.messages import Messages
from minivit.protocol import Array


class Gpus:
    """The GPUs of all ranks, one for each where there are enough; every rank makes the same calls.

    Attributes:
        facts: what decides the last bits on this one.
        nccl: the communicator, after `connect`; None where arrays go through the hosts.
    """

    def __init__(self, ranks: Messages) -> None:
        from minivit.fast.cupy import nccl

        host = platform.node()
        number = ranks.gather(host)[: ranks.rank].count(host)
        place, version = (host, nccl.choose_gpu(number)), nccl.nccl_version()
        self._places = ranks.gather(place)
        self.facts = {**nccl.gpu_facts(), "NCCL": version}
        self.nccl: Any = None

    def connect(self, ranks: Messages) -> str:
        """Bring the ranks together; returns why arrays go through the hosts, empty if they do not."""
        from minivit.fast.cupy import nccl

        shared = next((place for place in self._places if self._places.count(place) > 1), None)
        if shared is not None:
            return f"{self._places.count(shared)} ranks share GPU {shared[1]} of host {shared[0]}, which NCCL refuses"
        if not self.facts["NCCL"]:
            return "CuPy finds no NCCL (pip install nvidia-nccl-cu12, or -cu13)"
        if ranks.size > 1:
            unique = ranks.broadcast(nccl.unique_id() if ranks.first else None)
            self.nccl = nccl.Nccl(ranks.size, ranks.rank, unique)
        return ""


def exchange_by_hosts(
    ranks: Messages, outgoing: Sequence[Sequence[Array]], incoming: Sequence[Sequence[Array]]
) -> None:
    """`Messages.exchange` of arrays on GPUs, through memory of the hosts."""
    found: list[list[Any]] = [[np.empty(array.shape, array.dtype) for array in arrays] for arrays in incoming]
    ranks.exchange([[to_numpy(array) for array in arrays] for arrays in outgoing], found)
    for arrays, host in zip(incoming, found):
        for array, values in zip(arrays, host):
            array[...] = array_module(array).asarray(values)
