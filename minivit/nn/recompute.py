"""Time for memory: a wrapped layer keeps only its input, and runs its forward pass again when the gradient comes.

Random numbers are replayed from a copy of the generator, so gradients are the same to the last bit.
Source: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost". Next: `kept.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from minivit.backend import copy_generator
from minivit.nn.layer import Layer, Param
from minivit.protocol import Array, Back, once


class Recompute(Layer):
    """The layer inside, with the same parameter names; `model.blocks[i] = Recompute(model.blocks[i])` is enough."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.names_in_parent = layer.names_in_parent

    def _walk(self, prefix: str) -> Iterator[tuple[str, Param]]:
        return self.layer._walk(prefix)

    def forward(self, x: Array, rng: Any = None, **context: Any) -> tuple[Array, Back]:
        replay = copy_generator(rng)
        y, _ = self.layer(x, rng, **context)

        @once
        def back(dy: Array) -> Any:
            _, back_layer = self.layer(x, replay, **context)
            return back_layer(dy)

        return y, back

    def infer(self, x: Array, **context: Any) -> Array:
        return self.layer.infer(x, **context)

    def macs(self, shape: tuple[int, ...]) -> int:
        """Multiply-adds of one forward pass; the backward pass adds one more."""
        return self.layer.macs(shape)
