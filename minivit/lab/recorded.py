"""A forward and a backward pass of one image in which everything is kept: values and gradients of every part.

    found = read(model, images, target=7)
    found.probabilities, found.dx, found.parts["blocks.0.attn"].dy

Notation: one image (1, C, H, W); H heads, K classes, gh x gw a grid of patches.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from minivit import functional as F
from minivit.lab.switches import shuffles, switched
from minivit.models import Model, ViT
from minivit.nn import Layer
from minivit.observe.attention import BlockAttention, attentions, block_names
from minivit.observe.hooks import Location, Run, watched
from minivit.protocol import Array, Back, once


@dataclass(repr=False)
class Part:
    """One part of the model in one pass.

    Attributes:
        name: dotted, as its parameters; "" is the model, "loss" the loss.
        layer: the part, or the loss's function.
        depth: 0 for the model and the loss, 1 for the model's parts, ...
        x, y: input and output.
        dy, dx: dloss/dy and dloss/dx; dx is None where there is none.
    """

    name: str
    layer: Any
    depth: int
    x: Array
    y: Array
    dy: Array | None = None
    dx: Array | None = None


@dataclass(repr=False)
class Reading:
    """A forward and a backward pass of one image.

    Attributes:
        model: that ran, with the switches.
        images: (1, C, H, W), as the model saw them, so with shuffled patches if they are shuffled.
        logits, probabilities: (K,).
        target: the class whose loss was differentiated.
        loss: -log of its probability.
        parts: by name, in the order in which they run; the loss last.
        backward: the names in the order in which their backs ran.
        gradients: dloss/dparameter by name.
        dx: (1, C, H, W), dloss/dimages in the order of the given image.
        attention: of each block; see `minivit.explain.attention_weights`.
        maps: of each block (H, gh, gw), the attention of what the head reads; see `minivit.explain.head_maps`.
        rollout: (gh, gw), or None where attention rollout is not defined.
    """

    model: Model
    images: Array
    logits: Array
    probabilities: Array
    target: int
    loss: float
    parts: dict[str, Part]
    backward: list[str]
    gradients: dict[str, Array]
    dx: Array
    attention: list[BlockAttention]
    maps: list[Array]
    rollout: Array | None


class _Recorder:
    """Keeps x, y, dy and dx of every part."""

    def __init__(self) -> None:
        self.started: dict[str, None] = {}  # names in the order in which the parts are called
        self.parts: dict[str, Part] = {}
        self.backward: list[str] = []

    def record(self, name: str, layer: Any, depth: int, x: Array, run: Run) -> tuple[Array, Back]:
        self.started[name] = None
        y, back_part = run()
        part = Part(name, layer, depth, x.copy(), y.copy())  # a composite may write into what its part returned
        self.parts[name] = part

        @once
        def back(*dy: Array) -> Any:
            part.dy = dy[0].copy() if dy else None
            self.backward.append(name)
            dx = back_part(*dy)
            part.dx = None if dx is None else dx.copy()
            return dx

        return y, back


def with_every_token(model: Model) -> Model:
    """A model with the same weights whose last block computes every token, also those that the head does not read."""
    if not (isinstance(model, ViT) and model.config["skip_unused_tokens"]):
        return model
    complete = ViT(**{**model.config, "skip_unused_tokens": False})
    complete.load_state_dict(model.state_dict())
    return complete


class Reader:
    """Reads images by one model, with switches: its copy with a recorder at every part is made once.

    Not safe for several threads.

    Args:
        model: ViT or Swin with a head. It does not change, nor its gradients; its parameters' values are shared.
        switches, head: as of `switched`.

    Raises:
        ValueError: for a switch without its part.
    """

    def __init__(self, model: Model, switches: Iterable[str] = (), head: int = 0) -> None:
        chosen = list(switches)
        self.network, self.shuffle = switched(model, chosen, head), shuffles(model, chosen)
        self._normalized = "softmax" not in chosen
        self._recorder = _Recorder()
        self._watched = watched(self.network, self._watch)

    def _watch(self, layer: Layer, location: Location, run: Run, x: Array) -> tuple[Array, Back]:
        return self._recorder.record(location.name, location.layer, location.depth, x, run)

    def read(self, images: Array, target: int | None = None) -> Reading:
        """Run forward and backward, and compute the attention.

        Args:
            images: (1, C, H, W) of the model's dtype.
            target: the class whose loss is differentiated; None is the most probable one.

        Raises:
            ValueError: for several images, or a class that the model does not have.
        """
        if len(images) != 1:
            raise ValueError(f"the lab reads one image at a time, got {len(images)}")
        network, shuffle = self.network, self.shuffle
        seen = images if shuffle is None else shuffle(images)
        recorder = self._recorder = _Recorder()
        network.zero_grad()
        logits, back = self._watched(seen)
        answer = int(logits[0].argmax()) if target is None else target
        classes = logits.shape[1]
        if not 0 <= answer < classes:
            raise ValueError(f"class {answer} does not exist: the model has {classes}, 0 to {classes - 1}")
        labels = np.array([answer], dtype=np.int64)
        loss, back_loss = recorder.record(
            "loss", F.softmax_cross_entropy, 0, logits, lambda: F.softmax_cross_entropy(logits, labels)
        )
        dx = back(back_loss())
        gradients = {name: param.grad for name, param in network.parameters().items() if param.grad is not None}
        inputs = {name: recorder.parts[f"{name}.attn"].x for name in block_names(network)}
        heads = attentions(network, seen, inputs)
        rollout = heads.rollout[0] if heads.rollout is not None and self._normalized else None  # rows must sum to 1
        return Reading(
            model=network,
            images=seen,
            logits=logits[0],
            probabilities=F.softmax(logits)[0][0],
            target=answer,
            loss=float(loss),
            parts={name: recorder.parts[name] for name in recorder.started},
            backward=recorder.backward,
            gradients=gradients,
            dx=dx if shuffle is None else shuffle.undo(dx),
            attention=heads.weights,
            maps=[maps[0] for maps in heads.maps],
            rollout=rollout,
        )


def read(
    model: Model, images: Array, target: int | None = None, switches: Iterable[str] = (), head: int = 0
) -> Reading:
    """The reading of one image by a model; see `Reader` for the arguments and errors."""
    return Reader(model, switches, head).read(images, target)
