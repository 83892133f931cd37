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
from math import cos, pi, prod
from typing import Any

from minivit.backend import array_module, kernels
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
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019), over one flat array for all parameters.

    Args:
        params: `model.parameters()`.
        lr: learning rate; set `opt.lr` before each step to follow a schedule.
        weight_decay: the share of lr by which weights shrink at each step.
        betas: decay rates of the mean and of the mean square of the gradient.
        eps: added to the root of the mean square.
        no_decay: names of parameters that do not shrink, usually `optim.no_decay(model)`.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        weight_decay: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        no_decay: Collection[str] = (),
    ) -> None:
        super().__init__(params, lr, weight_decay, no_decay)
        fine = len(betas) == 2 and all(0 <= beta < 1 for beta in betas)
        refuse(not fine, f"betas={betas} must be two numbers in [0, 1)")
        refuse(eps < 0, f"eps={eps} must not be negative")
        self.betas, self.eps = betas, eps
        first = next(iter(params.values())).data
        dtypes = {param.data.dtype for param in params.values()}
        refuse(len(dtypes) > 1, f"the parameters have different dtypes {sorted(map(str, dtypes))}")
        xp, size = array_module(first), sum(param.size for param in params.values())
        self._data, self._grad, self._scale = (xp.zeros(size, first.dtype) for _ in range(3))
        self.first, self.second = xp.zeros(size, first.dtype), xp.zeros(size, first.dtype)
        start = 0
        self._places: dict[str, slice] = {}
        for name, param in params.items():
            self._places[name] = slice(start, start + param.size)
            self._scale[self._places[name]] = self._decay_of(name)
            start += param.size

    def step(self) -> None:
        """One step for every parameter that has a gradient; the others stay as they are. They share one step count."""
        live: Params = {}
        for name, param in self.params.items():
            if param.grad is not None:
                live[name], place = param, self._places[name]
                self._data[place] = param.data.reshape(-1)
                self._grad[place] = param.grad.reshape(-1)
        if not live:
            return
        self.steps += 1
        for part in self._runs(live):
            kernels(self._data).inplace_adamw(
                self._data[part],
                self._grad[part],
                self.first[part],
                self.second[part],
                lr=self.lr,
                decay=self._scale[part],
                betas=self.betas,
                eps=self.eps,
                step=self.steps,
            )
        for name, param in live.items():
            param.data = self._data[self._places[name]].reshape(param.shape)

    def _runs(self, live: Params) -> list[slice]:
        """The stretches of the flat arrays whose parameters have a gradient: one, unless some are frozen."""
        runs: list[slice] = []
        for name in live:
            place = self._places[name]
            if runs and runs[-1].stop == place.start:
                runs[-1] = slice(runs[-1].start, place.stop)
            else:
                runs.append(place)
        return runs

    def _moments(self) -> dict[str, Array]:
        return {"first": self.first, "second": self.second}


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
