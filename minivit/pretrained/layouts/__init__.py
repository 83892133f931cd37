"""The names of the same arrays in each source: one table for each, read in both directions. Our names are timm's.

Sources: google-research/vision_transformer and big_vision (JAX), torchvision, Hugging Face transformers,
microsoft/Swin-Transformer, WZMIAOMIAO/deep-learning-for-image-processing; the names are those in their published
files.
"""

from minivit.pretrained.layouts.google import GOOGLE
from minivit.pretrained.layouts.huggingface import HUGGINGFACE
from minivit.pretrained.layouts.layout import BUFFERS, MASK_TOKEN, Layout
from minivit.pretrained.layouts.microsoft import MICROSOFT, TIMM, WZMIAOMIAO_VIT
from minivit.pretrained.layouts.torchvision import TORCHVISION

# Microsoft's Swin has timm's names and a few more, so it is tried first
LAYOUTS = [*MICROSOFT, *TIMM, *HUGGINGFACE, *TORCHVISION, *GOOGLE, WZMIAOMIAO_VIT]

__all__ = ["BUFFERS", "LAYOUTS", "MASK_TOKEN", "Layout"]
