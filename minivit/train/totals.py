"""The loss and accuracy of an epoch's batches so far."""

from __future__ import annotations

from math import isfinite
from typing import Any

from minivit.parallel.recorded_update import Outcome

MOST_SKIPPED = 10  # consecutive batches whose loss or gradient is not finite: one may be chance, ten have a cause
_MOST_UNREAD = 100  # batches whose numbers are left on a GPU: with more, ten of NaN would be noticed late


class Totals:
    """Sums over batches; those of a batch on a GPU may be read later.

    Args:
        loss, correct, images: the sums to begin with.

    Attributes:
        images: their number.
        skipped: batches whose loss or gradient was not finite; they are not counted otherwise.
    """

    def __init__(self, loss: float = 0.0, correct: int = 0, images: int = 0) -> None:
        self._loss, self._correct, self.images = loss, correct, images
        self.skipped = self._skipped_in_a_row = 0
        self._unread: list[tuple[Outcome, int, str]] = []

    def add(self, loss: float, correct: int, images: int, gradient_norm: float, where: str) -> None:
        """Add one batch; `where` is the position in the run, for the message of an error.

        Raises:
            FloatingPointError: the tenth batch in a row whose numbers are not finite.
        """
        if not (isfinite(loss) and isfinite(gradient_norm)):
            self.skipped += 1
            self._skipped_in_a_row += 1
            if self._skipped_in_a_row == MOST_SKIPPED:
                raise FloatingPointError(
                    f"the loss is {loss} and the gradient's norm {gradient_norm} in {where}, and neither was "
                    f"finite in {MOST_SKIPPED} batches in a row: lower the learning rate, or find the layer with "
                    "minivit.explain.debug_nans. The weights are those from before these batches"
                )
            return
        self._skipped_in_a_row = 0
        self._loss += loss * images
        self._correct += correct
        self.images += images

    def add_later(self, found: Outcome, images: int, where: str) -> None:
        """Add one batch of `CapturedStep.update`, whose numbers are still on the GPU."""
        self._unread.append((found, images, where))
        if len(self._unread) == _MOST_UNREAD:
            self.read()

    def read(self) -> None:
        """Add what was left for later, which waits for the GPU."""
        unread, self._unread = self._unread, []
        for found, images, where in unread:
            self.add(float(found.loss), int(found.correct), images, float(found.gradient_norm), where)

    @property
    def loss(self) -> float:
        """The mean over images."""
        return self._loss / max(1, self.images)

    @property
    def accuracy(self) -> float:
        """The share that was classified correctly."""
        return self._correct / max(1, self.images)

    def state(self) -> tuple[Any, ...]:
        """What another one begins with."""
        return self._loss, self._correct, self.images
