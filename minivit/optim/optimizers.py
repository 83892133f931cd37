"""AdamW and SGD, as PyTorch computes them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from minivit.device import array_module
from minivit.fast.dispatch import accelerated
from minivit.fast.threads import usable_cores
from minivit.optim.base import Optimizer, Params
from minivit.protocol import Array


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

    Source: Loshchilov and Hutter 2019, algorithm 2; the decay uses p before the step, as in torch.optim.AdamW.
    """
    beta1, beta2 = betas
    m[...] = beta1 * m + (1 - beta1) * g
    v[...] = beta2 * v + (1 - beta2) * g * g
    m_hat = m / (1 - beta1**step)
    v_hat = v / (1 - beta2**step)
    p[...] = p - lr * (m_hat / (array_module(v).sqrt(v_hat) + eps) + weight_decay * p)


class Share(NamedTuple):
    """The data of one parameter in a step: its arrays, the start of its moments, and its rates."""

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
        first, second: flat; the moments of all parameters, concatenated.
        shares: those parameters that have a gradient; their arrays are contiguous.
        betas, eps, step: as in `adamw`.
        threads: their largest number.
    """
    for share in shares:
        span = slice(share.start, share.start + share.data.size)
        adamw(
            share.data.reshape(-1), share.grad.reshape(-1), first[span], second[span],
            lr=share.lr, weight_decay=share.weight_decay, betas=betas, eps=eps, step=step,
        )  # fmt: skip


# adamw_step, or its fast implementation: pieces shared among threads, and on a GPU one launch for all parameters
update = accelerated(adamw_step)


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019).

    The result is the same to the last bit for any number of threads.

    Args:
        params: `model.parameters()`.
        lr: learning rate; set `opt.lr` before each step to follow a schedule. At 0 a step changes no weight.
        weight_decay: each step multiplies the weights by 1 - lr weight_decay.
        betas: decay rates of the mean and of the mean square of the gradient.
        eps: added to the root of the mean square.
        no_decay: names of parameters without decay, usually `optim.no_decay(model)`.
        lr_scale: a factor of `lr` by name, 1 where there is none, such as `optim.layer_decay(model, 0.75)`.
        threads: their number; the usable cores by default.
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
        # m and v of all parameters, concatenated, so that threads get equal pieces
        self.first, self.second = xp.zeros(size, first.dtype), xp.zeros(size, first.dtype)
        for param in params.values():
            if not param.data.flags.c_contiguous:  # the step writes through flat views
                param.swap(xp.array(param.data, order="C"))

    def step(self) -> None:
        """One step for every parameter that has a gradient; errors as of `Optimizer.step`. All share one step count."""
        if not self._is_due():
            return
        shares = self.shares({name: param.grad for name, param in self.params.items()}, self.lr)
        self.steps += 1
        update(self.first, self.second, shares, betas=self.betas, eps=self.eps, step=self.steps, threads=self.threads)

    def shares(self, grads: Mapping[str, Array | None], lr: float) -> list[Share]:
        """What `adamw_step` needs of each parameter that has a gradient, at a learning rate."""
        shares, stop = [], 0
        for name, param in self.params.items():
            start, stop = stop, stop + param.size
            grad = grads[name]
            if grad is not None:
                rate = lr * self.lr_scale.get(name, 1.0)
                shares.append(Share(param.data, grad, start, rate, self._decay_of(name)))
        return shares

    def _moments(self) -> dict[str, Array]:
        return {"first": self.first, "second": self.second}


class SGD(Optimizer):
    """v <- momentum v + g + decay p; p <- p - lr v (or, with nesterov, p - lr (g + momentum v)), as in PyTorch."""

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
