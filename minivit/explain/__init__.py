"""Seeing what a model does: windows and their masks, attention, and which places of an image speak for a class.

The layers know nothing of it. A model is run stage by stage, and what its parts would compute is computed again from
their own parameters, so a model that is looked at stays as it was.

Read in this order: `windows.py`, `drawing.py`, `figures.py` and `window_pictures.py` (Swin's windows, as arrays, text
and pictures), then `attention.py`, `gradcam.py` and `attention_pictures.py` (what a model looked at;
docs/classify_an_image.md). The files of pictures need matplotlib and are imported by their own names.
"""

from minivit.explain.attention import (
    BlockAttention,
    attention_rollout,
    attention_weights,
    block_names,
    head_maps,
)
from minivit.explain.gradcam import grad_cam
from minivit.explain.windows import (
    PAD,
    Layout,
    by,
    describe,
    grid_text,
    in_windows,
    kinds,
    layout,
    mask_text,
    mask_title,
    positions,
    positions_after_roll,
    receptive_field,
    regions,
    side_by_side,
    window_masks,
)

__all__ = [
    "PAD",
    "BlockAttention",
    "Layout",
    "attention_rollout",
    "attention_weights",
    "block_names",
    "by",
    "describe",
    "grad_cam",
    "grid_text",
    "head_maps",
    "in_windows",
    "kinds",
    "layout",
    "mask_text",
    "mask_title",
    "positions",
    "positions_after_roll",
    "receptive_field",
    "regions",
    "side_by_side",
    "window_masks",
]
