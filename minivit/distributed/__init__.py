"""Training by several processes, on one machine or on many, with the same bits whoever computed them.

`mpiexec -n 4 python examples/train_mnist_vit.py` is all that a user types; docs/scaling.md has the rest. A program
calls `join`, and takes its optimizer and its step from the ranks that it returns; see `minivit.distributed.ranks`.
Without mpiexec nothing of MPI is imported.
"""

from minivit.distributed.launch import fail, join, launched_rank
from minivit.distributed.ranks import MpiRanks, Ranks

__all__ = ["MpiRanks", "Ranks", "fail", "join", "launched_rank"]
