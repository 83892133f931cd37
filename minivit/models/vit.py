"""The Vision Transformer: an image is split into patches, which a transformer encoder reads as tokens.

Notation: B batch, C image channels, N patches, T = prefix tokens + N, D channels, K classes. Source: Dosovitskiy et al.
2021, "An Image is Worth 16x16 Words"; names and shapes are timm's.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

from minivit.models.embedding import Tokens
from minivit.models.heads import DistilledHead, Pool, PreLogits
from minivit.models.model import Model
from minivit.models.options import built_from, patch_grid, prefix_tokens, tokens_read
from minivit.models.positions import make_positions
from minivit.models.resnet import make_stem
from minivit.models.vit_blocks import NORMS, make_attention_pool, make_block, make_norm
from minivit.models.vit_init import initialize
from minivit.models.vit_options import ViTOptions
from minivit.nn import Attention, Block, Dropout, Layer, Linear, PatchEmbed, Recompute
from minivit.nn.init import dtype_of
from minivit.protocol import Array, Back, Rng, compose
from minivit.random import as_generator
from minivit.sizes import pair


class ViT(Model):
    """Images (B, C, H, W) -> logits (B, K).

    Args (timm's names where timm has them):
        img_size: int or (H, W), which the patch must divide.
        patch_size: int or (Ph, Pw).
        in_chans: C.
        num_classes: K; 0 gives the pooled features (B, D).
        embed_dim, depth, num_heads, mlp_ratio: the encoder's size.
        qkv_bias: of the projection to q, k and v: True, False, or "qv" for a bias of q and of v alone (BEiT).
        class_token: prepend a learned token; `global_pool="token"` needs it.
        global_pool: "token" reads the class token after the last norm, "avg" the mean of the patches, "map" pools
            them by attention with a learned query (SigLIP).
        fc_norm: the last norm follows the pooling, under this name, instead of preceding it as `norm`; None is True
            for "avg" and False for "token".
        pos_embed: "learned_1d" | "none" | "learned_2d" | "sincos_1d" | "sincos_2d" | "relative"
            (BEiT) | "rotary" (DINOv3).
        representation_size: width of the fc + tanh before the classifier, None for a single linear layer.
        patch_norm: LayerNorm after the patch embedding (key `patch_embed.norm`).
        drop_rate: dropout before the head; pos_drop_rate: after the positions; proj_drop_rate: after projections and
            in the MLP; attn_drop_rate: of the attention weights; drop_path_rate: of the last block's branches, rising
            linearly from 0 at the first.
        gelu: "none" (exact), "tanh" (Google's JAX code) or "quick", x sigmoid(1.702 x) (OpenAI's CLIP).
        norm_eps: 1e-6, with which the published weights were trained.
        weight_init: "timm", "jax" (Google's) or "jax_nlhb" (also the head's bias at -log K); see `vit_init.py`.
        distilled: a second token and head (DeiT); the model returns the mean of both, `heads(x)` each. Its features
            are the mean of both tokens.
        dynamic_img_size: accept any image that the patch divides, resampling the positions.
        partial_patches: the rule for pixels at the right and bottom that fill no complete patch: "refuse" such images,
            "pad" them with zeros, or "drop" those pixels, as the convolutions of other projects do.
        skip_unused_tokens: if the head reads only prefix tokens, the last block computes only those. Exact.
        resnet_layers: the blocks of each stage of a convolutional stem, whose map is split into patches (the
            hybrid); () is only its root, and None no stem. See `resnet.py`.
        resnet_width, resnet_groups: channels of the root, and groups of the stem's norms.
        resnet_eps: the epsilons of the stem: "timm" adds 1e-8 to a filter's variance and 1e-5 in the norms, "google"
            1e-5 to its standard deviation and 1e-6 in the norms, as in the training of Google's hybrids.
        dtype: "float32" or "float64".
        seed: of the initial weights, an int or a generator.

    Options that came after the first ViT, explained in docs/families.md.

    Args beyond those of the first ViT:
        reg_tokens: learned register tokens after the class token, which no head reads (DINOv2).
        no_embed_class: only patches have positions (DeiT III).
        pre_norm: a norm before the blocks, and no bias of the patches (CLIP).
        final_norm: the last norm; without it the blocks' output is read as it is.
        pool_include_prefix: "avg" and "map" read the prefix tokens too.
        norm_layer: "layernorm" or "rmsnorm", for all norms.
        block_fn: "block"; "parallel_things", two attentions side by side, then two MLPs; "parallel_scaling", attention
            and MLP side by side; "diff_parallel_scaling", the same with differential attention.
        post_norm: the norms of a block follow its branches (timm's ResPostBlock) and start at 0, so that a new
            block is the identity.
        init_values: LayerScale at the end of each branch, and the value it starts at; None is none (CaiT).
        attn_layer: "" or "diff", differential attention.
        qk_norm: a norm of each head's queries and keys.
        scale_attn_norm, scale_mlp_norm: a norm before the last projection of attention and of the MLP (BEiT-3).
        proj_bias: whether attention's output projection and the MLP have biases.
        mlp_layer: "mlp", or gated by SiLU: "swiglu" (AIMv2) and "swiglu_packed", with gate and value in one matrix
            (DINOv2).
        rotary_periods: of rotary positions, "exact" or rounded to "bfloat16", as in the training of DINOv3.
    """

    options = ViTOptions

    @built_from(ViTOptions)
    def __init__(self, o: ViTOptions) -> None:
        self.config, self.num_classes = o.config(), o.num_classes
        rng, dtype, prefix = as_generator(o.seed), dtype_of(o.dtype), prefix_tokens(self.config)
        stem, channels = None, o.in_chans
        if o.resnet_layers is not None:
            sizes = (o.resnet_layers, o.resnet_width, o.resnet_groups)
            stem, channels = make_stem(o.in_chans, *sizes, o.resnet_eps, dtype, rng)
        patches = PatchEmbed(
            pair(o.patch_size),
            channels,
            o.embed_dim,
            bias=not o.pre_norm,
            norm_eps=o.norm_eps if o.patch_norm else None,
            norm_layer=NORMS[o.norm_layer],
            backbone=stem,
            dtype=dtype,
            seed=rng,
        )
        grid = patch_grid(self.config)
        placed = not o.no_embed_class
        positions = make_positions(o.pos_embed, grid, prefix, o.embed_dim, dtype, rng, place_prefix=placed)
        self.embed = Tokens(
            image=pair(o.img_size),
            grid=partial(patch_grid, self.config),
            class_token=o.class_token,
            distilled=o.distilled,
            registers=o.reg_tokens,
            patch_embed=patches,
            positions=positions,
            drop=o.pos_drop_rate,
            dynamic=o.dynamic_img_size,
            one_ratio=o.pos_embed == "rotary",
            partial=o.partial_patches != "refuse",
            dtype=dtype,
            rng=rng,
        )
        self.norm_pre = make_norm(o, o.embed_dim) if o.pre_norm else None
        self.blocks = [make_block(o, index, rng) for index in range(o.depth)]
        self.norm = make_norm(o, o.embed_dim) if o.final_norm and not o.fc_norm else None
        read = tokens_read(self.config)
        self.pool = Pool(o.global_pool, read or (0 if o.pool_include_prefix else prefix))
        self.attn_pool = make_attention_pool(o, rng) if o.global_pool == "map" else None
        self.average: Layer | None = None
        self.fc_norm = make_norm(o, o.embed_dim) if o.fc_norm else None
        self.pre_logits = PreLogits(o.embed_dim, o.representation_size, dtype, rng) if o.representation_size else None
        self.head_drop: Layer | None = None
        self.head: Layer | None = None
        self.set_head(o, rng)
        initialize(self.parameters(), o.weight_init, rng)

    def set_head(self, o: ViTOptions, rng: Rng) -> None:
        self.average = Pool("avg", 0) if o.distilled and not o.num_classes else None
        self.head_drop = Dropout(o.drop_rate) if o.num_classes else None
        self.head = None
        if o.num_classes:
            kind = DistilledHead if o.distilled else Linear
            self.head = kind(o.representation_size or o.embed_dim, o.num_classes, dtype=o.dtype, seed=rng)
        head = {name: param for name, param in self.parameters().items() if name.startswith("head")}
        initialize(head, o.weight_init, rng)

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Back]:
        return compose(
            x,  # (B, C, H, W)
            self.embed,  # (B, T, D): patches embedded, class token prepended, positions added
            self.norm_pre,  # (B, T, D), in CLIP
            *self.blocks,  # (B, T, D): attention between tokens, then an MLP of each token
            self.norm,  # (B, T, D)
            self.pool,  # (B, D): the class token, or the mean of the patches; (B, 2, D) for a distilled model's heads
            self.attn_pool,  # (B, D): in SigLIP, whose `pool` leaves all patches (B, N, D)
            self.average,  # (B, D): without heads, the mean of a distilled model's two tokens
            self.fc_norm,  # (B, D), where the norm follows the pooling
            self.pre_logits,  # (B, representation_size), in the pretraining head
            self.head_drop,
            self.head,  # (B, K)
            rng=rng,
        )

    def features(self, x: Array, batch_size: int | None = None) -> Array:
        """The pooled features (B, D), computed like `predict`; of a distilled model the mean of its two tokens."""
        pooled = super().features(x, batch_size)
        return pooled.mean(axis=1) if pooled.ndim == 3 else pooled

    def before_pooling(self) -> list[Layer]:
        last = self.blocks[-1:]
        return [_with_every_token(layer) if layer in last else layer for layer in super().before_pooling()]

    def heads(self, x: Array) -> tuple[Array, Array]:
        """The logits of both heads of a distilled model, (B, K) each: class token's, distillation token's."""
        if not isinstance(self.head, DistilledHead):
            raise ValueError("heads(x) is for distilled models: build with distilled=True and num_classes > 0")
        (logits, distilled), _ = self.head.both(super().features(x))
        return logits, distilled


def _with_every_token(block: Layer) -> Layer:
    """The block, on the same parameters, with a query for every token, also for those that the head does not read."""
    complete: Any = copy.copy(block)
    if isinstance(block, Recompute):
        complete.layer = _with_every_token(block.layer)
    elif isinstance(block, Block):
        complete.attn = _with_every_token(block.attn)
    elif isinstance(block, Attention):
        complete.queries = None
    return complete
