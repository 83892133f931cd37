"""Published weights: files of timm, Hugging Face, torchvision, Microsoft and Google, read without any of them.

The steps of `loading.py`: read (`minivit/io/weights.py`), recognize and translate the names (`recognition.py`, by the
tables of `layouts/` and the rules of `renaming.py`), plan the model (`plan.py`, from `architecture.py` and
`config_json.py`), build it, adapt the arrays (`adaptation.py`), load. `checkpoint.py` saves and loads the parameters of
an existing model, `lora.py` its updates of low rank, `export.py` writes other projects' files of the models that these
have (`expressible.py`), `hub.py` downloads, `profiles.py` has the differences between projects, `preprocessing.py` the
preprocessing of images for the weights.
"""

from minivit.io.torch_file import read_torch_file
from minivit.pretrained.checkpoint import load, save
from minivit.pretrained.export import export
from minivit.pretrained.loading import create_model, from_pretrained, list_models
from minivit.pretrained.lora import load_lora, save_lora
from minivit.pretrained.profiles import PROFILES

__all__ = [
    "PROFILES",
    "create_model",
    "export",
    "from_pretrained",
    "list_models",
    "load",
    "load_lora",
    "read_torch_file",
    "save",
    "save_lora",
]
