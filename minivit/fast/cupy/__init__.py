"""Replacements for CuPy, where the formula alone is slow or wrong on a GPU. Everything else runs by its formula.

On a GPU launches overlap and memory comes from CuPy's pool, so what pays on a CPU (reused buffers, products with ones)
does not pay here.
"""

from cupyx.scipy.special import erf

from minivit import functional as F
from minivit.fast.blocks import in_blocks_where_large
from minivit.fast.cupy.norm import layer_norm
from minivit.fast.dispatch import Replacement, with_parts

_REAL = ("float32", "float64")
_gelu = with_parts(F.gelu.plain, erf=erf)  # one launch instead of eighty
_in_blocks = in_blocks_where_large(F.scaled_dot_product_attention.plain)

REPLACEMENTS = {
    "gelu": Replacement(_gelu, _REAL),
    "linear_gelu": Replacement(with_parts(F.linear_gelu.plain, gelu=_gelu), _REAL),
    "layer_norm": Replacement(layer_norm, _REAL),
    "group_norm": Replacement(with_parts(F.group_norm.plain, layer_norm=layer_norm), _REAL),
    "standardize_weight": Replacement(with_parts(F.standardize_weight.plain, layer_norm=layer_norm), _REAL),
    "scaled_dot_product_attention": Replacement(_in_blocks),
    "self_attention": Replacement(with_parts(F.self_attention.plain, scaled_dot_product_attention=_in_blocks)),
    "cosine_attention": Replacement(with_parts(F.cosine_attention.plain, scaled_dot_product_attention=_in_blocks)),
}
