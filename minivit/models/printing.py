"""The shapes that models and the layers of this folder print, for `minivit/nn/printing.py`."""

from __future__ import annotations

from minivit.models.model import Model
from minivit.nn.printing import Shape, arguments_of, settings_text, shape

# the model's size, printed even where it is the default
_SIZES = ("img_size", "patch_size", "embed_dim", "depth", "depths", "num_heads", "window_size")


@shape.register(Model)
def _(layer: Model) -> Shape:
    sizes = {name: layer.config[name] for name in _SIZES if name in layer.config}
    others = {name: value for name, value in layer.config.items() if name not in _SIZES}
    words = settings_text([sizes], dict.fromkeys(sizes, ...)) + settings_text([others], arguments_of(type(layer)))
    return Shape(tuple(words), ("num_classes",))
