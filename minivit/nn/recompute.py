"""Gradient checkpointing: a wrapped layer keeps only its input, and repeats its forward pass in the backward pass.

Random numbers are replayed from a copy of the generator, so gradients are the same to the last bit.
Source: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from minivit.fast.dispatch import current_mode, in_mode
from minivit.nn.layer import Layer
from minivit.nn.parameter import Buffer
from minivit.protocol import Array, Back, Rng, once
from minivit.random import copy_generator


class Recompute(Layer):
    """The layer inside, with the same parameter names; `model.blocks[i] = Recompute(model.blocks[i])` is enough."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.names_in_parent = layer.names_in_parent

    def named_state(self, prefix: str) -> Iterator[tuple[str, Buffer]]:
        return self.layer.named_state(prefix)

    def forward(self, x: Array, rng: Rng = None, **context: Any) -> tuple[Array, Back]:
        replay, mode = copy_generator(rng), current_mode()
        y, _ = self.layer(x, rng, **context)

        @once
        def back(dy: Array) -> Any:
            with in_mode(mode):  # formulas or fast functions, as in the forward pass
                _, back_layer = self.layer(x, replay, **context)
            return back_layer(dy)

        return y, back
