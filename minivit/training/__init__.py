"""Training runs: one that survives a kill, the loop of all of them, and two that are whole: MNIST and fine-tuning.

Read in this order: `run.py` (the state of a run in a folder), `loop.py` (the four-line step and what surrounds it),
`report.py` (the pictures that it leaves), `program.py` (the options of programs that train); then `mnist.py`, a whole
run on one page, and `tasks.py` and `finetuning.py`, where a model learns something else. Only the names of `run.py`
are passed on here; the other files are imported by their own names.
"""

from minivit.training.run import CHECKPOINT, METRICS, CountingLoss, Run, accuracy, fingerprint, noise_generator

__all__ = [
    "CHECKPOINT",
    "METRICS",
    "CountingLoss",
    "Run",
    "accuracy",
    "fingerprint",
    "noise_generator",
]
