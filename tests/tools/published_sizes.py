"""How a published size is recognized: its parameters, counted, and the multiply-adds of one image."""

from __future__ import annotations

import minivit
from minivit import nn, optim


def check_size(name: str, parameters: int, giga: str) -> None:
    """A named model has so many parameters, and so many 10^9 multiply-adds at the size in its name."""
    model = minivit.create_model(name)
    size = model.config["img_size"]
    macs = nn.multiply_adds(model, (1, 3, size, size))
    assert optim.parameter_count(model.parameters()) == parameters
    assert f"{macs / 1e9:.2f}" == giga
    assert nn.multiply_adds(model, (5, 3, size, size)) == 5 * macs
