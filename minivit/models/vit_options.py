"""The options of a ViT, and their valid combinations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from minivit.models.options import Options, check_partial_patches, check_rates, check_whole, plain_size
from minivit.models.resnet import checked_layers, map_size
from minivit.nn.bottleneck import EPSILONS
from minivit.nn.rotary import PERIODS
from minivit.sizes import Size, pair

_CHOICES = {
    "norm_layer": ("layernorm", "rmsnorm"),
    "block_fn": ("block", "parallel_things", "parallel_scaling", "diff_parallel_scaling"),
    "attn_layer": ("", "diff"),
    "mlp_layer": ("mlp", "swiglu", "swiglu_packed"),
    "rotary_periods": PERIODS,
}


@dataclass
class ViTOptions(Options):
    """The arguments of `ViT`, documented there; combinations that make no model are refused."""

    img_size: int | Size = 224
    patch_size: int | Size = 16
    in_chans: int = 3
    num_classes: int = 1000
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    qkv_bias: bool | str = True
    class_token: bool = True
    global_pool: str = "token"
    fc_norm: bool | None = None
    pos_embed: str = "learned_1d"
    representation_size: int | None = None
    patch_norm: bool = False
    drop_rate: float = 0.0
    pos_drop_rate: float = 0.0
    proj_drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    gelu: str = "none"
    norm_eps: float = 1e-6
    weight_init: str = "timm"
    distilled: bool = False
    post_norm: bool = False
    dynamic_img_size: bool = False
    partial_patches: str = "refuse"
    skip_unused_tokens: bool = True
    resnet_layers: tuple[int, ...] | None = None
    resnet_width: int = 64
    resnet_groups: int = 32
    resnet_eps: str = "timm"
    dtype: Any = "float32"
    seed: Any = 0
    # what changed after the first ViT
    reg_tokens: int = 0
    no_embed_class: bool = False
    pre_norm: bool = False
    final_norm: bool = True
    pool_include_prefix: bool = False
    norm_layer: str = "layernorm"
    block_fn: str = "block"
    init_values: float | None = None
    attn_layer: str = ""
    qk_norm: bool = False
    scale_attn_norm: bool = False
    proj_bias: bool = True
    mlp_layer: str = "mlp"
    scale_mlp_norm: bool = False
    rotary_periods: str = "exact"

    def __post_init__(self) -> None:
        check_rates(self)
        self._check_pooling()
        self.resnet_layers = checked_layers(self.resnet_layers)
        if self.resnet_eps not in EPSILONS:
            raise ValueError(f"resnet_eps={self.resnet_eps!r}: choose {' or '.join(map(repr, EPSILONS))}")
        self.img_size, self.patch_size = plain_size(self.img_size), plain_size(self.patch_size)
        check_whole(self, embed_dim=1, depth=0, num_heads=1, in_chans=1, num_classes=0, reg_tokens=0)
        if self.representation_size is not None:
            check_whole(self, representation_size=1)
        if self.fc_norm is None:
            self.fc_norm = self.global_pool == "avg"
        self.fc_norm = self.fc_norm and self.final_norm
        self._check_blocks()
        self._check_patch()

    def _check_pooling(self) -> None:
        if self.global_pool not in ("token", "avg", "map"):
            raise ValueError(f"global_pool={self.global_pool!r}: choose 'token', 'avg' or 'map'")
        if not self.class_token and (self.global_pool == "token" or self.distilled):
            raise ValueError("class_token=False leaves no token to read: use global_pool='avg' and distilled=False")
        if self.distilled and self.global_pool != "token":
            raise ValueError("distilled=True reads its two tokens: use global_pool='token'")
        if self.distilled and self.fc_norm and self.final_norm:
            raise ValueError("distilled=True has its norm before its two tokens are read: leave fc_norm out")
        if self.distilled and self.reg_tokens:
            raise ValueError("distilled=True has no register tokens: use reg_tokens=0")
        if self.global_pool == "map" and self.mlp_layer != "mlp":
            raise ValueError("attention pooling has a plain MLP: use mlp_layer='mlp', or another global_pool")
        if self.distilled and self.representation_size is not None:
            raise ValueError("distilled=True has two plain heads: use representation_size=None")
        if self.pos_embed == "relative" and self.dynamic_img_size:
            raise ValueError(
                "pos_embed='relative' learns a bias for each offset of one grid: build the model with the img_size you "
                "need, or use absolute positions with dynamic_img_size=True"
            )

    def _check_blocks(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r}: choose {' or '.join(map(repr, choices))}")
        if self.init_values is not None and not self.init_values > 0:
            raise ValueError(f"init_values={self.init_values} must be positive, or None for no LayerScale")
        if self.post_norm and (self.block_fn != "block" or self.init_values or self.norm_layer != "layernorm"):
            raise ValueError("post_norm=True is for plain blocks: leave block_fn, init_values and norm_layer out")
        joint = self.block_fn in ("parallel_scaling", "diff_parallel_scaling")
        if joint and (self.scale_attn_norm or self.scale_mlp_norm or self.mlp_layer != "mlp" or self.attn_layer):
            raise ValueError(
                f"block_fn={self.block_fn!r} has attention and MLP in one: leave scale_attn_norm, scale_mlp_norm, "
                "mlp_layer and attn_layer out"
            )
        if self.qkv_bias not in (True, False, "qv") or joint and self.qkv_bias == "qv":
            raise ValueError(f"qkv_bias={self.qkv_bias!r}: choose True or False, or in other blocks 'qv'")
        differential = self.attn_layer == "diff" or self.block_fn == "diff_parallel_scaling"
        if differential and self.pos_embed in ("relative", "rotary"):
            raise ValueError(f"differential attention has no {self.pos_embed} positions: choose another pos_embed")

    def _check_patch(self) -> None:
        """The patch must divide the image, or a stem's map, unless `partial_patches` allows partial ones."""
        check_partial_patches(self, "refuse", "pad", "drop")
        if self.partial_patches != "refuse" and self.resnet_layers is None and min(pair(self.patch_size)) > 0:
            return
        if self.partial_patches != "refuse" and self.resnet_layers is not None:
            raise ValueError(f"partial_patches={self.partial_patches!r}: patches of a stem's map must be complete")
        image, patch, layers = pair(self.img_size), pair(self.patch_size), self.resnet_layers
        cut = image if layers is None else map_size(image, layers)
        if min(patch) > 0 and cut[0] % patch[0] == 0 and cut[1] % patch[1] == 0 and min(cut) > 0:
            return
        fits = [size for size in range(1 if layers else 2, min(cut) + 1) if cut[0] % size == 0 and cut[1] % size == 0]
        near = sorted(fits, key=lambda size: abs(size - patch[0]))[:2]
        remedy = f"choose patch {' or '.join(map(str, sorted(near)))}" if near else "choose another size"
        what = f"image {image[0]}x{image[1]}"
        if layers is not None:
            what = f"the {cut[0]}x{cut[1]} map that resnet_layers={layers} make of an {what}"
        raise ValueError(
            f"{what} is not divisible by patch {patch[0]}x{patch[1]}: pad it, use partial_patches='pad' or 'drop', "
            f"or {remedy}"
        )
