"""Replacements for CuPy: kernels in CUDA C++ where a formula would be many launches, or slow or wrong on a GPU.

Everything else runs by its formula. What pays on a CPU, reused buffers and sums as products with ones, does not pay
here: memory comes from CuPy's pool.

- `kernels/`      the CUDA source, each kernel below the formula that it computes
- `launch.py`     compiles and launches them, and sums over rows
- `products.py`   matrix products through cuBLAS, and formulas with these for `@`
- `linear.py`, `add.py`, `norm.py`, `softmax.py`, `patches.py`, `windows.py`, `loss.py`, `parameters.py`   the
  replacements
- `attention.py`, `attention_by_products.py`   attention, in tiles that fit a block's memory, or by cuBLAS
- `capture.py`    a step recorded as a CUDA graph, for `minivit.parallel.CapturedStep`
"""

from minivit import functional as F
from minivit.fast.cupy import add, attention, linear, loss, norm, parameters, patches, softmax, windows
from minivit.fast.cupy.products import with_products
from minivit.fast.dispatch import Replacement, with_parts
from minivit.fast.half import HALF

_REAL = ("float32", "float64")
_ANY = (*_REAL, *HALF)  # the others compute in float32 where x has half precision

REPLACEMENTS = {
    "sum_of_two": Replacement(add.sum_of_two, _ANY),
    "residual": Replacement(add.residual, _ANY),
    "gelu": Replacement(linear.gelu, _ANY),
    "linear": Replacement(linear.linear, _ANY),
    "linear_gelu": Replacement(linear.linear_gelu, _ANY),
    "lora_linear": Replacement(with_parts(F.lora_linear.plain, linear=linear.linear), _ANY),
    "patchify": Replacement(patches.patchify, _ANY),
    "unpatchify": Replacement(patches.unpatchify, _ANY),
    "patch_embed": Replacement(with_parts(F.patch_embed.plain, patchify=patches.patchify, linear=linear.linear), _ANY),
    "embedding": Replacement(with_parts(F.embedding.plain, scatter_add=linear.scatter_add), _REAL),
    "relative_position_bias": Replacement(
        with_parts(F.relative_position_bias.plain, scatter_add=linear.scatter_add), _REAL
    ),
    "continuous_position_table": Replacement(
        with_parts(F.continuous_position_table.plain, linear=linear.linear), _REAL
    ),
    "conv2d": Replacement(with_products(F.conv2d.plain), _REAL),
    "layer_norm": Replacement(norm.layer_norm, _ANY),
    "group_norm": Replacement(with_parts(F.group_norm.plain, layer_norm=norm.layer_norm), _REAL),
    "standardize_weight": Replacement(with_parts(F.standardize_weight.plain, layer_norm=norm.layer_norm), _REAL),
    "scaled_dot_product_attention": Replacement(attention.scaled_dot_product_attention, _ANY),
    "self_attention": Replacement(attention.self_attention, _ANY),
    "cosine_attention": Replacement(
        with_parts(F.cosine_attention.plain, scaled_dot_product_attention=attention.scaled_dot_product_attention), _REAL
    ),
    "shifted_windows": Replacement(windows.shifted_windows, _ANY),
    "shifted_windows_reverse": Replacement(windows.shifted_windows_reverse, _ANY),
    "softmax": Replacement(softmax.softmax, _REAL),
    "softmax_cross_entropy": Replacement(loss.softmax_cross_entropy, _REAL),
    "adamw_step": Replacement(parameters.adamw_step, _REAL),
    "sum_of_squares": Replacement(parameters.sum_of_squares, _REAL),
    "scale_all": Replacement(parameters.scale_all, _REAL),
    "average_all": Replacement(parameters.average_all, _REAL),
}
