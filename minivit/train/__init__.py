"""Training runs that survive a kill: what a training loop needs, and one loop for the package's own programs.

`examples/train_mnist_vit.py` writes its loop out and is the page to read first. The files, in reading order: `run.py`
(a run in a folder: checkpoint, metrics, progress, Ctrl-C), `metrics.py` (loss and accuracy), `loop.py` (`fit`, the loop
of the example as a function), `report.py` (pictures and model card), `command_line.py` (options of programs that
train); then `tasks.py` and `finetuning.py`, which train a model for another task. The last four are imported by name.
"""

from minivit.train.loop import fit
from minivit.train.metrics import CountingLoss, accuracy
from minivit.train.run import CHECKPOINT, METRICS, Run, fingerprint, noise_generator

__all__ = [
    "CHECKPOINT",
    "METRICS",
    "CountingLoss",
    "Run",
    "accuracy",
    "fingerprint",
    "fit",
    "noise_generator",
]
