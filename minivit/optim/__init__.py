"""Optimization: SGD, AdamW, parameter groups, gradient clipping, the learning-rate schedule, averaged weights.

The step of training is four lines:

    opt.zero_grad()
    loss = step.loss_and_grad(images, labels, rng)
    optim.clip_grad_norm(model.parameters(), 1.0)
    opt.step()

Gradients add up until they are cleared, so accumulating over several small batches needs no extra code: call
`loss_and_grad` n times with `dloss=1/n` before one `step`.
"""

from minivit.optim.average import ModelEma
from minivit.optim.base import Optimizer, Params
from minivit.optim.groups import layer_decay, matching, no_decay, parameter_count
from minivit.optim.optimizers import SGD, AdamW
from minivit.optim.scale import LossScale
from minivit.optim.schedule import clip_grad_norm, warmup_cosine
from minivit.renamed import old_names

__all__ = [
    "SGD",
    "AdamW",
    "LossScale",
    "ModelEma",
    "Optimizer",
    "Params",
    "clip_grad_norm",
    "layer_decay",
    "matching",
    "no_decay",
    "parameter_count",
    "warmup_cosine",
]

__getattr__ = old_names(__name__, {"Optimiser": "Optimizer"})
