"""Files of torch.save read without PyTorch, and without running anything in them.

Read in this order: `bounds.py` (every claim is compared with the file), `globals.py` and `tensors.py` (what a pickle
may name), `unpickler.py`, `zip_entries.py`, `reader.py`.
"""

from minivit.io.torch_file.reader import read_torch_file

__all__ = ["read_torch_file"]
