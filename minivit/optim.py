"""From gradients to better weights: SGD, AdamW, clipping, the learning rate's course, decay rules, averaged weights.

The step of training is four lines:

    opt.zero_grad()
    loss = step.loss_and_grad(images, labels, rng)
    optim.clip_grad_norm(model.parameters(), 1.0)
    opt.step()

Gradients add up until they are cleared, so accumulating over several small batches needs nothing special: call
`loss_and_grad` n times with `dloss=1/n` before one `step`. Next: `minivit/parallel.py`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from math import cos, pi, prod
from typing import Any

from minivit.backend import array_module, kernels
from minivit.backend.threads import in_threads, usable_cores
from minivit.nn.layer import Layer, Param
from minivit.protocol import Array, refuse

Params = dict[str, Param]


class Optimiser:
    """What SGD and AdamW share: the parameters, `lr` (may be set each step), and a state that can be saved."""

    def __init__(self, params: Params, lr: float, weight_decay: float, no_decay: Collection[str]) -> None:
        refuse(not params, "the optimiser got no parameters")
        fine = lr >= 0 and weight_decay >= 0  # also False for NaN
        refuse(not fine, f"lr={lr} and weight_decay={weight_decay} must not be negative")
        unknown = [name for name in no_decay if name not in params]
        refuse(bool(unknown), f"no_decay names {unknown[:1]}, which is not among the {len(params)} parameters")
        self.params, self.lr, self.weight_decay = params, lr, weight_decay
        self.no_decay = frozenset(no_decay)
        self.steps = 0

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for param in self.params.values():
            param.grad = None

    def _decay_of(self, name: str) -> float:
        return 0.0 if name in self.no_decay else self.weight_decay

    def _moments(self) -> dict[str, Array]:
        """The arrays that the optimiser remembers, by name."""
        raise TypeError(f"{type(self).__name__} must define _moments(self)")

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on: `steps`, `lr` and copies of the moments."""
        return {"steps": self.steps, "lr": self.lr, **{name: array.copy() for name, array in self._moments().items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state; the parameters must be the same.

        Raises:
            ValueError: naming the first moment that is missing or of another shape.
        """
        _fill("optimiser", self._moments(), state)
        self.steps, self.lr = int(state["steps"]), float(state.get("lr", self.lr))


def _fill(owner: str, arrays: dict[str, Array], state: dict[str, Any]) -> None:
    """Copy saved arrays into live ones, after all have been found to fit."""
    for name, array in arrays.items():
        found = tuple(state[name].shape) if name in state else None
        refuse(found != array.shape, f"{owner} state {name}: expected shape {array.shape}, found {found}")
    refuse("steps" not in state, f"{owner} state: expected an entry 'steps', found {sorted(state)[:3]}")
    for name, array in arrays.items():
        array[...] = array_module(array).asarray(state[name])


class SGD(Optimiser):
    """v <- momentum v + g + decay p; p <- p - lr v (or, with nesterov, p - lr (g + momentum v)), as PyTorch does it."""

    def __init__(
        self,
        params: Params,
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        no_decay: Collection[str] = (),
    ) -> None:
        super().__init__(params, lr, weight_decay, no_decay)
        refuse(not 0 <= momentum < 1, f"momentum={momentum} must lie in [0, 1)")
        refuse(nesterov and momentum == 0, "nesterov=True needs a momentum above 0")
        self.momentum, self.nesterov = momentum, nesterov
        self.velocity = (
            {name: array_module(p.data).zeros_like(p.data) for name, p in params.items()} if momentum else {}
        )

    def step(self) -> None:
        """One step for every parameter that has a gradient."""
        self.steps += 1
        for name, param in self.params.items():
            if param.grad is None:
                continue
            change = param.grad + self._decay_of(name) * param.data
            if self.momentum:
                velocity = self.velocity[name]
                velocity *= self.momentum
                velocity += change
                change = change + self.momentum * velocity if self.nesterov else velocity
            param.data = param.data - self.lr * change

    def _moments(self) -> dict[str, Array]:
        return {f"velocity.{name}": array for name, array in self.velocity.items()}


class AdamW(Optimiser):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019).

    The parameters are walked in pieces that fit into a core's cache: a part of a large one, in place, or several small
    ones gathered. So each number travels from memory once, and threads can share the pieces; the result is the same to
    the last bit whatever their number.

    Args:
        params: `model.parameters()`.
        lr: learning rate; set `opt.lr` before each step to follow a schedule.
        weight_decay: the share of lr by which weights shrink at each step.
        betas: decay rates of the mean and of the mean square of the gradient.
        eps: added to the root of the mean square.
        no_decay: names of parameters that do not shrink, usually `optim.no_decay(model)`.
        threads: how many share the work; the usable cores by default.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        weight_decay: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        no_decay: Collection[str] = (),
        threads: int | None = None,
    ) -> None:
        super().__init__(params, lr, weight_decay, no_decay)
        fine = len(betas) == 2 and all(0 <= beta < 1 for beta in betas)
        refuse(not fine, f"betas={betas} must be two numbers in [0, 1)")
        refuse(eps < 0, f"eps={eps} must not be negative")
        refuse(threads is not None and threads < 1, f"threads={threads} must be at least 1")
        self.betas, self.eps = betas, eps
        self.threads = usable_cores() if threads is None else threads
        first = next(iter(params.values())).data
        dtypes = {param.data.dtype for param in params.values()}
        refuse(len(dtypes) > 1, f"the parameters have different dtypes {sorted(map(str, dtypes))}")
        xp, size = array_module(first), sum(param.size for param in params.values())
        self.first, self.second = xp.zeros(size, first.dtype), xp.zeros(size, first.dtype)
        for param in params.values():
            if not param.data.flags.c_contiguous:  # the step writes through flat views
                param.swap(xp.array(param.data, order="C"))

    def step(self) -> None:
        """One step for every parameter that has a gradient; the others stay as they are. They share one step count."""
        pieces = self._pieces()
        if not pieces:
            return
        self.steps += 1
        in_threads(self._update, pieces, self.threads if len(pieces) >= _WORTH_THREADS else 1)

    def _pieces(self) -> list[_Piece]:
        """The live parameters, cut and gathered to the size that suits their device."""
        limit = kernels(self.first).ADAMW_PIECE
        pieces: list[_Piece] = []
        stop = 0
        for name, param in self.params.items():
            start, stop = stop, stop + param.size
            if param.grad is None:
                continue
            flat_data, flat_grad = param.data.reshape(-1), param.grad.reshape(-1)
            for low in range(0, param.size, limit):
                high = min(low + limit, param.size)
                part = (flat_data[low:high], flat_grad[low:high], self._decay_of(name))
                last = pieces[-1] if pieces else None
                if last and last.stop == start + low and start + high - last.start <= limit:
                    last.stop = start + high
                    last.parts.append(part)
                else:
                    pieces.append(_Piece(start + low, start + high, [part]))
        return pieces

    def _update(self, piece: _Piece) -> None:
        xp, place = array_module(self.first), slice(piece.start, piece.stop)
        data, grad, decay = (list(column) for column in zip(*piece.parts))
        gathered = xp.concatenate(data) if len(data) > 1 else data[0]
        decays: Any = decay[0]
        if any(each != decays for each in decay):
            decays = xp.concatenate([xp.full(part.size, each, part.dtype) for part, each in zip(data, decay)])
        kernels(gathered).inplace_adamw(
            gathered,
            xp.concatenate(grad) if len(grad) > 1 else grad[0],
            self.first[place],
            self.second[place],
            lr=self.lr,
            decay=decays,
            betas=self.betas,
            eps=self.eps,
            step=self.steps,
        )
        start = 0
        for part in data if len(data) > 1 else ():
            part[...] = gathered[start : start + part.size]
            start += part.size

    def _moments(self) -> dict[str, Array]:
        return {"first": self.first, "second": self.second}


_WORTH_THREADS = 3  # pieces; fewer are done before a second thread has started


@dataclass
class _Piece:
    """A stretch of the flat moments, and its parts: flat views of data and gradient, and the decay of each."""

    start: int
    stop: int
    parts: list[tuple[Array, Array, float]]


def clip_grad_norm(params: Params, max_norm: float) -> float:
    """Scale all gradients so that their common Euclidean norm is at most `max_norm`; returns the norm before.

    A norm that is not finite is returned and nothing is scaled, so that the caller can skip the step.
    """
    refuse(max_norm <= 0, f"max_norm={max_norm} must be positive")
    grads = [param.grad for param in params.values() if param.grad is not None]
    lines = [grad.reshape(-1) for grad in grads]
    norm = float(sum(line @ line for line in lines)) ** 0.5  # one number travels from the device, not one a tensor
    if max_norm < norm < float("inf"):
        for grad in grads:
            grad *= max_norm / (norm + 1e-6)  # 1e-6 as torch.nn.utils.clip_grad_norm_
    return norm


def warmup_cosine(step: int, total: int, *, peak: float, warmup: int = 0, final: float = 0.0) -> float:
    """The learning rate at a step in [0, total): rising linearly to `peak`, then half a cosine down to `final`.

    Step 0 has peak/warmup, not 0, so that no step is wasted. Source: Loshchilov and Hutter 2017 (SGDR).
    """
    refuse(step < 0, f"step={step} must not be negative")
    refuse(total < 1 or warmup < 0 or warmup > total, f"warmup={warmup} must lie between 0 and total={total}")
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return final + (peak - final) * 0.5 * (1 + cos(pi * progress))


# Parameters that weight decay would hurt: they are not weights of a product but places, offsets and gains.
_UNDECAYED = ("pos_embed", "cls_token", "dist_token", "relative_position_bias_table", "cpb_mlp", "logit_scale")


def no_decay(model: Layer) -> set[str]:
    """The names that take no weight decay: biases, norms, and position, class-token and relative-bias tables."""
    return {
        name
        for name, param in model.parameters().items()
        if len(param.shape) <= 1 or any(word in name for word in _UNDECAYED)
    }


class ModelEma:
    """Averaged weights: average <- decay * average + (1 - decay) * weights, after each step (Polyak and Juditsky 1992).

    The average of the first steps is plain (decay rises from 0.1 as (1 + t)/(10 + t), as in TensorFlow), so that the
    random start is soon forgotten.
    """

    def __init__(self, model: Layer, decay: float = 0.999) -> None:
        refuse(not 0 <= decay < 1, f"decay={decay} must lie in [0, 1)")
        self.model, self.decay, self.steps = model, decay, 0
        self.average = model.state_dict()

    def update(self) -> None:
        """Take the model's present weights into the average."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        for name, param in self.model.parameters().items():
            average = self.average[name]
            average *= decay
            average += (1 - decay) * param.data

    def swap(self) -> None:
        """Exchange the model's weights and the average; call it again to swap back."""
        current = self.model.state_dict()
        self.model.load_state_dict(self.average)
        self.average = current

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, **{name: array.copy() for name, array in self.average.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        _fill("average", self.average, state)
        self.steps = int(state["steps"])


def parameter_count(params: Params) -> int:
    """How many numbers are learned."""
    return sum(prod(param.shape) for param in params.values())
