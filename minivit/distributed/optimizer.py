"""An optimizer of which each rank has one segment."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from minivit.device import owner, to_numpy
from minivit.distributed.messages import Messages
from minivit.distributed.segments import Segments
from minivit.optim import SGD, AdamW, Optimizer, Params


class SegmentedOptimizer:
    """Each rank updates its own segment of the parameters, of which alone it has the moments, and sends the result.

    Attributes:
        params: those of this rank's segment; only they get gradients here.
        lr: the learning rate; set it on every rank before each step.
        segments: see `Segments`.

    Args:
        ranks: the processes.
        opt: AdamW or SGD over all trained parameters, without steps; the same on every rank. It is taken apart.

    Raises:
        ValueError: another optimizer.
    """

    def __init__(self, ranks: Messages, opt: Optimizer) -> None:
        if type(opt) not in (AdamW, SGD):
            raise ValueError(f"{type(opt).__name__} cannot be divided among ranks: use AdamW or SGD")
        self.ranks, self.segments = ranks, Segments(opt.params, ranks.size)
        self._flat = self.segments.gather()
        self._whole = opt.params
        self._inner, self._moments = _restricted(opt, self.segments, ranks.rank)

    def __repr__(self) -> str:
        return f"SegmentedOptimizer(rank {self.ranks.rank} of {self.ranks.size}, {self._inner!r})"

    @property
    def params(self) -> Params:
        return self._inner.params

    @property
    def lr(self) -> float:
        return self._inner.lr

    @lr.setter
    def lr(self, value: float) -> None:
        self._inner.lr = value

    @property
    def steps(self) -> int:
        """Steps done."""
        return self._inner.steps

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for param in self._whole.values():
            param.grad = None

    def step(self) -> None:
        """One step for every parameter that has a gradient on its rank; afterwards each rank has all new values.

        Raises:
            RuntimeError: a parameter was moved to other memory since.
        """
        for name, param in self._whole.items():
            if owner(param.data) is not self._flat:
                raise RuntimeError(f"{name} was moved since the optimizer was made: make the optimizer after the move")
        learned = any(param.grad is not None for param in self.params.values())
        due, steps = self.ranks.most(learned, self.steps)
        if learned or not due:  # where no rank has a gradient, the optimizer warns
            self._inner.step()
        elif due:
            self._inner.steps += 1
        if due:
            self.ranks.share(self._flat, self.segments.bounds)

    def state_dict(self) -> dict[str, Any]:
        """On rank 0, on the host, what one optimizer over all parameters would say; on others without the moments."""
        state = self._inner.state_dict()
        arrays = {name: value for name, value in state.items() if not isinstance(value, int | float)}
        moments = {name: np.ascontiguousarray(to_numpy(value)) for name, value in arrays.items()}
        said = self.ranks.gather([(name, value.shape, value.dtype.str) for name, value in moments.items()])
        parts: list[list[Any]] = [[np.empty(shape, dtype) for _, shape, dtype in part] for part in said]
        parts[0] = []
        flat = [[value.reshape(-1) for value in part] for part in parts] if self.ranks.first else [[] for _ in parts]
        outgoing: list[list[Any]] = [[] for _ in parts]
        if not self.ranks.first:
            outgoing[0] = [value.reshape(-1) for value in moments.values()]
        self.ranks.exchange(outgoing, flat)
        if not self.ranks.first:
            return {"steps": state["steps"], "lr": state["lr"]}
        pieces: dict[str, list[Any]] = {name: [value] for name, value in moments.items()}
        for names, values in zip(said[1:], parts[1:]):
            for (name, _, _), value in zip(names, values):
                pieces.setdefault(name, []).append(value)
        whole = {name: values[0] if len(values) == 1 else np.concatenate(values) for name, values in pieces.items()}
        return {"steps": state["steps"], "lr": state["lr"], **whole}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the state of an optimizer over all parameters, on whatever number of ranks it was made."""
        found = {name: state[name][part] for name, part in self._moments.items() if name in state}
        self._inner.load_state_dict({**state, **found})


def _restricted(opt: Optimizer, segments: Segments, rank: int) -> tuple[Any, dict[str, Any]]:
    """The optimizer of one segment, and which part of a whole moment it has."""
    owned = segments.owned[rank]
    inner: Any = copy.copy(opt)
    inner.params = {segments.names[index]: segments.parameters[index] for index in owned}
    if isinstance(opt, AdamW):  # its moments are those of all parameters, one after the other
        sizes = [param.size for param in segments.parameters]
        part = slice(sum(sizes[: owned.start]), sum(sizes[: owned.stop]))
        inner.first, inner.second = opt.first[part].copy(), opt.second[part].copy()
        return inner, {"first": part, "second": part}
    inner.velocity = {name: array for name, array in inner.velocity.items() if name in inner.params}
    return inner, {}
