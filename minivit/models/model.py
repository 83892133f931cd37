"""What every model is: stages from image to logits, a forward with a way back, and an inference that keeps nothing.

Next: `positions.py`.
"""

from __future__ import annotations

from typing import Any

from minivit.backend import array_module
from minivit.functional.permutations import pair
from minivit.nn.layer import Chain, Layer
from minivit.protocol import Array, refuse


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

    def stages(self) -> list[Layer]:
        return [*self.body(), *self.tail()]

    def predict(self, x: Array, batch_size: int | None = None) -> Array:
        """The logits (B, num_classes) of images (B, C, H, W), for inference: no randomness, and nothing kept.

        Each layer's back is dropped at once, so one layer's activations (one block's) live at a time.

        Args:
            batch_size: run so many images at a time; None runs them all at once.
        """
        return self._infer(self.stages(), x, batch_size)

    def features(self, x: Array, batch_size: int | None = None) -> Array:
        """The pooled features (B, D) that the head reads, computed like `predict`."""
        return self._infer(self.body(), x, batch_size)

    def _infer(self, stages: list[Layer], x: Array, batch_size: int | None) -> Array:
        refuse(batch_size is not None and batch_size < 1, f"batch_size must be at least 1, got {batch_size}")
        self.check_dtype(x)
        if batch_size is None or batch_size >= len(x):
            return _run(stages, x)
        parts = [_run(stages, x[start : start + batch_size]) for start in range(0, len(x), batch_size)]
        return array_module(x).concatenate(parts)


def _run(stages: list[Layer], x: Array) -> Array:
    for stage in stages:
        x = _run(stage.stages(), x) if isinstance(stage, Chain) else stage(x)[0]
    return x


def plain_size(size: int | tuple[int, int]) -> int | tuple[int, int]:
    """A size as a configuration keeps it: plain integers, and a tuple also where a file gave a list."""
    both = pair(size)
    return both if isinstance(size, tuple | list) else both[0]
