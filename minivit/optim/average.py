"""Averaged weights, which vary less than those of a single step."""

from __future__ import annotations

from typing import Any

from minivit.nn.layer import Layer, check_layer
from minivit.optim import together
from minivit.optim.base import restore
from minivit.protocol import Array


class ModelEma:
    """Averaged weights: average <- decay * average + (1 - decay) * weights, after each step (Polyak and Juditsky 1992).

    In the first steps decay rises from 0.1 as (1 + t)/(10 + t), as in TensorFlow, so that the random initial weights
    soon lose their influence.
    """

    def __init__(self, model: Layer, decay: float = 0.999) -> None:
        check_layer("ModelEma", model)
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay} must lie in [0, 1)")
        self.model, self.decay, self.steps = model, decay, 0
        self.average = model.state_dict()

    def __repr__(self) -> str:
        return f"ModelEma({type(self.model).__name__}, decay={self.decay}, steps={self.steps})"

    def update(self) -> None:
        """Update the average with the model's current weights."""
        averages, weights = zip(*self.pairs())
        together.average(*averages, *weights, decay=self.count())

    def pairs(self) -> list[tuple[Array, Array]]:
        """(average, weights) of each parameter."""
        return [(self.average[name], param.data) for name, param in self.model.parameters().items()]

    def count(self) -> float:
        """Count an update, and return its decay."""
        self.steps += 1
        return min(self.decay, self.steps / (9 + self.steps))

    def swap(self) -> None:
        """Exchange the model's weights and the average; call it again to swap back."""
        current = self.model.state_dict()
        self.model.load_state_dict(self.average)
        for name, array in current.items():
            self.average[name][...] = array  # in place: a recorded step has the addresses

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, **{name: array.copy() for name, array in self.average.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        restore("average", self.average, state)
        self.steps = int(state["steps"])
