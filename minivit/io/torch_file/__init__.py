"""Files of torch.save read without PyTorch, and without running code in them.

Read in this order: `bounds.py` (every claim is compared with the file), `globals.py` and `tensors.py` (the names that
a pickle may use), `unpickler.py`, `zip_entries.py`, `reader.py`.
"""

from minivit.io.torch_file.reader import read_torch_file

__all__ = ["read_torch_file"]
