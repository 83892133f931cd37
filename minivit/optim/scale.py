"""The scale of a loss in float16, whose smallest number is 6e-8: gradients are smaller and would become 0."""

from __future__ import annotations

from math import isfinite
from typing import Any

import numpy as np

from minivit.device import array_module, to_numpy
from minivit.protocol import Array


class LossScale:
    """A factor of the loss that grows while gradients are finite, and falls where one has overflowed.

    `CapturedStep` multiplies the loss by it and divides the gradients again. A step whose gradients overflow is
    skipped: they stay infinite, so `clip_grad_norm` clears them and the weights do not change.

    Args:
        value: the first factor, a power of 2, so that scaling rounds nothing.
        growth: steps without an overflow after which it doubles. Both defaults are those of PyTorch's GradScaler.

    Attributes:
        value: the factor.
        skipped: steps whose gradients have overflowed.
        state: (3,) float64, both and the steps since the last change: on the GPU once a `CapturedStep` has it, so that
            a recorded step can adapt it. Reading `value` and `skipped` waits for that step.

    Source: Micikevicius et al. 2018, section 3.2.
    """

    def __init__(self, value: float = 2.0**16, growth: int = 2000) -> None:
        if not (isfinite(value) and value > 0) or growth < 1:
            raise ValueError(f"value={value} must be above 0 and finite, and growth={growth} at least 1")
        self._growth = growth
        self.state: Array = np.array([value, 0, 0], np.float64)

    def __repr__(self) -> str:
        return f"LossScale({self.value:g}, growth={self.growth}, skipped={self.skipped})"

    @property
    def growth(self) -> int:
        """Fixed, since a recorded step has it as a number."""
        return self._growth

    @property
    def value(self) -> float:
        return float(self.state[0])

    @value.setter
    def value(self, value: float) -> None:
        self.state[0] = value

    @property
    def skipped(self) -> int:
        return int(self.state[1])

    def move_to(self, like: Array) -> None:
        """Keep the state in the library of `like`."""
        self.state = array_module(like).asarray(self.state)

    def update(self, finite: bool) -> None:
        """Halve the factor after an overflow, double it after `growth` steps without one; not below 1."""
        value, skipped, good = to_numpy(self.state)
        if not finite:
            self._set(max(1.0, value / 2), skipped + 1, 0)
        elif good + 1 == self.growth:
            self._set(value * 2, skipped, 0)
        else:
            self._set(value, skipped, good + 1)

    def _set(self, *numbers: float) -> None:
        self.state[...] = array_module(self.state).asarray(np.array(numbers, np.float64))  # in the memory it has

    def state_dict(self) -> dict[str, Any]:
        value, skipped, good = to_numpy(self.state).tolist()
        return {"value": value, "skipped": int(skipped), "good": int(good)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._set(float(state["value"]), int(state["skipped"]), int(state["good"]))
