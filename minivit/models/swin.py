"""The Swin Transformer: attention within small windows, shifted from block to block, on a map that halves by stages.

Version 1 and version 2, which differ in how a window attends and where the norms stand. Alphabet: B batch, C image
channels, H x W a map, D channels, Mh x Mw the window, K classes. Sources: Liu et al. 2021, "Swin Transformer"; Liu et
al. 2022, "Swin Transformer V2"; names and shapes are timm's. Next: `configs.py`, the published sizes.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from minivit.backend import as_generator
from minivit.functional.permutations import pair
from minivit.models.heads import Classifier, Pool
from minivit.models.model import Model, plain_size
from minivit.models.positions import Learned1d
from minivit.models.tokens import MapTokens, patch_grid
from minivit.nn import (
    Block,
    Chain,
    CosineWindowAttention,
    Layer,
    LayerNorm,
    Mlp,
    PatchEmbed,
    PatchMerging,
    ShiftedWindows,
    WindowAttention,
)
from minivit.nn.init import dtype_of
from minivit.protocol import refuse


class Stage(Chain):
    """Blocks at one size of the map, after the merging that made it (`downsample`; the first stage has none)."""

    def __init__(self, downsample: PatchMerging | None, blocks: list[Block]) -> None:
        self.downsample = downsample
        self.blocks = blocks

    def steps(self) -> list[Layer]:
        return [*([self.downsample] if self.downsample else []), *self.blocks]

    def macs(self, shape: tuple[int, ...]) -> int:
        """Multiply-adds for a map (B, H, W, D), before the merging."""
        merging = self.downsample.macs(shape) if self.downsample else 0
        inside = _merged(shape) if self.downsample else shape
        return merging + sum(block.macs(inside) for block in self.blocks)


def _merged(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a map (B, H, W, D) after merging."""
    batch, height, width, dim = shape
    return batch, -(-height // 2), -(-width // 2), 2 * dim


class Swin(Model):
    """Images (B, C, H, W) -> logits (B, K).

    Any image size passes, whatever the model was built for: images are padded to whole patches, maps to whole windows
    and to even sides where they merge. `img_size` decides only where a window covers the map and so shrinks, as it
    does in the last stage of a small image.

    Args (timm's names where timm has them):
        img_size: int or (H, W).
        patch_size: int or (Ph, Pw); 4 divides an image's sides by 4, the stages by 8, 16 and 32.
        in_chans: C.
        num_classes: K; 0 gives the pooled features.
        global_pool: "avg", the mean over the map.
        embed_dim: D of the first stage; each further stage has twice as many.
        depths: blocks in each stage. They work in pairs, one with plain and one with shifted windows, so odd depths
            are refused unless `allow_odd_depths`.
        num_heads: heads in each stage.
        window_size: int or (Mh, Mw).
        mlp_ratio, qkv_bias: the blocks' size.
        ape: add a learned vector to each place of the first map (`absolute_pos_embed`).
        patch_norm: LayerNorm after the patch embedding.
        drop_rate: dropout before the head; pos_drop_rate: after the embedding; proj_drop_rate: after projections and
            in the MLP; attn_drop_rate: of the attention weights; drop_path_rate: of the last block's branches, rising
            linearly from 0 at the first, over all stages.
        norm_eps: 1e-5, with which the published weights were trained.
        gelu: "none" (exact) or "tanh".
        mask_value: -100 as published, or -inf: what forbidden scores get added.
        mask_padding: keep padded places from being looked at; the published models do not.
        covered: what a window does that covers the map, "shrink", "shrink_both", "stay" or "shift"; see
            `nn.ShiftedWindows`. Projects differ, and it shows on images whose maps windows do not divide.
        pad_first: pad maps before they are rolled; timm pads after.
        allow_odd_depths: see `depths`.
        dtype: "float32" or "float64".
        seed: of the initial weights, an int or a generator.
    """

    post_norm = False

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 4,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dim: int = 96,
        depths: tuple[int, ...] = (2, 2, 6, 2),
        num_heads: tuple[int, ...] = (3, 6, 12, 24),
        window_size: int | tuple[int, int] = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        ape: bool = False,
        patch_norm: bool = True,
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        norm_eps: float = 1e-5,
        gelu: str = "none",
        mask_value: float = -100.0,
        mask_padding: bool = False,
        covered: str = "shrink",
        pad_first: bool = True,
        allow_odd_depths: bool = False,
        dtype: Any = "float32",
        seed: Any = 0,
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__", "seed")}
        self._build(arguments, seed)

    def _build(self, arguments: dict[str, Any], seed: Any) -> None:
        dtype, rng = dtype_of(arguments["dtype"]), as_generator(seed)
        self.config = c = {**arguments, "dtype": dtype.name}
        for name in ("img_size", "patch_size", "window_size"):
            c[name] = plain_size(c[name])
        for name in ("depths", "num_heads"):
            refuse(not isinstance(c[name], tuple | list), f"{name}={c[name]!r} must have one entry for each stage")
            c[name] = tuple(int(number) for number in c[name])
        self._check(c)
        dim, patch = c["embed_dim"], pair(c["patch_size"])
        self.num_classes = c["num_classes"]
        norm_eps = c["norm_eps"] if c["patch_norm"] else None
        patch_embed = PatchEmbed(patch, c["in_chans"], dim, norm_eps=norm_eps, dtype=dtype, seed=rng)
        self.embed = MapTokens(partial(patch_grid, c), patch_embed, None, c["pos_drop_rate"])
        grid = patch_grid(c)
        if c["ape"]:
            self.embed.positions = Learned1d(grid, 0, dim, dtype, rng, "absolute_pos_embed")
        self.layers: list[Layer] = []
        rates = iter(np.linspace(0, c["drop_path_rate"], sum(c["depths"])).tolist())
        for number, depth in enumerate(c["depths"]):
            merging = PatchMerging(dim, **self._norms(), dtype=dtype, seed=rng) if number else None
            if merging:
                dim, grid = 2 * dim, (-(-grid[0] // 2), -(-grid[1] // 2))
            blocks = [self._block(number, place, grid, dim, next(rates), rng) for place in range(depth)]
            self.layers.append(Stage(merging, blocks))
        self.norm = LayerNorm(dim, c["norm_eps"], dtype=dtype)
        self.pool = Pool(c["global_pool"], 0)
        self.head = Classifier(dim, c["num_classes"], c["drop_rate"], dtype, rng) if c["num_classes"] else None

    def _check(self, c: dict[str, Any]) -> None:
        """Arguments that make no model together are refused, with what to change."""
        refuse(c["global_pool"] != "avg", f"global_pool={c['global_pool']!r}: Swin has no class token, choose 'avg'")
        for name in ("img_size", "patch_size", "window_size"):
            refuse(min(pair(c[name])) < 1, f"{name}={c[name]} must be at least 1")
        depths, heads = c["depths"], c["num_heads"]
        refuse(
            not depths or len(depths) != len(heads) or min(depths) < 1,
            f"depths={depths} and num_heads={heads} need one positive entry for each stage",
        )
        odd = [depth for depth in depths if depth % 2]
        refuse(
            bool(odd) and not c["allow_odd_depths"],
            f"depths={depths}: {odd[:1]} is odd, but blocks with plain and with shifted windows come in pairs; choose "
            "even depths, or say allow_odd_depths=True",
        )
        for number, count in enumerate(heads):
            dim = c["embed_dim"] * 2**number
            refuse(
                count < 1 or dim % count != 0,
                f"stage {number} has embed_dim={c['embed_dim']} * {2**number} = {dim} channels, which is not divisible "
                f"by num_heads={count}: choose a number of heads that divides it",
            )
        for name in ("drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"):
            refuse(not 0 <= c[name] < 1, f"{name}={c[name]} must lie in [0, 1)")
        refuse(c["gelu"] not in ("none", "tanh"), f"gelu={c['gelu']!r}: choose 'none' or 'tanh'")
        for name in ("norm_eps", "mlp_ratio"):
            refuse(not c[name] > 0, f"{name}={c[name]} must be positive")
        bad = not isinstance(c["mask_value"], int | float) or not c["mask_value"] <= -100
        refuse(bad, f"mask_value={c['mask_value']} must be -100 or less, such as float('-inf')")
        for name, least in (("embed_dim", 1), ("in_chans", 1), ("num_classes", 0)):
            refuse(
                not isinstance(c[name], int) or c[name] < least,
                f"{name}={c[name]} must be a whole number of at least {least}",
            )
        hidden = int(c["embed_dim"] * c["mlp_ratio"])
        refuse(
            hidden < 1, f"mlp_ratio={c['mlp_ratio']} leaves the MLP of {c['embed_dim']} channels without hidden units"
        )

    def _block(self, stage: int, place: int, grid: tuple[int, int], dim: int, drop_path: float, rng: Any) -> Block:
        c = self.config
        wh, ww = pair(c["window_size"])
        if c["covered"] in ("shrink", "shrink_both"):
            wh, ww = min(wh, grid[0]), min(ww, grid[1])
        shift = (wh // 2, ww // 2) if place % 2 else (0, 0)
        attention = self._attention(stage, dim, (wh, ww), rng)
        options = {name: c[name] for name in ("mask_padding", "covered", "pad_first")}
        windows = ShiftedWindows(attention, (wh, ww), shift, **options)
        hidden = int(dim * c["mlp_ratio"])
        mlp = Mlp(dim, hidden, gelu=c["gelu"], drop=c["proj_drop_rate"], dtype=c["dtype"], seed=rng)
        # a norm behind its branch starts at 0, so that every block starts as the identity (Swin v2's code)
        norms = [LayerNorm(dim, c["norm_eps"], zero=self.post_norm, dtype=c["dtype"]) for _ in range(2)]
        return Block(norms[0], windows, norms[1], mlp, drop_path, post_norm=self.post_norm)

    def _attention(self, stage: int, dim: int, window: tuple[int, int], rng: Any) -> WindowAttention:
        heads = self.config["num_heads"][stage]
        return WindowAttention(dim, heads, window, **self._attention_options(), seed=rng)

    def _attention_options(self) -> dict[str, Any]:
        c = self.config
        return {
            "qkv_bias": c["qkv_bias"],
            "attn_drop": c["attn_drop_rate"],
            "proj_drop": c["proj_drop_rate"],
            "mask_value": c["mask_value"],
            "dtype": c["dtype"],
        }

    def _norms(self) -> dict[str, Any]:
        return {"post_norm": self.post_norm, "norm_eps": self.config["norm_eps"]}

    def body(self) -> list[Layer]:
        return [self.embed, *self.layers, self.norm, self.pool]

    def tail(self) -> list[Layer]:
        return [self.head] if self.head is not None else []

    def macs(self, shape: tuple[int, ...]) -> int:
        """Multiply-adds for images (B, C, H, W), counted as published: without v2's small MLP of the offsets."""
        total = self.embed.macs(shape)
        inside: tuple[int, ...] = (shape[0], *patch_grid(self.config, shape[2:]), self.config["embed_dim"])
        for number, layer in enumerate(self.layers):
            total += layer.macs(inside)
            inside = _merged(inside) if number else inside
        return total + (self.head.macs((shape[0], inside[-1])) if self.head else 0)


class SwinV2(Swin):
    """Swin Transformer v2: images (B, C, H, W) -> logits (B, K).

    Scores are cosines with a learned factor, biases come from a small MLP of the logarithm of the offset, so that a
    model can move to larger windows, and the norms stand behind the branches and start at 0: every block starts as the
    identity.

    Args beyond those of `Swin`:
        pretrained_window_sizes: for each stage the window its weights were trained with, an int or a pair; 0 is the
            stage's own window.
        cpb_hidden: units of the bias MLP, 512 as published.
    """

    post_norm = True

    def __init__(
        self,
        img_size: int | tuple[int, int] = 256,
        patch_size: int | tuple[int, int] = 4,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dim: int = 96,
        depths: tuple[int, ...] = (2, 2, 6, 2),
        num_heads: tuple[int, ...] = (3, 6, 12, 24),
        window_size: int | tuple[int, int] = 8,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        ape: bool = False,
        patch_norm: bool = True,
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        pretrained_window_sizes: tuple[int | tuple[int, int], ...] | None = None,
        cpb_hidden: int = 512,
        norm_eps: float = 1e-5,
        gelu: str = "none",
        mask_value: float = -100.0,
        mask_padding: bool = False,
        covered: str = "shrink",
        pad_first: bool = True,
        allow_odd_depths: bool = False,
        dtype: Any = "float32",
        seed: Any = 0,
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__", "seed")}
        self._build(arguments, seed)

    def _check(self, c: dict[str, Any]) -> None:
        super()._check(c)
        windows, depths = c["pretrained_window_sizes"], c["depths"]
        windows = (0,) * len(depths) if windows is None else windows
        refuse(
            not isinstance(windows, tuple | list) or len(windows) != len(depths),
            f"pretrained_window_sizes={windows} must have one entry for each of depths={depths}",
        )
        c["pretrained_window_sizes"] = tuple(plain_size(window) for window in windows)
        refuse(c["cpb_hidden"] < 1, f"cpb_hidden={c['cpb_hidden']} must be at least 1")

    def _attention(self, stage: int, dim: int, window: tuple[int, int], rng: Any) -> WindowAttention:
        c = self.config
        return CosineWindowAttention(
            dim,
            c["num_heads"][stage],
            window,
            pretrained_window=pair(c["pretrained_window_sizes"][stage]),
            cpb_hidden=c["cpb_hidden"],
            **self._attention_options(),
            seed=rng,
        )
