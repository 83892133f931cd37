"""Averaged weights, which vary less than those of a single step."""

from __future__ import annotations

from typing import Any

from minivit.nn.layer import Layer, check_layer
from minivit.optim import together
from minivit.optim.base import restore


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
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        params = self.model.parameters()
        averages = [self.average[name] for name in params]
        together.average(*averages, *(param.data for param in params.values()), decay=decay)

    def swap(self) -> None:
        """Exchange the model's weights and the average; call it again to swap back."""
        current = self.model.state_dict()
        self.model.load_state_dict(self.average)
        self.average = current

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, **{name: array.copy() for name, array in self.average.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        restore("average", self.average, state)
        self.steps = int(state["steps"])
