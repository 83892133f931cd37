"""The calculus: pure functions on arrays, each with its derivative right below it. No classes, no parameters.

    y, vjp = F.linear(x, weight, bias)
    dx, dweight, dbias = vjp(dy)

`vjp` (vector-Jacobian product) returns the bare gradient where one input is differentiable, else a tuple in the order
of the arguments, None where the argument was None. Integer and boolean arguments have no gradient and no place in it.

Read in this order: `linear.py`, `permutations.py`, `activation.py`, `norm.py`, `dropout.py`,
`attention.py`, `patches.py`, `pooling.py`, `resize.py`, `loss.py`; then `minivit/nn/`, where layers own the parameters.
"""

from minivit.functional.activation import gelu, log_softmax, relu, softmax, tanh
from minivit.functional.attention import scaled_dot_product_attention
from minivit.functional.dropout import drop_path, dropout
from minivit.functional.linear import embedding, linear
from minivit.functional.loss import mean_squared_error, softmax_cross_entropy
from minivit.functional.norm import layer_norm
from minivit.functional.patches import patch_embed
from minivit.functional.permutations import merge_heads, patchify, split_heads, split_qkv, unpatchify
from minivit.functional.pooling import mean_pool
from minivit.functional.resize import resize_grid, resize_matrix

__all__ = [
    "drop_path",
    "dropout",
    "embedding",
    "gelu",
    "layer_norm",
    "linear",
    "log_softmax",
    "mean_pool",
    "mean_squared_error",
    "merge_heads",
    "patch_embed",
    "patchify",
    "relu",
    "resize_grid",
    "resize_matrix",
    "scaled_dot_product_attention",
    "softmax",
    "softmax_cross_entropy",
    "split_heads",
    "split_qkv",
    "tanh",
    "unpatchify",
]
