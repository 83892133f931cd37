"""Norms of maps (B, C, H, W): GroupNorm, and BatchNorm with running statistics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from minivit import functional as F
from minivit.device import array_module
from minivit.fork import Lock
from minivit.nn import init
from minivit.nn.layer import Layer, apply
from minivit.nn.parameter import Buffer, Parameter
from minivit.protocol import Array, Back, Rng, once

_turn = Lock()  # replicas of a layer share its sums, and add to them one at a time


class GroupNorm(Layer):
    """Groups of channels of each sample normalized, then gain and offset: (B, num_channels, ...) of the same shape.

    weight (num_channels,) starts at 1, with `zero` at 0, bias (num_channels,) at 0.
    """

    def __init__(
        self, num_groups: int, num_channels: int, eps: float = 1e-5, *, zero: bool = False, dtype: Any = "float32"
    ) -> None:
        if num_groups < 1 or num_channels % num_groups:
            raise ValueError(f"GroupNorm: num_groups={num_groups} must divide num_channels={num_channels}")
        dtype = init.dtype_of(dtype)
        self.weight = Parameter((init.zeros if zero else init.ones)((num_channels,), dtype))
        self.bias = Parameter(init.zeros((num_channels,), dtype))
        self.num_groups, self.eps = num_groups, eps

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Back]:
        return apply(F.group_norm, x, self.num_groups, self.weight, self.bias, eps=self.eps)


class BatchNorm2d(Layer):
    """Channels normalized over the batch, then gain and offset: (B, num_features, H, W) of the same shape.

    With a generator (training) by the mean and variance of this batch, without one (inference) by `running_mean` and
    `running_var`. weight (num_features,) starts at 1, bias at 0, running_mean at 0, running_var at 1.

    As everywhere in this library, a forward pass changes no state. `back` adds the sums of its batch to `sums`, as it
    adds gradients to `.grad`. `update_statistics`, called at the optimizer's step, moves the running statistics
    towards the statistics of `sums` and clears `sums`. So:

    - a forward pass that is discarded, or run again by `Recompute`, has no effect: only `back` counts, once;
    - replicas in threads share `sums` and add to them one at a time; together they give the mean and variance of all
      shards in any order (in float64, up to rounding);
    - the running statistics change between two steps and never within one, as the weights do.

    Args:
        momentum: the weight of the new statistics in an update, PyTorch's default. (Their variance is divided by n - 1,
            as in PyTorch; within the batch it is divided by n.)
    """

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1, *, dtype: Any = "float32") -> None:
        if not 0 <= momentum <= 1:
            raise ValueError(f"BatchNorm2d: momentum must lie in [0, 1], got {momentum}")
        dtype = init.dtype_of(dtype)
        self.weight = Parameter(init.ones((num_features,), dtype))
        self.bias = Parameter(init.zeros((num_features,), dtype))
        self.running_mean = Buffer(init.zeros((num_features,), dtype))
        self.running_var = Buffer(init.ones((num_features,), dtype))
        self.sums = np.zeros((3, num_features), "float64")  # sums over the numbers of each channel: of 1, of x, of x^2
        self.eps, self.momentum = eps, momentum

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Back]:
        if x.ndim != 4:
            raise ValueError(f"BatchNorm2d: x must be (B, C, H, W), got shape {x.shape}")
        mean, variance = (self.running_mean.data, self.running_var.data) if rng is None else (None, None)
        y, back_norm = F.batch_norm(x, mean, variance, self.weight.data, self.bias.data, self.eps)
        batch = None if rng is None or x.size == 0 else _sums(x)

        @once
        def back(dy: Array) -> Array:
            dx, _, _, dweight, dbias = back_norm(dy)  # the statistics are constants here
            self.weight.accumulate(dweight, fresh=True)
            self.bias.accumulate(dbias, fresh=True)
            if batch is not None:
                with _turn:
                    self.sums += batch
            return dx

        return y, back

    def update_statistics(self) -> None:
        """Move the running statistics by `momentum` towards the statistics of all batches since the last update."""
        with _turn:
            count, total, squares = self.sums  # each (num_features,)
            if float(count[0]) == 0:
                return
            mean = total / count
            xp = array_module(mean)
            variance = xp.maximum(squares / count - mean * mean, 0)  # float64 has digits enough to subtract
            unbiased = variance * (count / xp.maximum(count - 1, 1))
            for running, new in ((self.running_mean, mean), (self.running_var, unbiased)):
                running.data += (self.momentum * (new - running.data)).astype(running.data.dtype)
            self.sums[...] = 0


def update_statistics(model: Layer) -> None:
    """`BatchNorm2d.update_statistics` of every such layer in a model: call it after the optimizer's step."""
    for layer in _batch_norms(model):
        layer.update_statistics()


def _batch_norms(layer: Layer) -> Iterator[BatchNorm2d]:
    if isinstance(layer, BatchNorm2d):
        yield layer
    for _, part in layer.parts():
        yield from _batch_norms(part)


def _sums(x: Array) -> Array:
    """(3, C) in float64: of each channel of x (B, C, H, W) the count, the sum, and the sum of squares."""
    mean, variance = (each.real.astype("float64") for each in F.batch_statistics(x))
    count = array_module(x).full(mean.shape, x.size // x.shape[1], "float64")
    return array_module(x).stack([count, count * mean, count * (variance + mean * mean)])
