"""minivit: Vision Transformers in pure NumPy, every backward pass written by hand.

Start with `minivit/protocol.py` (one page), then `minivit/functional/`; docs/ gives the order and the derivations.
"""

from minivit import data, functional, nn, optim, parallel
from minivit.checkpoint import CheckpointError, save
from minivit.device import to_device, to_numpy
from minivit.fast.dispatch import plain
from minivit.gradcheck import GradientError, check_complex_step, check_vjp
from minivit.models import Swin, SwinV2, ViT, create_model, list_models
from minivit.summary import summary
from minivit.version import __version__
from minivit.weights import export, from_pretrained, load

__all__ = [
    "CheckpointError",
    "GradientError",
    "Swin",
    "SwinV2",
    "ViT",
    "__version__",
    "check_complex_step",
    "check_vjp",
    "create_model",
    "data",
    "export",
    "from_pretrained",
    "functional",
    "list_models",
    "load",
    "nn",
    "optim",
    "parallel",
    "plain",
    "save",
    "summary",
    "to_device",
    "to_numpy",
]
