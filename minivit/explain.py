"""The functions of `minivit/observe/` in one module: `from minivit import explain`. Figures: `minivit/draw/`."""

from minivit.observe.attention import (
    BlockAttention,
    attention_rollout,
    attention_weights,
    block_names,
    head_maps,
)
from minivit.observe.debugging import NotFiniteError, debug_nans
from minivit.observe.features import PatchColors, nearest_embeddings, patch_colors, token_attention
from minivit.observe.gradcam import grad_cam
from minivit.observe.positions import position_similarity
from minivit.observe.trace import Row, Trace, trace
from minivit.observe.windows import (
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
    "PatchColors",
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
    "nearest_embeddings",
    "patch_colors",
    "positions",
    "positions_after_roll",
    "receptive_field",
    "regions",
    "side_by_side",
    "token_attention",
    "trace",
    "window_masks",
]
