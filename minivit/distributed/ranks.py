"""The processes of a run. `Ranks` is a single one; `MpiRanks` are those that mpiexec has started.

A program is written once, for any number of ranks:

    ranks = distributed.join(shards)
    opt = ranks.optimizer(optim.AdamW(...))
    step = ranks.data_parallel(model, opt, loss=criterion)
    run = Run(out, settings, parts, ranks=ranks)
    ...
        norm = ranks.clip_grad_norm(opt.params, 1.0)
    if ranks.first: ...  # prints, draws, writes
"""

from __future__ import annotations

import os
import pickle
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from minivit import functional as F
from minivit.device import array_module, to_numpy
from minivit.distributed import shared_data
from minivit.distributed.gpus import Gpus, exchange_by_hosts
from minivit.distributed.messages import Messages, T
from minivit.distributed.notes import Notes
from minivit.distributed.optimizer import SegmentedOptimizer
from minivit.distributed.step import ShardedStep
from minivit.distributed.supervisor import Watched
from minivit.distributed.waiting import Waiting
from minivit.fast.blas_threads import limit_threads
from minivit.fast.threads import usable_cores
from minivit.nn.layer import Layer
from minivit.optim import Optimizer, Params, clip_grad_norm
from minivit.parallel import CapturedStep, DataParallel, Loss
from minivit.protocol import Array


class Ranks(Messages):
    """One process by itself; `MpiRanks` are several.

    Args:
        shards: at least 1. With it the result has the same bits on any number of ranks and threads.
        exact: see `Messages`.
    """

    def threads(self, wanted: int | None = None) -> int:
        """How many threads this rank has: those wanted, else its share of the cores that it may use."""
        return usable_cores() if wanted is None else wanted

    # --- what training consists of ---

    def optimizer(self, opt: Optimizer) -> Any:
        """The optimizer, whose memory and work the ranks divide."""
        return opt

    def data_parallel(
        self,
        model: Layer,
        opt: Any,
        threads: int | None = None,
        loss: Loss = F.softmax_cross_entropy,
        precision: str = "float32",
    ) -> Any:
        """The forward and backward pass of a batch, whose shards the ranks divide; on a GPU a `CapturedStep`.

        Args:
            model: the model.
            opt: what `optimizer` returned; gradients of parameters that it does not have are dropped.
            threads: of this rank.
            loss: see `DataParallel`.
            precision: of activations on a GPU; see `CapturedStep`.

        Raises:
            ValueError: another precision than float32 on the CPU, in shards, or for a model with running statistics.
        """
        on_gpu = any(array_module(param.data) is not np for param in model.parameters().values())
        if on_gpu and self.shards is None and len(model.state()) == len(model.parameters()):
            return CapturedStep(model, loss, precision)
        if precision != "float32":
            where = "in shards models are" if self.shards else "a model with BatchNorm is"
            where = where if on_gpu else "on a CPU models are"
            raise ValueError(f"precision={precision!r}: {where} trained in float32")
        if self.shards is None:
            return DataParallel(model, 1 if on_gpu else threads, 1 if on_gpu else None, loss)
        self._check_device(on_gpu)
        return ShardedStep(self, model, opt, 1 if on_gpu else self.threads(threads), loss)

    def _check_device(self, on_gpu: bool) -> None:
        """Refuse a model where the ranks cannot exchange its gradients."""

    def clip_grad_norm(self, params: Params, max_norm: float) -> float:
        """`optim.clip_grad_norm` by the norm over the gradients of all ranks; params are this rank's, `opt.params`."""
        if self.shards is None:
            return clip_grad_norm(params, max_norm)
        with limit_threads(1):  # a long product on several threads has other last bits
            return clip_grad_norm(params, max_norm, gather=self._gather_lists)

    def _gather_lists(self, values: list[Any]) -> list[Any]:
        xp = array_module(values[0]) if values else np
        if xp is not np:  # one transfer, not one for each gradient
            values = list(to_numpy(xp.stack(values)))
        return [value for part in self.gather(values) for value in part]


