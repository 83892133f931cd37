"""From an image to tokens: the patch embedding as a layer."""

from __future__ import annotations

from typing import Any

from minivit import functional as F
from minivit.nn import init
from minivit.nn.basic import LayerNorm, RMSNorm
from minivit.nn.layer import Chain, Layer, apply
from minivit.nn.parameter import Parameter
from minivit.protocol import Array, Back, Rng
from minivit.random import as_generator


class PatchProjection(Layer):
    """weight (D, C, Ph, Pw) and, unless it has none, bias (D,): the `proj` of timm's names."""

    def __init__(self, shape: tuple[int, int, int, int], bias: bool, dtype: Any, rng: Rng) -> None:
        fan_in = shape[1] * shape[2] * shape[3]
        self.weight = Parameter(init.conv_uniform(rng, shape, fan_in, dtype))
        self.bias = Parameter(init.conv_uniform(rng, shape[:1], fan_in, dtype)) if bias else None

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Back]:
        return apply(F.patch_embed, x, self.weight, self.bias)


class PatchEmbed(Chain):
    """images (B, C, H, W) -> tokens (B, (H/Ph) (W/Pw), D), patches in reading order.

    With a backbone the patches come from its map instead of the image: the hybrid of Dosovitskiy et al. 2021.

    Args:
        patch_size: (Ph, Pw), kernel and stride.
        in_chans: C, the channels of the image, or of the backbone's map.
        embed_dim: D.
        bias: whether the projection has one.
        norm_eps: eps of a norm of the tokens, or None for none (ViT has none, Swin has one).
        norm_layer: its class.
        backbone: a layer from maps to maps that runs before, such as a ResNet's stages; or None.
    """

    def __init__(
        self,
        patch_size: tuple[int, int],
        in_chans: int,
        embed_dim: int,
        *,
        bias: bool = True,
        norm_eps: float | None = None,
        norm_layer: type[LayerNorm] | type[RMSNorm] = LayerNorm,
        backbone: Any = None,
        dtype: Any = "float32",
        seed: Any = None,
    ) -> None:
        dtype = init.dtype_of(dtype)
        self.backbone: Any = backbone
        self.proj = PatchProjection((embed_dim, in_chans, *patch_size), bias, dtype, as_generator(seed))
        self.norm = None if norm_eps is None else norm_layer(embed_dim, norm_eps, dtype=dtype)
