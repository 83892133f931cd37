"""Loss and accuracy on training batches and on held-out images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minivit import functional as F
from minivit.device import to_device, to_numpy
from minivit.fork import Lock
from minivit.protocol import Array, Back


class CountingLoss:
    """softmax_cross_entropy that also counts correct predictions; several threads may call it concurrently.

    Attributes:
        uncounted: the loss alone, for `CapturedStep`, which counts on the GPU: a graph cannot look at the predictions.
    """

    uncounted = staticmethod(F.softmax_cross_entropy)

    def __init__(self) -> None:
        self._lock = Lock()
        self._correct = 0

    def __call__(self, logits: Array, labels: Array, **options: Any) -> tuple[Array, Back]:
        """The mean loss and its backward function, as `functional.softmax_cross_entropy` returns them."""
        classes = labels if labels.ndim == 1 else labels.argmax(axis=1)  # soft targets (B, K): the largest share
        correct = int((to_numpy(logits).argmax(axis=1) == to_numpy(classes)).sum())
        with self._lock:
            self._correct += correct
        return F.softmax_cross_entropy(logits, labels, **options)

    def __repr__(self) -> str:
        return f"CountingLoss({self._correct} correct)"

    def take_correct(self) -> int:
        """The number of correct predictions since the last call."""
        with self._lock:
            correct, self._correct = self._correct, 0
        return correct

    def add_correct(self, correct: int) -> None:
        """Count predictions that were made elsewhere."""
        with self._lock:
            self._correct += correct


def accuracy(
    predict: Callable[[Array], Array],
    images: Array,
    labels: Array,
    prepare: Callable[[Array], Array],
    device: str = "cpu",
    batch_size: int = 1000,
) -> tuple[float, Array]:
    """The share of images that are classified correctly, and the logits (n, K) on the host.

    Args:
        predict: (B, C, H, W) -> logits (B, K), such as `model.predict`.
        images: (n, ...), the input of `prepare`.
        labels: (n,) integers.
        prepare: a batch of `images` -> (B, C, H, W), such as `data.normalize`.
        device: "cpu" or "gpu", where `predict` expects its images.
        batch_size: images prepared at a time.
    """
    starts = range(0, len(images), batch_size)
    batches = (to_device(prepare(images[start : start + batch_size]), device) for start in starts)
    logits = np.concatenate([to_numpy(predict(batch)) for batch in batches])
    return float((logits.argmax(axis=1) == labels).mean()), logits
