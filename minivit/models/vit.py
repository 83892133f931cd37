"""The Vision Transformer: an image is cut into patches, and the patches are read like words.

Alphabet: B batch, C image channels, D channels, K classes. Source: Dosovitskiy et al. 2021, "An Image is Worth 16x16
Words"; names and shapes are timm's. Next: `swin.py`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from minivit.backend import as_generator
from minivit.functional.permutations import pair
from minivit.models.heads import DistilledHead, Pool, PreLogits
from minivit.models.model import Model, plain_size
from minivit.models.positions import make_positions
from minivit.models.resnet import checked_layers, make_stem, map_size
from minivit.models.tokens import Tokens, patch_grid
from minivit.models.vit_init import initialise
from minivit.nn import Attention, Block, Dropout, Layer, LayerNorm, Linear, Mlp, PatchEmbed
from minivit.nn.init import dtype_of
from minivit.protocol import Array, refuse


class ViT(Model):
    """Images (B, C, H, W) -> logits (B, K).

    Args (timm's names where timm has them):
        img_size: int or (H, W), which the patch must divide.
        patch_size: int or (Ph, Pw).
        in_chans: C.
        num_classes: K; 0 gives the pooled features (B, D).
        embed_dim, depth, num_heads, mlp_ratio, qkv_bias: the encoder's size.
        class_token: put a learned token in front; `global_pool="token"` needs it.
        global_pool: "token" reads the class token after the last norm, "avg" the mean of the patches.
        fc_norm: the last norm stands behind the pooling, under this name, and not before it, as `norm`; None is True
            for "avg" and False for "token".
        pos_embed: "learned_1d" | "none" | "learned_2d" | "sincos_1d" | "sincos_2d" | "relative".
        representation_size: width of the fc + tanh before the classifier, None for a single linear layer.
        patch_norm: LayerNorm after the patch embedding (key `patch_embed.norm`).
        drop_rate: dropout before the head; pos_drop_rate: after the positions; proj_drop_rate: after projections and
            in the MLP; attn_drop_rate: of the attention weights; drop_path_rate: of the last block's branches, rising
            linearly from 0 at the first.
        gelu: "none" (exact) or "tanh" (Google's JAX code).
        norm_eps: 1e-6, with which the published weights were trained.
        weight_init: "timm", "jax" (Google's) or "jax_nlhb" (and the head's bias at -log K); see `vit_init.py`.
        distilled: a second token and head (DeiT); the model returns the mean of both, `heads(x)` each.
        dynamic_img_size: take any image that the patch divides, resampling the positions.
        heads: "split" or "linear", see `minivit.nn.Attention`.
        skip_unused_tokens: where the head reads only prefix tokens, the last block computes only theirs. Exact.
        resnet_layers: the blocks of each stage of a convolutional stem, from whose map the patches are cut (the
            hybrid); () is its root alone, and None no stem. See `resnet.py`.
        resnet_width, resnet_groups: channels of the root, and groups of the stem's norms.
        dtype: "float32" or "float64".
        seed: of the initial weights, an int or a generator.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        class_token: bool = True,
        global_pool: str = "token",
        fc_norm: bool | None = None,
        pos_embed: str = "learned_1d",
        representation_size: int | None = None,
        patch_norm: bool = False,
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        gelu: str = "none",
        norm_eps: float = 1e-6,
        weight_init: str = "timm",
        distilled: bool = False,
        dynamic_img_size: bool = False,
        heads: str = "split",
        skip_unused_tokens: bool = True,
        resnet_layers: tuple[int, ...] | None = None,
        resnet_width: int = 64,
        resnet_groups: int = 32,
        dtype: Any = "float32",
        seed: Any = 0,
    ) -> None:
        self.config = {name: value for name, value in locals().items() if name not in ("self", "__class__", "seed")}
        self.config["dtype"] = dtype_of(dtype).name
        rng, dtype = as_generator(seed), dtype_of(dtype)
        _refuse_contradictions(self.config)
        image, patch = pair(img_size), pair(patch_size)
        layers = checked_layers(resnet_layers)
        self.config |= {"img_size": plain_size(img_size), "patch_size": plain_size(patch_size), "resnet_layers": layers}
        _refuse_a_rest(self.config)
        grid = patch_grid(self.config)
        prefix = (["cls_token"] if class_token else []) + (["dist_token"] if distilled else [])
        self.num_classes = num_classes
        stem, channels = None, in_chans
        if layers is not None:
            stem, channels = make_stem(in_chans, layers, resnet_width, resnet_groups, dtype, rng)
        patch_eps = norm_eps if patch_norm else None
        self.embed = Tokens(
            image,
            partial(patch_grid, self.config),
            prefix,
            PatchEmbed(patch, channels, embed_dim, norm_eps=patch_eps, backbone=stem, dtype=dtype, seed=rng),
            make_positions(pos_embed, grid, len(prefix), embed_dim, dtype, rng),
            pos_drop_rate,
            dynamic_img_size,
            dtype,
            rng,
        )
        self.blocks = [self._block(index, grid, len(prefix), rng) for index in range(depth)]
        self.config["fc_norm"] = behind = global_pool == "avg" if fc_norm is None else bool(fc_norm)
        self.norm = None if behind else LayerNorm(embed_dim, norm_eps, dtype=dtype)
        self.pool = Pool(global_pool, len(prefix))
        self.fc_norm = LayerNorm(embed_dim, norm_eps, dtype=dtype) if behind else None
        self.pre_logits = PreLogits(embed_dim, representation_size, dtype, rng) if representation_size else None
        self.head_drop = Dropout(drop_rate)
        self.head: Layer | None = None
        if num_classes:
            kind = DistilledHead if distilled else Linear
            self.head = kind(representation_size or embed_dim, num_classes, dtype=dtype, seed=rng)
        initialise(self, weight_init, rng)

    def _block(self, index: int, grid: tuple[int, int], prefix: int, rng: Any) -> Block:
        c = self.config
        dim, dtype, last = c["embed_dim"], c["dtype"], index == c["depth"] - 1
        only_prefix = last and c["skip_unused_tokens"] and c["global_pool"] == "token"
        attention = Attention(
            dim,
            c["num_heads"],
            c["qkv_bias"],
            heads=c["heads"],
            attn_drop=c["attn_drop_rate"],
            proj_drop=c["proj_drop_rate"],
            queries=prefix if only_prefix else None,
            position_bias=grid if c["pos_embed"] == "relative" else None,
            prefix_tokens=prefix,
            dtype=dtype,
            seed=rng,
        )
        hidden = int(dim * c["mlp_ratio"])
        mlp = Mlp(dim, hidden, gelu=c["gelu"], drop=c["proj_drop_rate"], dtype=dtype, seed=rng)
        norms = [LayerNorm(dim, c["norm_eps"], dtype=dtype) for _ in range(2)]
        return Block(norms[0], attention, norms[1], mlp, c["drop_path_rate"] * index / max(1, c["depth"] - 1))

    def body(self) -> list[Layer]:
        stages = [self.embed, *self.blocks, self.norm, self.pool, self.fc_norm, self.pre_logits]
        return [stage for stage in stages if stage is not None]

    def tail(self) -> list[Layer]:
        return [self.head_drop, self.head] if self.head is not None else []

    def heads(self, x: Array) -> tuple[Array, Array]:
        """The logits of both heads of a distilled model, (B, K) each: class token's, distillation token's."""
        if not isinstance(self.head, DistilledHead):
            raise ValueError("heads(x) is for distilled models: build with distilled=True and num_classes > 0")
        (logits, distilled), _ = self.head.both(self.features(x))
        return logits, distilled

    def macs(self, shape: tuple[int, ...]) -> int:
        """Multiply-adds for images (B, C, H, W), counted as published: every token in every block."""
        c, batch, (rows, columns) = self.config, shape[0], patch_grid(self.config, shape[2:])
        tokens, dim = rows * columns + c["class_token"] + c["distilled"], c["embed_dim"]
        attention = (4 + 3 * (c["heads"] == "linear")) * tokens * dim * dim + 2 * tokens * tokens * dim
        mlp = 2 * tokens * dim * int(dim * c["mlp_ratio"])
        width = c["representation_size"] or dim
        head = dim * (c["representation_size"] or 0) + width * c["num_classes"] * (1 + c["distilled"])
        return self.embed.macs(shape) + batch * (c["depth"] * (attention + mlp) + head)


def _refuse_a_rest(config: dict[str, Any]) -> None:
    """The patch must divide the image, or the map that a stem makes of it."""
    image, patch, layers = pair(config["img_size"]), pair(config["patch_size"]), config["resnet_layers"]
    cut = image if layers is None else map_size(image, layers)
    if min(patch) > 0 and cut[0] % patch[0] == 0 and cut[1] % patch[1] == 0 and min(cut) > 0:
        return
    fits = [size for size in range(1 if layers else 2, min(cut) + 1) if cut[0] % size == 0 and cut[1] % size == 0]
    near = sorted(fits, key=lambda size: abs(size - patch[0]))[:2]
    remedy = f"choose patch {' or '.join(map(str, sorted(near)))}" if near else "choose another size"
    what = f"image {image[0]}x{image[1]}"
    if layers is not None:
        what = f"the {cut[0]}x{cut[1]} map that resnet_layers={layers} make of an {what}"
    raise ValueError(f"{what} is not divisible by patch {patch[0]}x{patch[1]}: pad it, or {remedy}")


def _refuse_contradictions(config: dict[str, Any]) -> None:
    """Arguments that make no model together are refused, with what to change."""
    pool, token, distilled = config["global_pool"], config["class_token"], config["distilled"]
    refuse(pool not in ("token", "avg"), f"global_pool={pool!r}: choose 'token' or 'avg'")
    refuse(
        not token and (pool == "token" or distilled),
        "class_token=False leaves no token to read: use global_pool='avg' and distilled=False",
    )
    refuse(distilled and pool == "avg", "distilled=True reads its two tokens: use global_pool='token'")
    refuse(
        distilled and config["representation_size"] is not None,
        "distilled=True has two plain heads: use representation_size=None",
    )
    refuse(
        config["pos_embed"] == "relative" and config["dynamic_img_size"],
        "pos_embed='relative' learns a bias for each offset of one grid: build the model with the img_size you need, "
        "or use absolute positions with dynamic_img_size=True",
    )
    for name in ("drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"):
        refuse(not 0 <= config[name] < 1, f"{name}={config[name]} must lie in [0, 1)")
    refuse(config["gelu"] not in ("none", "tanh"), f"gelu={config['gelu']!r}: choose 'none' or 'tanh'")
    for name in ("norm_eps", "mlp_ratio"):
        refuse(not config[name] > 0, f"{name}={config[name]} must be positive")
    size = config["representation_size"]
    refuse(size is not None and size < 1, f"representation_size={size} must be at least 1, or None for a plain head")
    for name in ("embed_dim", "depth", "in_chans"):
        refuse(config[name] < 1, f"{name}={config[name]} must be at least 1")
    refuse(config["num_classes"] < 0, f"num_classes={config['num_classes']} must be at least 0 (0: pooled features)")