class MpiRanks(Ranks):
    """The processes that mpiexec has started; made by `join`.

    Attributes:
        processes: each rank in words, with its host and process.

    Args:
        comm: a communicator of mpi4py.
        shards, exact: see `Ranks`.
        watched: the process that watches this rank.
    """

    def __init__(self, comm: Any, shards: int | None, watched: Watched, exact: bool = True) -> None:
        from mpi4py import MPI

        self._mpi, self._comm, self._notes, self._watched = MPI, comm.Dup(), Notes(MPI, comm.Dup()), watched
        self._waiting = Waiting(self._notes)
        self.rank, self.size = comm.Get_rank(), comm.Get_size()
        self.processes = self._waiting.processes = self.gather(
            f"rank {self.rank} on host {platform.node()}, process {os.getpid()}"
        )
        self._gpus: Gpus | None = None
        super().__init__(*self.broadcast((shards, exact)))
        shards = self.shards or 0
        if self.size > shards:
            raise ValueError(
                f"{self.size} ranks but {shards} shards: start at most {shards} ranks, or choose --shards {self.size}"
            )
        # mpiexec may bind each rank to cores of its own: only those of one machine with the same cores share them
        here = (platform.node(), tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ())
        self._sharing = self.gather(here).count(here)

    def threads(self, wanted: int | None = None) -> int:
        return wanted or max(1, usable_cores() // self._sharing)

    def take_gpus(self) -> dict[str, Any]:
        """Give each rank a GPU; returns what must be equal on all of them before `connect_gpus` is called."""
        self._gpus = Gpus(self)
        return self._gpus.facts

    def connect_gpus(self) -> str:
        """Let the GPUs reach each other; returns why arrays go through the hosts, empty if they do not."""
        return "" if self._gpus is None else self._gpus.connect(self)

    def _check_device(self, on_gpu: bool) -> None:
        if on_gpu and self._gpus is None:
            raise ValueError('the model is on a GPU: call distributed.join(device="gpu"), before it is moved there')

    def optimizer(self, opt: Optimizer) -> Any:
        return SegmentedOptimizer(self, opt)

    def gather(self, value: Any) -> list[Any]:
        mine = np.frombuffer(pickle.dumps(value), np.uint8)
        lengths = np.empty(self.size, np.int64)
        self._finish(self._comm.Iallgather(np.array([mine.size], np.int64), lengths))
        everything = np.empty(int(lengths.sum()), np.uint8)
        self._finish(self._comm.Iallgatherv(mine, [everything, lengths.tolist()]))
        ends = np.cumsum(lengths)
        return [pickle.loads(everything[end - length : end].tobytes()) for end, length in zip(ends, lengths)]

    def broadcast(self, value: Any) -> Any:
        content = np.frombuffer(pickle.dumps(value, protocol=5), np.uint8) if self.first else None
        length = np.array([content.size if content is not None else 0], np.int64)
        self._finish(self._comm.Ibcast(length))
        if content is None:
            content = np.empty(int(length[0]), np.uint8)
        for start in range(0, content.size, _LARGEST):
            self._finish(self._comm.Ibcast(content[start : start + _LARGEST]))
        return value if self.first else pickle.loads(content.data)

    def most(self, *values: int) -> tuple[int, ...]:
        largest = np.array(values, np.int64)
        self._finish(self._comm.Iallreduce(self._mpi.IN_PLACE, largest, op=self._mpi.MAX))
        return tuple(largest.tolist())

    def wait(self) -> None:
        self._finish(self._comm.Ibarrier())

    def exchange(self, outgoing: Sequence[Sequence[Array]], incoming: Sequence[Sequence[Array]]) -> None:
        if any(array_module(array) is not np for arrays in (*outgoing, *incoming) for array in arrays):
            self._exchange_on_gpus(outgoing, incoming)
            return
        requests = []
        for other, arrays in enumerate(incoming):
            requests += [self._comm.Irecv(part, other) for array in arrays for part in _messages(array)]
        for other, arrays in enumerate(outgoing):
            requests += [self._comm.Isend(part, other) for array in arrays for part in _messages(array)]
            self.sent += sum(array.nbytes for array in arrays)
        self._finish(*requests)

    def _exchange_on_gpus(self, outgoing: Sequence[Sequence[Array]], incoming: Sequence[Sequence[Array]]) -> None:
        nccl = self._nccl
        if nccl is None:
            exchange_by_hosts(self, outgoing, incoming)
            return
        nccl.exchange(outgoing, incoming)
        self.sent += sum(array.nbytes for arrays in outgoing for array in arrays)
        self._wait_until(nccl.done)

    @property
    def _nccl(self) -> Any:
        """Between the GPUs of the ranks; None on CPUs, and where arrays go through the hosts."""
        return None if self._gpus is None else self._gpus.nccl

    def add_all(self, flat: Array) -> None:
        nccl = self._nccl
        self.sent += 2 * flat.nbytes * (self.size - 1) // self.size  # the least that such a sum needs
        if nccl is not None:
            nccl.add_all(flat)
            self._wait_until(nccl.done)
            return
        host = to_numpy(flat)
        for part in _messages(host):
            self._finish(self._comm.Iallreduce(self._mpi.IN_PLACE, part, op=self._mpi.SUM))
        if host is not flat:
            flat[...] = array_module(flat).asarray(host)

    def share(self, flat: Array, bounds: Sequence[int]) -> None:
        parts = [flat[start:end] for start, end in zip(bounds, bounds[1:])]
        others = [rank for rank in range(self.size) if rank != self.rank]
        self.exchange(
            [[parts[self.rank]] if rank in others else [] for rank in range(self.size)],
            [[parts[rank]] if rank in others else [] for rank in range(self.size)],
        )

    @contextmanager
    def slow(self) -> Iterator[None]:
        self._watched.mark(slow=True)
        self._notes.may_be_slow(True)
        try:
            yield
        finally:
            self._notes.may_be_slow(False)
            self._watched.mark(slow=False)

    def per_machine(self, make: Callable[[], T]) -> T:
        hosts = self.gather(platform.node())
        reader, alone = hosts.index(hosts[self.rank]), hosts.count(hosts[self.rank]) == 1
        value: Any = None
        file: shared_data.SharedFile | None = None
        try:
            if self.rank == reader:
                with self.slow():
                    value = make()
                    file = None if alone else shared_data.write(value)
            found = self.gather(file)[reader]
            if found is not None:
                try:
                    value = shared_data.read(found)
                except FileNotFoundError:  # two machines of one name
                    value = make()
            self.wait()
        finally:
            if file is not None:
                os.unlink(file.path)
        read: T = value
        return read

    def under_way(self) -> None:
        self._waiting.is_under_way = True

    def leave(self) -> None:
        """Called at the end of the program: return when all ranks have come to theirs."""
        self._notes.end()

    def _finish(self, *requests: Any) -> None:
        listed = list(requests)
        self._wait_until(lambda: self._mpi.Request.Testall(listed))

    def _wait_until(self, done: Callable[[], Any]) -> None:
        self.waited += self._waiting.until(done)


_LARGEST = 1 << 30  # bytes of a message: more than 2^31 elements need an MPI of version 4


def _messages(array: Array) -> list[Array]:
    step = max(1, _LARGEST // max(1, array.itemsize))
    return [array[start : start + step] for start in range(0, array.size, step)]
