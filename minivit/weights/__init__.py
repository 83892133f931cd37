"""Weights from elsewhere: files of timm, Hugging Face, torchvision, Microsoft and Google, read without any of them.

Read in this order: `rules.py` and `layouts/` (who calls what how), `profiles.py`, `config_json.py`, `architecture.py`,
`fit.py`; then how a file of PyTorch's is read without running anything in it: `source.py`, `plain.py`, `tensors.py`,
`unpickler.py`, `zip_entries.py`, `torch_file.py`; then `read.py`, `recognise.py`, `hub.py`, `pretrained.py` and
`export.py`, where all of it comes together; `preprocessing.py` and `labels.py` are for images.
"""

from minivit.weights.export import export
from minivit.weights.pretrained import from_pretrained, load
from minivit.weights.profiles import PROFILES
from minivit.weights.torch_file import read_torch_file

__all__ = ["PROFILES", "export", "from_pretrained", "load", "read_torch_file"]
