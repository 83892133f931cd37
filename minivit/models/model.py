"""What every model is: layers from image to logits, one after the other, and an inference that keeps nothing."""

from __future__ import annotations

from typing import Any

import numpy as np

from minivit.argument_checks import check_images
from minivit.device import array_module
from minivit.fast.blas_threads import limit_threads
from minivit.fast.freed_memory import keep_freed_memory
from minivit.fast.threads import in_threads, workers
from minivit.nn import multiply_adds
from minivit.nn.layer import Chain, Layer
from minivit.protocol import Array, inference

HEAD = ("head_drop", "head")  # the attributes behind the pooled features
_WORTH_THREADS = 20_000_000  # multiply-adds: below, a millisecond's work, handing over costs what it gains
# multiply-adds of a thread at a time, four images of ViT-B/16: with one at a time its products take 14 % longer
_MOST_WORK = 72_000_000_000


class Model(Chain):
    """A chain of layers from images (B, C, H, W) to logits (B, num_classes).

    Attributes:
        config: the arguments it was built with, as plain numbers and strings; `type(model)(**config)` builds its twin.
        num_classes: K, 0 for a model that returns pooled features.
    """

    config: dict[str, Any]
    num_classes: int

    def check_input(self, x: Array) -> None:
        """Refuse what is no batch of images of the model's dtype and channels."""
        super().check_input(x)
        if "in_chans" in getattr(self, "config", {}):
            check_images(type(self).__name__, x, self.config["in_chans"])

    def body(self) -> list[Layer]:
        """The layers from the images to the pooled features (B, D)."""
        return [part for name, part in self.parts() if name not in HEAD]

    def predict(self, x: Array, batch_size: int | None = None) -> Array:
        """The logits (B, num_classes) of images (B, C, H, W), for inference: no randomness, and nothing kept.

        It is the forward pass with each `back` dropped at once, on a few images at a time. All usable cores
        work where there is enough to do: each on images of its own, or, for a single image, on parts of
        each matrix product. `OMP_NUM_THREADS` says how many.

        Args:
            batch_size: run so many images at a time; None runs them all at once.
        """
        return self._infer(self.steps(), x, batch_size)

    def features(self, x: Array, batch_size: int | None = None) -> Array:
        """The pooled features (B, D) that the head reads, computed like `predict`."""
        return self._infer(self.body(), x, batch_size)

    def _infer(self, layers: list[Layer], x: Array, batch_size: int | None) -> Array:
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.check_input(x)
        if batch_size is None or batch_size >= len(x):
            return self._shared(layers, x)
        parts = [self._shared(layers, x[start : start + batch_size]) for start in range(0, len(x), batch_size)]
        return array_module(x).concatenate(parts)

    def _shared(self, layers: list[Layer], x: Array) -> Array:
        """The layers' output, computed by all usable cores if it is worth it."""
        threads, xp = workers(), array_module(x)
        if xp is not np or x.ndim != 4 or not x.size:
            return _run(layers, x)
        try:
            work = multiply_adds(self, x.shape)
        except LookupError:  # a layer of unknown cost: take it to be worth all cores
            work = _WORTH_THREADS
        # images at a time: what a layer keeps until it is done should not grow with the batch
        few = max(1, _MOST_WORK * len(x) // max(1, work))
        if threads == 1 or work < _WORTH_THREADS:
            return _in_parts(layers, x, few)
        keep_freed_memory()
        if len(x) < threads:  # the products use all cores by themselves
            return _in_parts(layers, x, few)
        bounds = [len(x) * number // threads for number in range(threads + 1)]
        shards = [x[start:end] for start, end in zip(bounds, bounds[1:])]
        with limit_threads(1):
            return xp.concatenate(in_threads(lambda shard: _in_parts(layers, shard, few), shards, threads))


def _in_parts(layers: list[Layer], x: Array, count: int) -> Array:
    parts = [_run(layers, x[start : start + count]) for start in range(0, len(x), count)]
    return parts[0] if len(parts) == 1 else array_module(x).concatenate(parts)


def _run(layers: list[Layer], x: Array) -> Array:
    with inference():
        for layer in layers:
            x, _ = layer(x)
    return x
