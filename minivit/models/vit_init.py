"""The three initializations of published ViTs, by parameter name.

Layers are built with timm's initialization (weights truncated normal with std 0.02, biases 0, patch convolution as
PyTorch's default), so "timm" changes nothing; the others redraw.
"""

from __future__ import annotations

import re
from math import log
from typing import Any

from minivit.nn import Parameter, init
from minivit.random import UNSET

SCHEMES = ("timm", "jax", "jax_nlhb")


def initialize(params: dict[str, Parameter], scheme: str, rng: Any) -> None:
    """Redraw a ViT's weights in place: all its parameters by name, or those of its head.

    "jax" (google-research/vision_transformer): linear layers Xavier uniform, MLP biases N(0, 1e-6), the
    convolutions LeCun normal, the patches' with bias 0, the classifier 0. "jax_nlhb": its bias also at -log K, so
    that sigmoid outputs start at 1/K.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"weight_init={scheme!r}: choose one of {', '.join(map(repr, SCHEMES))}")
    if scheme == "timm" or rng is UNSET:
        return
    for name, param in params.items():
        shape, dtype = param.shape, param.data.dtype
        if name.startswith("head"):
            start = -log(shape[0]) if scheme == "jax_nlhb" and name.endswith("bias") else 0.0
            param.data = init.zeros(shape, dtype) + start
        elif name.startswith("patch_embed.backbone"):
            if len(shape) == 4:
                param.data = init.lecun_normal(rng, shape, dtype)
        elif name.startswith("patch_embed.proj"):
            weight = len(shape) > 1
            param.data = init.lecun_normal(rng, shape, dtype) if weight else init.zeros(shape, dtype)
        elif name.startswith("pre_logits") and len(shape) == 2:
            param.data = init.lecun_normal(rng, shape, dtype)
        elif re.search(r"\.(mlp\.fc\d\w*|mlp_out_proj)\.bias$", name):
            param.data = init.normal(rng, shape, 1e-6, dtype)
        elif name.startswith(("blocks", "attn_pool")) and name.endswith("weight") and len(shape) == 2:
            param.data = init.xavier_uniform(rng, shape, dtype)
