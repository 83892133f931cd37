"""The attention weights of every head of every block, as maps over the image, and attention rollout.

The layers keep no weights. They are computed here from each block's input, by the functions that the layers use, with
the identity as v: attention is weights @ v, so its output is then the weights themselves.

Notation: B images, L blocks, H heads, N tokens, n queries (all tokens, or in a last block those that the head reads),
p prefix tokens (class token), gh x gw the grid of patches, nW windows, d = D/H.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from math import inf
from typing import Any, NamedTuple

from minivit import functional as F
from minivit.device import array_module
from minivit.models import Model, ViT
from minivit.models.options import patch_grid, prefix_tokens as count, tokens_read
from minivit.nn import (
    Attention,
    Block,
    ComposedAttention,
    CosineWindowAttention,
    Heads,
    Layer,
    Recompute,
    ShiftedWindows,
)
from minivit.protocol import Array, Back, Rng
from minivit.sizes import Size


class BlockAttention(NamedTuple):
    """One block's attention.

    Attributes:
        name: the block's, such as "blocks.0" or "layers.1.blocks.0".
        weights: (B, H, n, N), query and key; in Swin (B, nW, H, N, N), with N pixels of a window, and the windows of
            the shifted map in reading order. Rows sum to 1.
        values: v, (B, H, N, d); in Swin (B, nW, H, N, d). The heads' outputs are weights @ values.
    """

    name: str
    weights: Array
    values: Array

    def __repr__(self) -> str:
        return f"BlockAttention({self.name!r}, weights {self.weights.shape}, values {self.values.shape})"


def attention_weights(model: Model, images: Array) -> list[BlockAttention]:
    """The attention of every block, for images (B, C, H, W) of the model's dtype.

    It takes B H n N numbers for each block: 22 MB for an image in ViT-B/16 at 224 pixels.

    Raises:
        ValueError: if the images do not fit the model, or the model has no blocks.
    """
    found = []
    for name, layer, x in _stages_of(model, images):
        tokens, mask, window = _windows(layer, x) if isinstance(layer, ShiftedWindows) else (x, None, None)
        attention = layer.attention if isinstance(layer, ShiftedWindows) else layer
        found.append(BlockAttention(name, *_weights(attention, tokens, mask, window)))
    return found


def head_maps(model: Model, images: Array) -> list[Array]:
    """For each block (B, H, gh, gw): the attention of each head to each patch, in the order of `block_names`.

    In a ViT the queries are the tokens that the head reads: the class token, the mean of class and distillation token,
    or with `global_pool="avg"` the mean of all patches. A map sums to 1 less the attention to the prefix tokens.
    `np.stack(maps, 1)` is (B, L, H, gh, gw).

    In Swin it is the mean over the queries of the pixel's window. Each window's part of a map sums to 1 less the
    attention to its padding, and the grid halves from stage to stage.

    Raises:
        ValueError: as `attention_weights`.
    """
    return [
        _received(layer, x) if isinstance(layer, ShiftedWindows) else _asked(model, _weights(layer, x)[0], images)
        for _, layer, x in _stages_of(model, images)
    ]


def attention_rollout(model: Model, images: Array) -> Array:
    """(B, gh, gw): attention rollout, the share of each patch in the tokens that the head reads.

    A block adds the output of attention to each token, so it is taken to mix tokens by (A + 1)/2, with A the mean over
    the heads and 1 the identity for the residual connection. The product over the blocks, the last one leftmost, mixes
    the last tokens from the first. Values, MLPs and norms are ignored: see docs/classify_an_image.md. A map sums to 1
    less the share of the prefix tokens.

    Source: Abnar and Zuidema 2020, "Quantifying Attention Flow in Transformers", section 3.

    Raises:
        ValueError: for a Swin, whose tokens change with merging; and as `attention_weights`.
    """
    if not isinstance(model, ViT):
        raise ValueError(
            "attention rollout multiplies the attention of all blocks over the same tokens, and a "
            f"{type(model).__name__} has windows and merges its tokens: use grad_cam, or head_maps for each block"
        )
    return _rolled(model, [_weights(layer, x)[0] for _, layer, x in _stages_of(model, images)], images)


class Attentions(NamedTuple):
    """The results of `attention_weights`, `head_maps` and `attention_rollout`; no rollout for a Swin."""

    weights: list[BlockAttention]
    maps: list[Array]
    rollout: Array | None


def attentions(model: Model, images: Array, inputs: Mapping[str, Array]) -> Attentions:
    """All three together, without running the model again.

    Args:
        model, images: as of `attention_weights`.
        inputs: what entered each block's attention in a run, by the block's name.
    """
    weights, maps = [], []
    for name, block in ((name, block) for name, _, block in stages(model) if block is not None):
        layer = _attention(block)
        if isinstance(layer, ShiftedWindows):
            tokens, mask, window = _windows(layer, inputs[name])
            weights.append(BlockAttention(name, *_weights(layer.attention, tokens, mask, window)))
            maps.append(_received(layer, inputs[name]))
        else:
            weights.append(BlockAttention(name, *_weights(layer, inputs[name])))
            maps.append(_asked(model, weights[-1].weights, images))
    rolled = _rolled(model, [each.weights for each in weights], images) if isinstance(model, ViT) else None
    return Attentions(weights, maps, rolled)


def _rolled(model: Model, weights: list[Array], images: Array) -> Array:
    """The rollout of each block's (B, H, n, N)."""
    mixed: Any = None
    for each in weights:
        mean = each.mean(axis=1)  # (B, n, N)
        queries, tokens = mean.shape[1:]
        identity = array_module(mean).eye(queries, tokens, dtype=mean.dtype)  # the first n tokens have queries
        step = (mean + identity) / 2  # rows of A sum to 1, so those of A + 1 sum to 2
        mixed = step if mixed is None else step @ mixed
    return _asked(model, mixed, images)


