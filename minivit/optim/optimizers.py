"""The optimizers: SGD and AdamW, as PyTorch computes them, and what both share.

A parameter that is not given to an optimizer is frozen.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from minivit.device import array_module
from minivit.fast.dispatch import accelerated
from minivit.fast.threads import usable_cores
from minivit.nn.parameter import Parameter
from minivit.nn.printing import arguments_of, settings_of, settings_text, without_errors
from minivit.protocol import Array

Params = dict[str, Parameter]


class Optimizer:
    """What SGD and AdamW share: the parameters, `lr` (may be set each step), and a state that can be saved.

    `no_decay` and `lr_scale` are settings, no state: build the optimizer with the same ones before a state is loaded.
    """

    def __init__(
        self,
        params: Params,
        lr: float,
        weight_decay: float,
        no_decay: Collection[str],
        lr_scale: Mapping[str, float] | None = None,
    ) -> None:
        check_params(type(self).__name__, params)
        if not params:
            raise ValueError("the optimizer got no parameters")
        _check_rate("lr", lr)
        _check_rate("weight_decay", weight_decay)
        scales = dict(lr_scale or {})
        for argument, names in (("no_decay", no_decay), ("lr_scale", scales)):
            unknown = [name for name in names if name not in params]
            if unknown:
                raise ValueError(f"{argument} names {unknown[:1]}, which is not among the {len(params)} parameters")
        for name, factor in scales.items():
            if not 0 <= factor < float("inf"):
                raise ValueError(f"lr_scale of {name!r} is {factor}: it must be 0 or more, and finite")
        self.params, self.lr, self.weight_decay = params, lr, weight_decay
        self.no_decay, self.lr_scale = frozenset(no_decay), scales
        self.steps = 0

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for param in self.params.values():
            param.grad = None

    def step(self) -> None:
        """One step for every parameter that has a gradient; the others stay as they are. Warns where none has one.

        Raises:
            ValueError: if `lr` has become negative or is not finite.
        """
        raise TypeError(f"{type(self).__name__} must define step(self)")

    def _is_due(self) -> bool:
        """Whether any parameter has a gradient; warns where none has."""
        _check_rate("lr", self.lr)
        if any(param.grad is not None for param in self.params.values()):
            return True
        warnings.warn(
            f"{type(self).__name__}.step: no parameter has a gradient, so nothing was learned. After zero_grad and "
            "before step call loss_and_grad(images, labels), or y, back = model(x) and then back(dy); model.predict "
            "computes no gradients, those of another model are not these parameters', and clip_grad_norm clears "
            "gradients that are not finite",
            stacklevel=3,
        )
        return False

    def _decay_of(self, name: str) -> float:
        return 0.0 if name in self.no_decay else self.weight_decay

    def _lr_of(self, name: str) -> float:
        return self.lr * self.lr_scale.get(name, 1.0)

    def __repr__(self) -> str:
        return without_errors(self._text, f"{type(self).__name__}(...)")

    def _text(self) -> str:
        rates = {"lr": self.lr, "weight_decay": self.weight_decay}
        others = {name: value for name, value in settings_of(self).items() if name not in (*rates, "threads")}
        groups = len({(self._lr_of(name), self._decay_of(name)) for name in self.params})
        count = f"{len(self.params)} parameters in {groups} group{'s' if groups > 1 else ''}"
        words = settings_text([rates], dict.fromkeys(rates, ...)) + settings_text([others], arguments_of(type(self)))
        return f"{type(self).__name__}({', '.join([*words, count])})"

    def _moments(self) -> dict[str, Array]:
        """The arrays that the optimizer remembers, by name."""
        raise TypeError(f"{type(self).__name__} must define _moments(self)")

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on: `steps`, `lr` and copies of the moments."""
        return {"steps": self.steps, "lr": self.lr, **{name: array.copy() for name, array in self._moments().items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state; the parameters must be the same.

        Raises:
            ValueError: naming the first moment that is missing or of another shape.
        """
        restore("optimizer", self._moments(), state)
        self.steps, self.lr = int(state["steps"]), float(state.get("lr", self.lr))


def check_params(name: str, params: Any) -> None:
    """Refuse what are no parameters by name, such as the model or a list, in the words of the function `name`."""
    if isinstance(params, Mapping):
        wrong = next(((key, value) for key, value in params.items() if not isinstance(value, Parameter)), None)
        if wrong is None:
            return
        what = f"a dict whose {wrong[0]!r} is a {type(wrong[1]).__name__}, not a Parameter"
        if hasattr(wrong[1], "shape"):
            what += " (state_dict() returns copies, from which the model would not learn)"
    else:
        what = "a function, without ()" if callable(params) else f"a {type(params).__name__}"
        what = f"the {type(params).__name__} itself" if hasattr(params, "parameters") else what
    raise ValueError(
        f"{name} takes parameters by name, model.parameters(), got {what}. To train only some, give a smaller dict; "
        "no_decay and lr_scale are for groups"
    )


def _check_rate(name: str, value: Any) -> None:
    """Refuse a learning rate or decay that is no number, negative, or not finite; 0 is where a schedule may end."""
    if not isinstance(value, int | float | np.integer | np.floating):
        raise ValueError(f"{name}={value!r} must be a number, got a {type(value).__name__}")
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name}={value} must be finite and not be negative: usual are 1e-4 to 1e-1")


def restore(owner: str, arrays: dict[str, Array], state: dict[str, Any]) -> None:
    """Copy saved arrays into live ones, after all have been found to fit.

    Raises:
        ValueError: naming the owner and the first array that is missing or of another shape; nothing is then changed.
    """
    for name, array in arrays.items():
        found = tuple(state[name].shape) if name in state else None
        if found != array.shape:
            raise ValueError(f"{owner} state {name}: expected shape {array.shape}, found {found}")
    if "steps" not in state:
        raise ValueError(f"{owner} state: expected an entry 'steps', found {sorted(state)[:3]}")
    for name, array in arrays.items():
        array[...] = array_module(array).asarray(state[name])


class SGD(Optimizer):
    """v <- momentum v + g + decay p; p <- p - lr v (or, with nesterov, p - lr (g + momentum v)), as PyTorch does it."""

    def __init__(
        self,
        params: Params,
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        no_decay: Collection[str] = (),
        lr_scale: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(params, lr, weight_decay, no_decay, lr_scale)
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum={momentum} must lie in [0, 1)")
        if nesterov and momentum == 0:
            raise ValueError("nesterov=True needs a momentum above 0")
        self.momentum, self.nesterov = momentum, nesterov
        self.velocity = (
            {name: array_module(p.data).zeros_like(p.data) for name, p in params.items()} if momentum else {}
        )

    def step(self) -> None:
        """One step for every parameter that has a gradient; errors as of `Optimizer.step`."""
        if not self._is_due():
            return
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
            param.data = param.data - self._lr_of(name) * change

    def _moments(self) -> dict[str, Array]:
        return {f"velocity.{name}": array for name, array in self.velocity.items()}


def adamw(
    p: Array,
    g: Array,
    m: Array,
    v: Array,
    *,
    lr: float,
    weight_decay: Array | float,
    betas: tuple[float, float],
    eps: float,
    step: int,
) -> None:
    """One step of AdamW; writes into the parameters p and their moments m and v.

    Args:
        p, g, m, v: parameters, gradients, first and second moments, of one shape.
        lr: the learning rate.
        weight_decay: a number, or one for each parameter.
        betas: decay rates of m and v.
        eps: added to the root of the second moment.
        step: t, counted from 1.

    Source: Loshchilov and Hutter 2019, algorithm 2; the decay takes p before the step, as in torch.optim.AdamW.
    """
    beta1, beta2 = betas
    m[...] = beta1 * m + (1 - beta1) * g
    v[...] = beta2 * v + (1 - beta2) * g * g
    m_hat = m / (1 - beta1**step)
    v_hat = v / (1 - beta2**step)
    p[...] = p - lr * (m_hat / (array_module(v).sqrt(v_hat) + eps) + weight_decay * p)


class Share(NamedTuple):
    """What one parameter brings into a step: its arrays, where its moments begin, and its own rates."""

    data: Array
    grad: Array
    start: int
    lr: float
    weight_decay: float


def adamw_step(
    first: Array,
    second: Array,
    shares: Sequence[Share],
    *,
    betas: tuple[float, float],
    eps: float,
    step: int,
    threads: int = 1,
) -> None:
    """`adamw` for every parameter.

    Args:
        first, second: flat; the moments of all parameters, one after the other.
        shares: those parameters that have a gradient; their arrays are contiguous.
        betas, eps, step: as in `adamw`.
        threads: how many may share the work.
    """
    for share in shares:
        span = slice(share.start, share.start + share.data.size)
        adamw(
            share.data.reshape(-1), share.grad.reshape(-1), first[span], second[span],
            lr=share.lr, weight_decay=share.weight_decay, betas=betas, eps=eps, step=step,
        )  # fmt: skip


update = accelerated(adamw_step)


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019).

    The result is the same to the last bit whatever the number of threads.

    Args:
        params: `model.parameters()`.
        lr: learning rate; set `opt.lr` before each step to follow a schedule. At 0 a step changes no weight.
        weight_decay: the share of lr by which weights shrink at each step.
        betas: decay rates of the mean and of the mean square of the gradient.
        eps: added to the root of the mean square.
        no_decay: names of parameters that do not shrink, usually `optim.no_decay(model)`.
        lr_scale: a factor of `lr` by name, 1 where there is none, such as `optim.layer_decay(model, 0.75)`.
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
        lr_scale: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(params, lr, weight_decay, no_decay, lr_scale)
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas={betas} must be two numbers in [0, 1)")
        if eps < 0:
            raise ValueError(f"eps={eps} must not be negative")
        if threads is not None and threads < 1:
            raise ValueError(f"threads={threads} must be at least 1")
        self.betas, self.eps = betas, eps
        self.threads = usable_cores() if threads is None else threads
        first = next(iter(params.values())).data
        dtypes = {param.data.dtype for param in params.values()}
        if len(dtypes) > 1:
            raise ValueError(f"the parameters have different dtypes {sorted(map(str, dtypes))}")
        xp, size = array_module(first), sum(param.size for param in params.values())
        self.first, self.second = xp.zeros(size, first.dtype), xp.zeros(size, first.dtype)
        for param in params.values():
            if not param.data.flags.c_contiguous:  # the step writes through flat views
                param.swap(xp.array(param.data, order="C"))

    def step(self) -> None:
        """One step for every parameter that has a gradient; errors as of `Optimizer.step`. All share one step count."""
        if not self._is_due():
            return
        shares, stop = [], 0
        for name, param in self.params.items():
            start, stop = stop, stop + param.size
            if param.grad is not None:
                shares.append(Share(param.data, param.grad, start, self._lr_of(name), self._decay_of(name)))
        self.steps += 1
        update(self.first, self.second, shares, betas=self.betas, eps=self.eps, step=self.steps, threads=self.threads)

    def _moments(self) -> dict[str, Array]:
        return {"first": self.first, "second": self.second}
