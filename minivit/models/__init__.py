"""Whole networks, from images to logits.

Read in this order: `model.py` (what every model is), `positions.py`, `resnet.py`, `options.py`, `tokens.py`,
`heads.py`, `vit_init.py`, `vit.py`, `swin.py`, `counting.py`, `configs.py`; then `minivit/optim/`, which makes them
learn.
"""

from minivit.models import counting as _counting  # noqa: F401  # registers what the models' own layers cost
from minivit.models.configs import MODELS, create_model, list_models
from minivit.models.model import Model
from minivit.models.swin import Swin, SwinV2
from minivit.models.vit import ViT

__all__ = ["MODELS", "Model", "Swin", "SwinV2", "ViT", "create_model", "list_models"]
