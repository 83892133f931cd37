"""Which layers have the formula that is prepared: those with no attribute beside these.

A layer with anything more, such as a part that a later version adds, runs as it is, so that nothing is left out.
"""

from __future__ import annotations

from typing import Any

from minivit import nn

_ATTRIBUTES: dict[type[nn.Layer], set[str]] = {
    nn.Block: {"norm1", "attn", "norm2", "mlp", "drop_path", "post_norm"},
    nn.Attention: {"num_heads", "queries", "attn_drop", "proj_drop", "qkv", "position_bias", "proj"},
    nn.ShiftedWindows: {"attention", "window_size", "shift_size", "mask_padding", "covered", "pad_first"},
    nn.LayerNorm: {"weight", "bias", "eps"},
    nn.Linear: {"weight", "bias"},
    nn.LinearGELU: {"weight", "bias", "approximate"},
    nn.Mlp: {"drop", "fc1", "fc2"},
}
_ATTRIBUTES[nn.WindowAttention] = _ATTRIBUTES[nn.Attention] | {"mask_value"}
_ATTRIBUTES[nn.CosineWindowAttention] = _ATTRIBUTES[nn.WindowAttention] | {
    "q_bias", "v_bias", "logit_scale", "continuous_bias",
}  # fmt: skip


def known(layer: Any, kind: type[nn.Layer]) -> bool:
    """Whether the layer is of this class itself, and has no part or option that the class has not here.

    An attribute that is None or False is an option that is off.
    """
    if type(layer) is not kind:
        return False
    return all(value is None or value is False or name in _ATTRIBUTES[kind] or name == "dtype"
               for name, value in vars(layer).items())  # fmt: skip


def known_parts(block: nn.Block) -> bool:
    """Whether the norms, the projections and the MLP of a block are known."""
    inner: Any = block.attn.attention if isinstance(block.attn, nn.ShiftedWindows) else block.attn
    linears = known(inner.qkv, nn.Linear) and known(inner.proj, nn.Linear)
    norms = known(block.norm1, nn.LayerNorm) and known(block.norm2, nn.LayerNorm)
    mlp: Any = block.mlp
    return linears and norms and known(mlp, nn.Mlp) and known(mlp.fc1, nn.LinearGELU) and known(mlp.fc2, nn.Linear)
