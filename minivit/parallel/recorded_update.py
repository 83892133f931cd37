"""Clipping, AdamW and the averaged weights as the end of a recorded step, for which the host does not wait.

What changes from step to step enters through one small array: learning rate, number of the step, decay of the average.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any, NamedTuple

import numpy as np

from minivit.device import array_module
from minivit.nn.parameter import Parameter
from minivit.optim import AdamW, LossScale, ModelEma
from minivit.optim.base import check_rate
from minivit.protocol import Array


class Outcome(NamedTuple):
    """What a step found, as arrays of shape () on the GPU; `float(outcome.loss)` waits for it.

    Attributes:
        loss: the mean over the batch.
        gradient_norm: before clipping. If it is not finite, the step has changed no weight.
        correct: how many predictions were correct, 0 if the loss does not count them.
    """

    loss: Array
    gradient_norm: Array
    correct: Array


class RecordedUpdate:
    """What a recorded step does with its gradients.

    Args:
        params: of the model.
        opt, max_norm, average: see `CapturedStep.update`.
        scale: of the loss in float16, which the step adapts, else None.

    Raises:
        ValueError: for another optimizer than AdamW, one of another model, or a norm that is not positive.
    """

    def __init__(
        self,
        params: Sequence[Parameter],
        opt: Any,
        max_norm: float | None,
        average: ModelEma | None,
        scale: LossScale | None = None,
    ) -> None:
        if not isinstance(opt, AdamW):
            raise ValueError(
                f"a recorded step updates by AdamW, got {type(opt).__name__}: call loss_and_grad, and then opt.step()"
            )
        places = {id(param): place for place, param in enumerate(params)}
        other = next((name for name, param in opt.params.items() if id(param) not in places), None)
        if other is not None:
            raise ValueError(f"the optimizer's {other} is no parameter of this model: build it of model.parameters()")
        if average is not None and any(id(p) not in places for p in average.model.parameters().values()):
            raise ValueError("the average is that of another model: build ModelEma with the model of this step")
        if max_norm is not None and not max_norm > 0:
            raise ValueError(f"max_norm={max_norm} must be positive")
        self.opt, self.max_norm, self.average, self.scale = opt, max_norm, average, scale
        self._places = {name: places[id(param)] for name, param in opt.params.items()}
        if not hasattr(opt.skipped, "shape"):
            opt.skipped = array_module(opt.first).zeros(1, np.float64)

    def is_of(self, opt: Any, max_norm: float | None, average: ModelEma | None, scale: LossScale | None) -> bool:
        """Whether it was made for these."""
        return (opt, average, scale) == (self.opt, self.average, self.scale) and max_norm == self.max_norm

    def dloss(self) -> Any:
        """What the backward pass begins with: 1, or in float16 the scale, which the graph reads at each launch."""
        return 1.0 if self.scale is None else self.scale.state[0].astype(np.float32)

    def settings(self) -> Array:
        """(3,) on the host, for the next launch, which is counted.

        Raises:
            ValueError: for a learning rate that is negative or not finite.
        """
        check_rate("lr", self.opt.lr)
        decay = 1.0 if self.average is None else self.average.count()
        return np.array([self.opt.lr, self.opt.count(), decay])

    def __call__(self, loss: Array, correct: Array | None, grads: Sequence[Array | None], settings: Array) -> Array:
        """Launch it: (loss, gradient's norm, correct) as (3,)."""
        from minivit.fast.cupy.parameters import recorded_update

        opt = self.opt
        shares = opt.shares({name: grads[place] for name, place in self._places.items()}, lr=1.0)
        if not shares:
            raise ValueError("no parameter of the optimizer has a gradient")
        return recorded_update(
            opt.first, opt.second, shares, [] if self.average is None else self.average.pairs(),
            loss=loss.astype(opt.first.dtype, copy=False), correct=correct, settings=settings, skipped=opt.skipped,
            max_norm=inf if self.max_norm is None else float(self.max_norm), betas=opt.betas, eps=opt.eps,
            every=[grad for grad in grads if grad is not None] if self.scale is not None else (), scale=self.scale,
        )  # fmt: skip


NOTHING = np.zeros(3, np.float64)  # settings of a launch that changes nothing, for the runs before a recording
