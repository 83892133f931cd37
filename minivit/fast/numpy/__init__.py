"""Fast implementations for NumPy: in place where that is safe, few temporaries, sums as products with ones.

Tests compare each with its formula in float32, and check gradients in float64 like the formula's (tests/table.py).
"""

from minivit import functional as F
from minivit.fast.dispatch import Replacement, with_parts
from minivit.fast.numpy import activation, adamw, attention, convolution, linear, norm, pooling

REPLACEMENTS = {
    # GELU in float64 runs by its formula: the fit has the precision of float32
    "gelu": Replacement(activation.gelu, ("float32",)),
    "linear_gelu": Replacement(activation.linear_gelu, ("float32",)),
    "softmax": Replacement(activation.softmax),
    "linear": Replacement(linear.linear),
    "embedding": Replacement(linear.embedding),
    "layer_norm": Replacement(norm.layer_norm),
    "group_norm": Replacement(norm.group_norm),
    "normalize": Replacement(norm.normalize),
    "scaled_dot_product_attention": Replacement(attention.scaled_dot_product_attention),
    "self_attention": Replacement(attention.self_attention),
    "conv2d": Replacement(convolution.conv2d),
    "max_pool2d": Replacement(pooling.max_pool2d),
    "adamw_step": Replacement(adamw.adamw_step),
    # composites: the formula, on the fast functions above
    "standardize_weight": Replacement(with_parts(F.standardize_weight.plain, layer_norm=norm.layer_norm)),
    "lora_linear": Replacement(with_parts(F.lora_linear.plain, linear=linear.linear)),
    "patch_embed": Replacement(with_parts(F.patch_embed.plain, linear=linear.linear)),
    "relative_position_bias": Replacement(with_parts(F.relative_position_bias.plain, scatter_add=linear.scatter_add)),
    "cosine_attention": Replacement(
        with_parts(
            F.cosine_attention.plain,
            normalize=norm.normalize,
            scaled_dot_product_attention=attention.scaled_dot_product_attention,
        )
    ),
}
