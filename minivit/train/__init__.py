"""Training runs that can be resumed after a kill, and a training loop.

`examples/train_mnist_vit.py` writes its loop out: read it first. `fit` is the same loop as a function. `finetuning.py`
and `tasks.py` train a model for another task, `report.py` writes figures and a model card.
"""

from minivit.train.folder import CHECKPOINT, resumable
from minivit.train.loop import fit
from minivit.train.metrics import CountingLoss, accuracy
from minivit.train.run import METRICS, Run, fingerprint, noise_generator

__all__ = [
    "CHECKPOINT",
    "METRICS",
    "CountingLoss",
    "Run",
    "accuracy",
    "fingerprint",
    "fit",
    "noise_generator",
    "resumable",
]
