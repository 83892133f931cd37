"""What every model is: stages from image to logits, a forward with a way back, and an inference that keeps nothing.

Next: `positions.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minivit.backend import array_module
from minivit.backend.blas import limit_threads
from minivit.backend.memory import keep_freed_memory
from minivit.backend.threads import in_threads, workers
from minivit.functional.permutations import pair
from minivit.nn.layer import Chain, Layer
from minivit.protocol import Array, refuse

_WORTH_THREADS = 20_000_000  # multiply-adds: below, a millisecond's work, handing over costs what it gains


class Model(Chain):
    """A chain of stages from images (B, C, H, W) to logits (B, num_classes).

    Attributes:
        config: the arguments it was built with, as plain numbers and strings; `type(model)(**config)` builds its twin.
        num_classes: K, 0 for a model that returns pooled features.
    """

    config: dict[str, Any]
    num_classes: int

    def body(self) -> list[Layer]:
        """The stages from the images to the pooled features (B, D)."""
        raise TypeError(f"{type(self).__name__} must define body(self)")

    def tail(self) -> list[Layer]:
        """The stages from the pooled features to the logits."""
        raise TypeError(f"{type(self).__name__} must define tail(self)")

    def steps(self) -> list[Layer]:
        return [*self.body(), *self.tail()]

    def predict(self, x: Array, batch_size: int | None = None) -> Array:
        """The logits (B, num_classes) of images (B, C, H, W), for inference: no randomness, and nothing kept.

        Layers run through `infer`, so what a block needs in between lives for some of its tokens at a time. All usable
        cores work, where there is enough to do: each on images of its own, or, for a single image, on parts of each
        matrix product. `OMP_NUM_THREADS` says how many.

        Args:
            batch_size: run so many images at a time; None runs them all at once.
        """
        return self._infer(self.steps(), x, batch_size)

    def features(self, x: Array, batch_size: int | None = None) -> Array:
        """The pooled features (B, D) that the head reads, computed like `predict`."""
        return self._infer(self.body(), x, batch_size)

    def _infer(self, stages: list[Layer], x: Array, batch_size: int | None) -> Array:
        refuse(batch_size is not None and batch_size < 1, f"batch_size must be at least 1, got {batch_size}")
        self.check_dtype(x)
        if batch_size is None or batch_size >= len(x):
            return self._shared(stages, x)
        parts = [self._shared(stages, x[start : start + batch_size]) for start in range(0, len(x), batch_size)]
        return array_module(x).concatenate(parts)

    def _shared(self, stages: list[Layer], x: Array) -> Array:
        """The stages' output, computed by all usable cores if it is worth it."""
        threads, xp = workers(), array_module(x)
        if threads == 1 or xp is not np or x.ndim != 4 or not x.size or self.macs(x.shape) < _WORTH_THREADS:
            return _run(stages, x)
        keep_freed_memory()
        if len(x) < threads:  # the products use all cores by themselves
            return _run(stages, x)
        bounds = [len(x) * place // threads for place in range(threads + 1)]
        shards = [x[start:end] for start, end in zip(bounds, bounds[1:])]
        with limit_threads(1):
            return xp.concatenate(in_threads(lambda shard: _run(stages, shard), shards, threads))


def _run(stages: list[Layer], x: Array) -> Array:
    for stage in stages:
        x = stage.infer(x)
    return x


def plain_size(size: int | tuple[int, int]) -> int | tuple[int, int]:
    """A size as a configuration keeps it: plain integers, and a tuple also where a file gave a list."""
    both = pair(size)
    return both if isinstance(size, tuple | list) else both[0]
