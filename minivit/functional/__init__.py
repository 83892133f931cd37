"""The calculus: pure functions on arrays, each with its derivative right below it. No classes, no parameters.

    y, vjp = F.linear(x, weight, bias)
    dx, dweight, dbias = vjp(dy)

`vjp` (vector-Jacobian product) returns the bare gradient where one input is differentiable, else a tuple in the order
of the arguments, None where the argument was None. Integer and boolean arguments have no gradient and no place in it.

Read in this order: `linear.py`, `permutations.py`, `activation.py`, `norm.py`, `batch_norm.py`, `dropout.py`,
`windows.py`, `position_bias.py`, `attention.py`, `patches.py`, `sliding.py`, `convolution.py`, `pooling.py`,
`resize.py`, `loss.py`; then `minivit/nn/`, where layers own the parameters.
"""

from minivit.functional.activation import gelu, log_softmax, relu, sigmoid, softmax, tanh
from minivit.functional.attention import cosine_attention, scaled_dot_product_attention
from minivit.functional.batch_norm import batch_norm, batch_statistics
from minivit.functional.convolution import conv2d, standardise_weight
from minivit.functional.dropout import drop_path, dropout
from minivit.functional.linear import embedding, linear
from minivit.functional.loss import mean_squared_error, softmax_cross_entropy
from minivit.functional.norm import group_norm, layer_norm, normalize
from minivit.functional.patches import patch_embed
from minivit.functional.permutations import merge_heads, pair, patchify, split_heads, split_qkv, unpatchify
from minivit.functional.pooling import adaptive_avg_pool2d, avg_pool2d, max_pool2d, mean_pool
from minivit.functional.position_bias import (
    continuous_position_table,
    log_spaced_offsets,
    relative_position_bias,
    relative_position_index,
)
from minivit.functional.resize import resize_grid, resize_images, resize_matrix
from minivit.functional.windows import (
    crop,
    pad,
    patch_merging,
    roll,
    shift_mask,
    shift_regions,
    window_partition,
    window_reverse,
)

__all__ = [
    "adaptive_avg_pool2d",
    "avg_pool2d",
    "batch_norm",
    "batch_statistics",
    "continuous_position_table",
    "conv2d",
    "cosine_attention",
    "crop",
    "drop_path",
    "dropout",
    "embedding",
    "gelu",
    "group_norm",
    "layer_norm",
    "linear",
    "log_softmax",
    "log_spaced_offsets",
    "max_pool2d",
    "mean_pool",
    "mean_squared_error",
    "merge_heads",
    "normalize",
    "pad",
    "pair",
    "patch_embed",
    "patch_merging",
    "patchify",
    "relative_position_bias",
    "relative_position_index",
    "relu",
    "resize_grid",
    "resize_images",
    "resize_matrix",
    "roll",
    "scaled_dot_product_attention",
    "shift_mask",
    "shift_regions",
    "sigmoid",
    "softmax",
    "softmax_cross_entropy",
    "split_heads",
    "split_qkv",
    "standardise_weight",
    "tanh",
    "unpatchify",
    "window_partition",
    "window_reverse",
]
