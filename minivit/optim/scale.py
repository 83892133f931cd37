"""The scale of a loss in float16, whose smallest number is 6e-8: gradients are smaller and would become 0."""

from __future__ import annotations

from math import isfinite
from typing import Any


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

    Source: Micikevicius et al. 2018, section 3.2.
    """

    def __init__(self, value: float = 2.0**16, growth: int = 2000) -> None:
        if not (isfinite(value) and value > 0) or growth < 1:
            raise ValueError(f"value={value} must be above 0 and finite, and growth={growth} at least 1")
        self.value, self.growth, self.skipped, self._good = float(value), growth, 0, 0

    def __repr__(self) -> str:
        return f"LossScale({self.value:g}, growth={self.growth}, skipped={self.skipped})"

    def update(self, finite: bool) -> None:
        """Halve the factor after an overflow, double it after `growth` steps without one."""
        if not finite:
            self.value, self.skipped, self._good = max(1.0, self.value / 2), self.skipped + 1, 0
            return
        self._good += 1
        if self._good == self.growth:
            self.value, self._good = self.value * 2, 0

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value, "skipped": self.skipped, "good": self._good}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value, self.skipped, self._good = float(state["value"]), int(state["skipped"]), int(state["good"])
