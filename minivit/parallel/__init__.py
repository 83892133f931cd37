"""How a training step runs: its shards in threads, or as one CUDA graph.

- `data_parallel.py`  the batch in shards, a thread for each
- `captured_step.py`  one step on a GPU, recorded and launched in one call
"""

from minivit.parallel.captured_step import CapturedStep
from minivit.parallel.data_parallel import DataParallel, Loss

__all__ = ["CapturedStep", "DataParallel", "Loss"]
