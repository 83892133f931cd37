"""The Swin Transformer: attention within small windows, shifted from block to block, on a map that each stage halves.

Versions 1 and 2 differ in the attention and in the position of the norms. Notation: B batch, C image
channels, H x W a map, D channels, Mh x Mw the window, K classes. Sources: Liu et al. 2021, "Swin Transformer"; Liu et
al. 2022, "Swin Transformer V2"; names and shapes are timm's.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from minivit.models.embedding import MapTokens
from minivit.models.heads import Classifier, Pool
from minivit.models.model import Model
from minivit.models.options import (
    Options,
    built_from,
    check_partial_patches,
    check_rates,
    check_whole,
    patch_grid,
    plain_size,
    plain_window,
    stage_windows,
    window_of_each,
)
from minivit.models.positions import AbsolutePositions
from minivit.nn import (
    Block,
    Chain,
    CosineWindowAttention,
    LayerNorm,
    Mlp,
    PatchEmbed,
    PatchMerging,
    ShiftedWindows,
    WindowAttention,
)
from minivit.nn.init import dtype_of
from minivit.protocol import Array, Back, Rng, compose
from minivit.random import as_generator
from minivit.sizes import Size, pair


@dataclass
class SwinOptions(Options):
    """The arguments of `Swin`, documented there; combinations that make no model are refused."""

    img_size: int | Size = 224
    patch_size: int | Size = 4
    in_chans: int = 3
    num_classes: int = 1000
    global_pool: str = "avg"
    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window_size: int | Size | tuple[int | Size, ...] = 7
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    ape: bool = False
    patch_norm: bool = True
    drop_rate: float = 0.0
    pos_drop_rate: float = 0.0
    proj_drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.1
    norm_eps: float = 1e-5
    gelu: str = "none"
    mask_value: float = -100.0
    mask_padding: bool = False
    covered: str = "shrink"
    pad_first: bool = True
    partial_patches: str = "pad"
    allow_odd_depths: bool = False
    dtype: Any = "float32"
    seed: Any = 0

    def __post_init__(self) -> None:
        self.img_size, self.patch_size = plain_size(self.img_size), plain_size(self.patch_size)
        for name in ("img_size", "patch_size"):
            if min(pair(getattr(self, name))) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        check_partial_patches(self, "pad", "drop")
        check_rates(self)
        check_whole(self, embed_dim=1, in_chans=1, num_classes=0)
        if self.global_pool != "avg":
            raise ValueError(f"global_pool={self.global_pool!r}: Swin has no class token, choose 'avg'")
        if not isinstance(self.mask_value, int | float) or not self.mask_value <= -100:
            raise ValueError(f"mask_value={self.mask_value} must be -100 or less, such as float('-inf')")
        if int(self.embed_dim * self.mlp_ratio) < 1:
            raise ValueError(
                f"mlp_ratio={self.mlp_ratio} leaves the MLP of {self.embed_dim} channels without hidden units"
            )
        self._check_stages()

    def _check_stages(self) -> None:
        for name in ("depths", "num_heads"):
            value = getattr(self, name)
            if not isinstance(value, tuple | list):
                raise ValueError(f"{name}={value!r} must have one entry for each stage")
            setattr(self, name, tuple(int(number) for number in value))
        depths, heads = self.depths, self.num_heads
        if not depths or len(depths) != len(heads) or min(depths) < 1:
            raise ValueError(f"depths={depths} and num_heads={heads} need one positive entry for each stage")
        odd = [depth for depth in depths if depth % 2]
        if odd and not self.allow_odd_depths:
            warnings.warn(
                f"depths={depths}: {odd[:1]} is odd, but blocks with plain and with shifted windows come in pairs; "
                "choose even depths, or set allow_odd_depths=True",
                stacklevel=5,
            )
        for number, count in enumerate(heads):
            dim = self.embed_dim * 2**number
            if count < 1 or dim % count:
                raise ValueError(
                    f"stage {number} has embed_dim={self.embed_dim} * {2**number} = {dim} channels, which is not "
                    f"divisible by num_heads={count}: choose a number of heads that divides it"
                )
        self.window_size = plain_window(self.window_size, len(depths))
        if min(min(window) for window in window_of_each(self.window_size, len(depths))) < 1:
            raise ValueError(f"window_size={self.window_size} must be at least 1")


@dataclass
class SwinV2Options(SwinOptions):
    """The arguments of `SwinV2`: those of `Swin` and two more."""

    img_size: int | Size = 256
    window_size: int | Size | tuple[int | Size, ...] = 8
    pretrained_window_sizes: int | tuple[int | Size, ...] | None = None
    cpb_hidden: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        windows: Any = self.pretrained_window_sizes or 0
        windows = (windows,) * len(self.depths) if isinstance(windows, int) else windows
        if not isinstance(windows, tuple | list) or len(windows) != len(self.depths):
            raise ValueError(f"pretrained_window_sizes={windows} must have one entry for each of depths={self.depths}")
        self.pretrained_window_sizes = tuple(plain_size(window) for window in windows)
        check_whole(self, cpb_hidden=1)


class Stage(Chain):
    """Blocks at one size of the map, after the patch merging (`downsample`; the first stage has none)."""

    def __init__(self, downsample: PatchMerging | None, blocks: list[Block]) -> None:
        self.downsample = downsample
        self.blocks = blocks


class Swin(Model):
    """Images (B, C, H, W) -> logits (B, K).

    Images may have any size: they are zero-padded to complete patches (or cropped, see `partial_patches`), maps to
    complete windows, and to even sides before merging. `img_size` only determines which windows cover the map and are
    reduced to it, as in the last stage of a small image.

    Args (timm's names where timm has them):
        img_size: int or (H, W).
        patch_size: int or (Ph, Pw); with 4, the stages' maps have 1/4, 1/8, 1/16 and 1/32 of the image's sides.
        in_chans: C.
        num_classes: K; 0 gives the pooled features.
        global_pool: "avg", the mean over the map.
        embed_dim: D of the first stage; each further stage has twice as many.
        depths: blocks in each stage. They come in pairs, one with plain and one with shifted windows, so odd depths
            warn, unless `allow_odd_depths`.
        num_heads: heads in each stage.
        window_size: int or (Mh, Mw), or a sequence of one such size for each stage. Two numbers are height and width;
            with two stages, ((4, 4), (2, 2)) gives each its own.
        mlp_ratio, qkv_bias: the blocks' size.
        ape: add a learned vector to each position of the first map (`absolute_pos_embed`).
        patch_norm: LayerNorm after the patch embedding.
        drop_rate: dropout before the head; pos_drop_rate: after the embedding; proj_drop_rate: after projections and
            in the MLP; attn_drop_rate: of the attention weights; drop_path_rate: of the last block's branches, rising
            linearly from 0 at the first, over all stages.
        norm_eps: 1e-5, with which the published weights were trained.
        gelu: "none" (exact) or "tanh".
        mask_value: added to masked scores: -100 as published, or -inf.
        mask_padding: mask padded pixels; the published models do not.
        covered: the rule for a window that covers the map, "shrink", "shrink_both", "stay" or "shift"; see
            `nn.ShiftedWindows`. Projects differ, with an effect where windows do not divide the map.
        pad_first: pad maps before they are rolled; timm pads after.
        partial_patches: "pad" images with zeros to complete patches, or "drop" the pixels at the right and
            bottom that fill none, as timm, torchvision and Microsoft do.
        allow_odd_depths: see `depths`.
        dtype: "float32" or "float64".
        seed: of the initial weights, an int or a generator.
    """

    options = SwinOptions
    post_norm = False  # the norms of a block precede its branches

    @built_from(SwinOptions)
    def __init__(self, o: SwinOptions) -> None:
        self._build(o)

    def _build(self, o: SwinOptions) -> None:
        self.config, self.num_classes = o.config(), o.num_classes
        rng, dtype = as_generator(o.seed), dtype_of(o.dtype)
        dim, windows = o.embed_dim, stage_windows(self.config)
        patch_embed = PatchEmbed(
            pair(o.patch_size),
            o.in_chans,
            dim,
            norm_eps=o.norm_eps if o.patch_norm else None,
            dtype=dtype,
            seed=rng,
        )
        positions = AbsolutePositions(patch_grid(self.config), dim, dtype, rng) if o.ape else None
        self.embed = MapTokens(partial(patch_grid, self.config), patch_embed, positions, o.pos_drop_rate)
        self.layers: list[Stage] = []
        rates = iter(np.linspace(0, o.drop_path_rate, sum(o.depths)).tolist())
        for number, depth in enumerate(o.depths):
            merging = None
            if number:
                merging = PatchMerging(dim, post_norm=self.post_norm, norm_eps=o.norm_eps, dtype=dtype, seed=rng)
                dim = 2 * dim
            window = windows[number]
            blocks = [self._block(o, number, index, window, dim, next(rates), rng) for index in range(depth)]
            self.layers.append(Stage(merging, blocks))
        self.norm = LayerNorm(dim, o.norm_eps, dtype=dtype)
        self.pool = Pool(o.global_pool, 0)
        self.set_head(o, rng)

    def set_head(self, o: SwinOptions, rng: Rng) -> None:
        dim = self.norm.weight.size
        self.head = Classifier(dim, o.num_classes, o.drop_rate, o.dtype, rng) if o.num_classes else None

    def _block(
        self, o: SwinOptions, stage: int, index: int, window: Size, dim: int, drop_path: float, rng: Rng
    ) -> Block:
        shift = (window[0] // 2, window[1] // 2) if index % 2 else (0, 0)
        attention = self._attention(o, stage, dim, window, rng)
        windows = ShiftedWindows(
            attention, window, shift, mask_padding=o.mask_padding, covered=o.covered, pad_first=o.pad_first
        )
        hidden = int(dim * o.mlp_ratio)
        mlp = Mlp(dim, hidden, gelu=o.gelu, drop=o.proj_drop_rate, dtype=o.dtype, seed=rng)
        # a norm after its branch starts at 0, so that every block starts as the identity (Swin v2's code)
        norms = [LayerNorm(dim, o.norm_eps, zero=self.post_norm, dtype=o.dtype) for _ in range(2)]
        return Block(norms[0], windows, norms[1], mlp, drop_path, post_norm=self.post_norm)

    def _attention(self, o: SwinOptions, stage: int, dim: int, window: Size, rng: Rng) -> WindowAttention:
        return WindowAttention(dim, o.num_heads[stage], window, **_attention_options(o), seed=rng)

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Back]:
        return compose(
            x,  # (B, C, H, W)
            self.embed,  # (B, H/4, W/4, D): patches embedded, as a map
            *self.layers,  # stage by stage (B, H/8, W/8, 2D), (B, H/16, W/16, 4D), (B, H/32, W/32, 8D)
            self.norm,
            self.pool,  # (B, 8D): the mean over the map
            self.head,  # (B, K)
            rng=rng,
        )


def _attention_options(o: SwinOptions) -> dict[str, Any]:
    return {
        "qkv_bias": o.qkv_bias,
        "attn_drop": o.attn_drop_rate,
        "proj_drop": o.proj_drop_rate,
        "mask_value": o.mask_value,
        "dtype": o.dtype,
    }


class SwinV2(Swin):
    """Swin Transformer v2: images (B, C, H, W) -> logits (B, K).

    Scores are cosines with a learned factor. Biases come from a small MLP of the logarithm of the offset, so that a
    model can change to larger windows. The norms follow the branches and start at 0, so every block starts as the
    identity.

    Args beyond those of `Swin`:
        pretrained_window_sizes: for each stage the window that its weights were trained with, an int or a pair; 0 is
            the stage's window. A single int is for every stage, and None is 0.
        cpb_hidden: units of the bias MLP, 512 as published.
    """

    options = SwinV2Options
    post_norm = True

    @built_from(SwinV2Options)
    def __init__(self, o: SwinV2Options) -> None:
        self._build(o)

    def _attention(self, o: SwinOptions, stage: int, dim: int, window: Size, rng: Rng) -> WindowAttention:
        assert isinstance(o, SwinV2Options) and isinstance(o.pretrained_window_sizes, tuple)
        return CosineWindowAttention(
            dim,
            o.num_heads[stage],
            window,
            pretrained_window=pair(o.pretrained_window_sizes[stage]),
            cpb_hidden=o.cpb_hidden,
            **_attention_options(o),
            seed=rng,
        )