def block_names(model: Model) -> list[str]:
    """The names of a model's blocks, in the order in which they run.

    Raises:
        ValueError: if the model has none.
    """
    return [name for name, _, block in stages(model) if block is not None]


def stages(model: Model) -> list[tuple[str, Layer, Block | None]]:
    """(name, layer, its block) in running order; the block is None where the layer holds none.

    Raises:
        ValueError: if the model has no blocks.
    """
    found = []
    for name, layer in model.leaves():
        inside = layer.layer if isinstance(layer, Recompute) else layer
        found.append((name, layer, inside if isinstance(inside, Block) else None))
    if all(block is None for _, _, block in found):
        raise ValueError(f"{type(model).__name__} has no encoder blocks that could be shown")
    return found


def prefix_tokens(model: Model) -> int:
    """p: the number of prefix tokens; 0 in a Swin, whose tokens are a map."""
    return count(model.config)


# --- one block ------------------------------------------------------------------------------------------------------


def _stages_of(model: Model, images: Array) -> Iterator[tuple[str, Layer, Array]]:
    """Run the model, and yield each block's name, its `attn`, and the input of `attn`."""
    model.check_input(images)
    x = images
    for name, layer, block in stages(model):
        if block is not None:
            yield name, _attention(block), x if block.post_norm else block.norm1(x)[0]
        x = layer(x)[0]


def _attention(block: Block) -> Layer:
    """A block's attention, or the windows around it."""
    attention: Layer = block.attn
    return attention.layer if isinstance(attention, Recompute) else attention


def _weights(layer: Layer, tokens: Array, mask: Array | None = None, window: Size | None = None) -> tuple[Array, Array]:
    """weights (..., H, n, N) and values (..., H, N, d) of tokens (..., N, D).

    Args:
        layer: the attention.
        tokens: all of an image, or of windows: (B, nW, N, D).
        mask: (nW, 1, N, N), of windows only.
        window: Mh x Mw = N, likewise.
    """
    if not isinstance(layer, Attention):
        raise ValueError(f"{type(layer).__name__} is not a known attention layer")
    q, k, v = _heads(layer, tokens)
    xp, count = array_module(k), k.shape[-2]
    identity = xp.broadcast_to(xp.eye(count, dtype=k.dtype), (*k.shape[:-1], count))  # (..., H, N, N), one copy
    offsets, mask_value = _offsets(layer, window), getattr(layer, "mask_value", -inf)
    attend = getattr(layer, "attend", None)  # of a subclass that combines q, k and v in another way
    if attend is not None:
        return attend(q, k, identity, mask, offsets)[0], v
    if isinstance(layer, CosineWindowAttention):
        scale = layer.logit_scale.data
        return F.cosine_attention(q, k, identity, scale, mask, offsets, mask_value=mask_value)[0], v
    return F.scaled_dot_product_attention(q, k, identity, mask, offsets, mask_value=mask_value)[0], v


