"""Pure functions on arrays, each with its derivative right below it. No classes, no parameters.

    y, vjp = F.linear(x, weight, bias)
    dx, dweight, dbias = vjp(dy)

`vjp` (vector-Jacobian product) returns the gradient itself where one input is differentiable, else a tuple in the order
of the arguments, None where the argument was None. Integer and boolean arguments have no entry in it.

Each file holds formulas: plain array expressions for NumPy and CuPy, in the order of the paper. The arguments of `name`
are checked by `check_name` below it. Here each formula becomes the public function: it checks its arguments, and runs
the fast implementation of the same name (`minivit/fast/`) where one exists for the array's library and dtype.
`F.name.plain` is always the formula; `with minivit.plain():` runs everything by formulas.
"""

from minivit.fast.dispatch import accelerated
from minivit.functional import (
    activation as _activation,
    attention as _attention,
    batch_norm as _batch_norm,
    convolution as _convolution,
    dropout as _dropout,
    heads as _heads,
    linear as _linear,
    loss as _loss,
    norm as _norm,
    patch_merging as _patch_merging,
    patches as _patches,
    pooling as _pooling,
    position_bias as _position_bias,
    resize as _resize,
    windows as _windows,
)
from minivit.functional.batch_norm import batch_statistics
from minivit.functional.position_bias import log_spaced_offsets, relative_position_index
from minivit.functional.resize import resize_matrix
from minivit.functional.windows import shift_mask, shift_regions
from minivit.renamed import old_names

gelu = accelerated(_activation.gelu)
linear_gelu = accelerated(_activation.linear_gelu)
log_softmax = accelerated(_activation.log_softmax)
quick_gelu = accelerated(_activation.quick_gelu)
relu = accelerated(_activation.relu)
sigmoid = accelerated(_activation.sigmoid)
silu = accelerated(_activation.silu)
softmax = accelerated(_activation.softmax)
swiglu = accelerated(_activation.swiglu)
tanh = accelerated(_activation.tanh)

cosine_attention = accelerated(_attention.cosine_attention)
differential_attention = accelerated(_attention.differential_attention)
rotary = accelerated(_attention.rotary)
scaled_dot_product_attention = accelerated(_attention.scaled_dot_product_attention)
self_attention = accelerated(_attention.self_attention)

batch_norm = accelerated(_batch_norm.batch_norm)

conv2d = accelerated(_convolution.conv2d)
standardize_weight = accelerated(_convolution.standardize_weight)

drop_path = accelerated(_dropout.drop_path, any_dtype=True)
dropout = accelerated(_dropout.dropout, any_dtype=True)
residual = accelerated(_dropout.residual, any_dtype=True)

embedding = accelerated(_linear.embedding)
linear = accelerated(_linear.linear)
lora_linear = accelerated(_linear.lora_linear)

mean_squared_error = accelerated(_loss.mean_squared_error)
softmax_cross_entropy = accelerated(_loss.softmax_cross_entropy)

group_norm = accelerated(_norm.group_norm)
layer_norm = accelerated(_norm.layer_norm)
layer_scale = accelerated(_norm.layer_scale)
normalize = accelerated(_norm.normalize)
rms_norm = accelerated(_norm.rms_norm)

patch_merging = accelerated(_patch_merging.patch_merging)

patch_embed = accelerated(_patches.patch_embed)

merge_heads = accelerated(_heads.merge_heads, any_dtype=True)
patchify = accelerated(_patches.patchify, any_dtype=True)
split_heads = accelerated(_heads.split_heads, any_dtype=True)
split_qkv = accelerated(_heads.split_qkv, any_dtype=True)
unpatchify = accelerated(_patches.unpatchify, any_dtype=True)

adaptive_avg_pool2d = accelerated(_pooling.adaptive_avg_pool2d)
avg_pool2d = accelerated(_pooling.avg_pool2d)
max_pool2d = accelerated(_pooling.max_pool2d)
mean_pool = accelerated(_pooling.mean_pool)

continuous_position_table = accelerated(_position_bias.continuous_position_table)
relative_position_bias = accelerated(_position_bias.relative_position_bias)

resize_grid = accelerated(_resize.resize_grid)
resize_images = accelerated(_resize.resize_images)

crop = accelerated(_windows.crop, any_dtype=True)
pad = accelerated(_windows.pad, any_dtype=True)
roll = accelerated(_windows.roll, any_dtype=True)
shifted_windows = accelerated(_windows.shifted_windows, any_dtype=True)
shifted_windows_reverse = accelerated(_windows.shifted_windows_reverse, any_dtype=True)
window_partition = accelerated(_windows.window_partition, any_dtype=True)
window_reverse = accelerated(_windows.window_reverse, any_dtype=True)

__all__ = [
    "adaptive_avg_pool2d",
    "avg_pool2d",
    "batch_norm",
    "batch_statistics",
    "continuous_position_table",
    "conv2d",
    "cosine_attention",
    "crop",
    "differential_attention",
    "drop_path",
    "dropout",
    "embedding",
    "gelu",
    "group_norm",
    "layer_norm",
    "layer_scale",
    "linear",
    "linear_gelu",
    "log_softmax",
    "log_spaced_offsets",
    "lora_linear",
    "max_pool2d",
    "mean_pool",
    "mean_squared_error",
    "merge_heads",
    "normalize",
    "pad",
    "patch_embed",
    "patch_merging",
    "patchify",
    "quick_gelu",
    "relative_position_bias",
    "relative_position_index",
    "relu",
    "residual",
    "resize_grid",
    "resize_images",
    "resize_matrix",
    "rms_norm",
    "roll",
    "rotary",
    "scaled_dot_product_attention",
    "self_attention",
    "shift_mask",
    "shift_regions",
    "shifted_windows",
    "shifted_windows_reverse",
    "sigmoid",
    "silu",
    "softmax",
    "softmax_cross_entropy",
    "split_heads",
    "split_qkv",
    "standardize_weight",
    "swiglu",
    "tanh",
    "unpatchify",
    "window_partition",
    "window_reverse",
]

__getattr__ = old_names(__name__, {"pair": "minivit.sizes.pair", "standardise_weight": "standardize_weight"})
