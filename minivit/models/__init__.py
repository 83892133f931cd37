"""Complete networks, from images to logits.

`vit.py` and `swin.py` define the two networks, `model.py` the methods of every model, `configs.py` the published sizes
by name, `lora.py` updates of low rank beside the weights.
"""

from minivit.models import counting as _counting, printing as _printing  # noqa: F401  # register what the layers here cost and say
from minivit.models.configs import MODELS, create_model, list_models
from minivit.models.lora import lora, merge_lora
from minivit.models.model import Model
from minivit.models.swin import Swin, SwinV2
from minivit.models.vit import ViT

__all__ = ["MODELS", "Model", "Swin", "SwinV2", "ViT", "create_model", "list_models", "lora", "merge_lora"]