def _offsets(layer: Attention, window: Size | None) -> Array | None:
    """The bias that a layer adds to its scores, (H, n, N), or None."""
    if isinstance(layer, ComposedAttention):
        return _composed(layer).bias()[0]
    if isinstance(layer, CosineWindowAttention):
        return None if layer.continuous_bias is None else layer.continuous_bias.bias(window)[0]
    return None if layer.position_bias is None else layer.position_bias.bias(layer.queries, window)[0]


def _heads(layer: Attention, tokens: Array) -> tuple[Array, Array, Array]:
    """q (..., H, n, d), k and v (..., H, N, d) of the layer's heads."""
    qkv, _ = layer.project_qkv(tokens)
    if isinstance(layer, ComposedAttention):  # whose heads may norm and rotate q and k
        (q, k, v), _ = _composed(layer).split(qkv)
    else:
        (q, k, v), _ = F.split_qkv(qkv, layer.num_heads)
    return q[..., : layer.queries, :], k, v


def _composed(layer: ComposedAttention) -> Heads:
    """The layer's heads.

    Raises:
        ValueError: for differential heads.
    """
    if isinstance(layer.heads, Heads):
        return layer.heads
    raise ValueError(
        f"{type(layer.heads).__name__} have no weights whose product with v is their output: it is the norm of a "
        "difference of two maps"
    )


# --- as maps --------------------------------------------------------------------------------------------------------


def _asked(model: Model, weights: Array, images: Array) -> Array:
    """Weights (..., n, N) -> (..., gh, gw): the attention to each patch, the mean over the tokens of the head."""
    p, read = prefix_tokens(model), tokens_read(model.config)
    queries = slice(0, read) if read else slice(p, None)
    mean = weights[..., queries, p:].mean(axis=-2)  # (..., gh gw)
    return mean.reshape(*mean.shape[:-1], *patch_grid(model.config, images.shape[2:]))


def _received(layer: ShiftedWindows, x: Array) -> Array:
    """(B, H, gh, gw): the attention to each pixel of a map (B, gh, gw, D).

    The mean over its window's real pixels: padded ones have queries too, but no output depends on them.
    """
    xp = array_module(x)
    ones, _, _ = _windows(layer, xp.ones((1, *x.shape[1:3], 1), dtype=x.dtype))  # (1, nW, N, 1): 1, padding 0
    share = ones[0, :, :, 0] / ones[0].sum(axis=1)  # (nW, N)

    def gather(windows: Array, mask: Array | None) -> Array:
        weights, _ = _weights(layer.attention, *_as_tokens(windows, mask, share.shape[0]))  # (B, nW, H, N, N)
        return xp.einsum("bwhqk,wq->bwkh", weights, share).reshape(*windows.shape[:3], -1)  # (B nW, Mh, Mw, H)

    return _instead(layer, gather)(x)[0].transpose(0, 3, 1, 2)


# --- windows: the layer's own partition and reverse, around another function than attention -------------------------


class _Instead(Layer):
    """A function of (windows, mask) in place of a window attention."""

    def __init__(self, function: Callable[[Array, Array | None], Array]) -> None:
        self.function = function

    def forward(self, x: Array, rng: Rng = None, mask: Array | None = None) -> tuple[Array, Back]:
        def back(dy: Array) -> Array:
            raise RuntimeError("this attention was replaced to read its weights, and has no backward pass")

        return self.function(x, mask), back


def _instead(layer: ShiftedWindows, function: Callable[[Array, Array | None], Array]) -> ShiftedWindows:
    """The same padding, shift, partition and mask, around a function."""
    copied = copy.copy(layer)
    copied.attention = _Instead(function)
    return copied


def _windows(layer: ShiftedWindows, x: Array) -> tuple[Array, Array | None, Size]:
    """The windows (B, nW, N, C) of a map (B, H, W, C), their mask (nW, 1, N, N) or None, and Mh x Mw."""
    calls: list[tuple[Array, Array | None]] = []

    def look(windows: Array, mask: Array | None) -> Array:
        calls.append((windows, mask))
        return windows

    _instead(layer, look)(x)
    windows, mask = calls[0]
    return _as_tokens(windows, mask, len(windows) // len(x))


def _as_tokens(windows: Array, mask: Array | None, count: int) -> tuple[Array, Array | None, Size]:
    """Windows (B nW, Mh, Mw, C) as (B, nW, N, C), the mask with an axis for heads, and Mh x Mw; `count` is nW."""
    high, wide, channels = windows.shape[1:]
    tokens = windows.reshape(-1, count, high * wide, channels)
    return tokens, None if mask is None else mask[:, None], (high, wide)
