"""The names of the same arrays in each source: one table for each, read in both directions. Our names are timm's.

Sources: google-research/vision_transformer and big_vision (JAX), torchvision, Hugging Face transformers,
microsoft/Swin-Transformer, WZMIAOMIAO/deep-learning-for-image-processing, openai/CLIP and mlfoundations/open_clip,
facebookresearch's deit, dino, ibot, mae and dinov2, apple/ml-aim; the names are those in their published files.
"""

from minivit.pretrained.layouts.apple import APPLE
from minivit.pretrained.layouts.google import GOOGLE
from minivit.pretrained.layouts.huggingface import HUGGINGFACE
from minivit.pretrained.layouts.huggingface_families import HUGGINGFACE_FAMILIES
from minivit.pretrained.layouts.layout import BUFFERS, Layout
from minivit.pretrained.layouts.meta import META
from minivit.pretrained.layouts.microsoft import MICROSOFT, TIMM, WZMIAOMIAO_VIT
from minivit.pretrained.layouts.openclip import OPENCLIP
from minivit.pretrained.layouts.torchvision import TORCHVISION

# Microsoft's Swin and Meta's ViTs have timm's names and a few more, so they are tried first
LAYOUTS = [*MICROSOFT, *META, *TIMM, *HUGGINGFACE, *HUGGINGFACE_FAMILIES, *OPENCLIP, *APPLE, *TORCHVISION, *GOOGLE]
LAYOUTS.append(WZMIAOMIAO_VIT)

__all__ = ["BUFFERS", "LAYOUTS", "Layout"]
