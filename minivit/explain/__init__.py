"""Seeing what a model does: windows and their masks, attention, which places of an image speak for a class, the way
of every gradient, where a NaN comes from, and what positions have learned.

The layers know nothing of it. A model is run stage by stage, and what its parts would compute is computed again from
their own parameters; or a copy of it runs whose parts report. A model that is looked at stays as it was.

Read in this order: `windows.py`, `drawing.py`, `figures.py` and `window_pictures.py` (Swin's windows, as arrays, text
and pictures), then `attention.py`, `gradcam.py` and `attention_pictures.py` (what a model looked at;
docs/classify_an_image.md), then `watched.py`, `formulas.py`, `tracing.py`, `trace_pictures.py` and
`debugging.py` (a step of training, part by part; docs/trace.md), then `similarity.py` and `position_pictures.py`. The
files of pictures need matplotlib and are imported by their own names.
"""

from minivit.explain.attention import (
    BlockAttention,
    attention_rollout,
    attention_weights,
    block_names,
    head_maps,
)
from minivit.explain.debugging import NotFiniteError, debug_nans
from minivit.explain.gradcam import grad_cam
from minivit.explain.similarity import position_similarity
from minivit.explain.tracing import Row, Trace, trace
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
    "NotFiniteError",
    "Row",
    "Trace",
    "attention_rollout",
    "attention_weights",
    "block_names",
    "by",
    "debug_nans",
    "describe",
    "grad_cam",
    "grid_text",
    "head_maps",
    "in_windows",
    "kinds",
    "layout",
    "mask_text",
    "mask_title",
    "position_similarity",
    "positions",
    "positions_after_roll",
    "receptive_field",
    "regions",
    "side_by_side",
    "trace",
    "window_masks",
]
