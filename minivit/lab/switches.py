"""Switches: a trained model in which one part is left out, with the right gradient of what is then computed.

`switched(model, ["scale"])` is a model with the same parameters whose scores are not divided by the square root of the
head's size. The parts are those of lesson 10, which trains each such model; here the trained model stays as it is.

Notation: B images, N tokens, D channels, H heads, d = D/H.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from minivit import functional as F
from minivit.device import array_module
from minivit.functional.attention import MAX_LOGIT_SCALE, sum_to
from minivit.models import Model
from minivit.models.options import patch_grid
from minivit.nn import Attention, Block, CosineWindowAttention, Layer, ScaledBlock, WindowAttention
from minivit.protocol import Array, Back, Rng, once
from minivit.sizes import Size, pair

# in the order of the page
SWITCHES = {
    "positions": "no positions: learned or fixed vectors are not added, nor a bias of the offset",
    "scale": "scores not divided by sqrt(d); in Swin v2, cosines not multiplied by their learned scale",
    "residual": "no x + ... around the branches of a block",
    "softmax": "scores taken as the weights, without softmax",
    "heads": "one head: the outputs of all others are 0",
    "shuffle": "the patches of the image in another, fixed order",
}
_SEED = 1  # of the order of shuffled patches, as in lesson 10


def available(model: Model) -> list[str]:
    """The names of the switches that the model has a part for, in the order of `SWITCHES`."""
    attentions, blocks = list(_attentions(model)), list(_blocks(model))
    known = bool(attentions) and all(type(layer) in _REPLACED for layer in attentions)
    adds_positions = getattr(getattr(model, "embed", None), "positions", None) is not None
    biased = known and any(_biased(layer) for layer in attentions)
    grid, image = patch_grid(model.config), pair(model.config["img_size"])
    may = {
        "positions": (adds_positions or biased) and known,
        "scale": known,
        "residual": bool(blocks) and all(type(block) in _NO_RESIDUAL for block in blocks),
        "softmax": known,
        "heads": known,
        "shuffle": all(side % count == 0 for side, count in zip(image, grid)),
    }
    return [name for name in SWITCHES if may[name]]


def switched(model: Model, names: Iterable[str], head: int = 0) -> Model:
    """A model with the same parameter data, separate gradients, and the named parts left out.

    "shuffle" changes the images, not the model: see `Shuffle`.

    Args:
        model: ViT or Swin.
        names: of `SWITCHES`.
        head: the one that "heads" keeps, in every block; where a block has fewer heads, its last.

    Raises:
        ValueError: for an unknown switch, and for a part that the model does not have.
    """
    chosen, copied = set(names), model.replica()
    assert isinstance(copied, Model)
    _check(model, chosen)
    if head < 0:
        raise ValueError(f"head={head}: heads are numbered from 0")
    if chosen & {"positions", "scale", "softmax", "heads"}:
        for layer in _attentions(copied):
            _become(layer, _REPLACED[type(layer)])
            layer.scaled, layer.normalized = "scale" not in chosen, "softmax" not in chosen
            layer.only_head = min(head, layer.num_heads - 1) if "heads" in chosen else None
            if "positions" in chosen:
                layer.position_bias = None
            if isinstance(layer, SwitchedCosineWindowAttention):
                removed = {"scale": "logit_scale", "positions": "continuous_bias"}
                for name in chosen & removed.keys():
                    setattr(layer, removed[name], None)
    if "positions" in chosen:
        network: Any = copied
        network.embed.positions = None
    if "residual" in chosen:
        for block in _blocks(copied):
            _become(block, _NO_RESIDUAL[type(block)])
    return copied


def _check(model: Model, chosen: set[str]) -> None:
    may = available(model)
    for name in sorted(chosen - set(may)):
        known = f"a {type(model).__name__} of this kind has no such part" if name in SWITCHES else "it is unknown"
        raise ValueError(f"switch {name!r}: {known}; choose among {', '.join(may)}")


def _become(layer: Layer, kind: type) -> None:
    """The same layer with another forward pass: `kind` has the same attributes."""
    target: Any = layer
    target.__class__ = kind


def _biased(layer: Any) -> bool:
    """Whether an attention adds a bias of the offset to its scores."""
    return layer.position_bias is not None or getattr(layer, "continuous_bias", None) is not None


def _blocks(layer: Layer) -> Iterator[Block]:
    for _, part in layer.parts():
        if isinstance(part, Block):
            yield part
        else:
            yield from _blocks(part)


def _attentions(layer: Layer) -> Iterator[Any]:
    for _, part in layer.parts():
        if isinstance(part, Attention):
            yield part
        else:
            yield from _attentions(part)


# --- the changed layers ---------------------------------------------------------------------------------------------


class NoResidual(Block):
    """x <- attn(norm1(x)); x <- mlp(norm2(x)): the input is not added."""

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Back]:
        attended, back_attn = self._branch(self.norm1, self.attn, x, rng)
        y, back_mlp = self._branch(self.norm2, self.mlp, attended, rng)

        @once
        def back(dy: Array) -> Array:
            return back_attn(back_mlp(dy))

        return y, back


class NoScaledResidual(NoResidual, ScaledBlock):
    """x <- ls1(attn(norm1(x))); x <- ls2(mlp(norm2(x))): the scale of each branch stays."""


_NO_RESIDUAL: dict[type, type] = {Block: NoResidual, ScaledBlock: NoScaledResidual}


class _Switched(Attention):
    """What the attentions share. `observe` reads the weights through `attend` too."""

    scaled = normalized = True
    only_head: int | None = None
    mask_value = float("-inf")

    def attend(
        self, q: Array, k: Array, v: Array, mask: Array | None = None, bias: Array | None = None
    ) -> tuple[Array, Back]:
        """y (..., H, N, d) of q, k and v (..., H, N, d), and vjp(dy) -> (dq, dk, dv, dbias)."""
        return self._weighted(q, k, v, mask, bias, q.shape[-1] ** -0.5 if self.scaled else 1.0)

    def _weighted(
        self, q: Array, k: Array, v: Array, mask: Array | None, bias: Array | None, scale: float
    ) -> tuple[Array, Back]:
        if self.normalized:
            y, vjp = F.scaled_dot_product_attention(q, k, v, mask, bias, scale=scale, mask_value=self.mask_value)
        else:
            y, vjp = scores_as_weights(q, k, v, mask, bias, scale)
        if self.only_head is None:
            return y, vjp
        kept = (array_module(y).arange(self.num_heads) == self.only_head)[:, None, None].astype(y.dtype)  # (H, 1, 1)
        return y * kept, once(lambda dy: vjp(dy * kept))

    def _attended(self, x: Array, mask: Array | None, bias: Array | None, back_bias: Back) -> tuple[Array, Back]:
        """x (..., N, D) -> the heads' outputs, concatenated: (..., N, D)."""
        qkv, back_qkv = self.project_qkv(x)  # (..., N, 3D)
        (q, k, v), back_split = F.split_qkv(qkv, self.num_heads)  # each (..., H, N, d)
        heads, back_attention = self.attend(q, k, v, mask, bias)
        y, back_merge = F.merge_heads(heads)

        @once
        def back(dy: Array) -> Array:
            dq, dk, dv, dbias = back_attention(back_merge(dy))
            if dbias is not None:
                back_bias(dbias)
            return back_qkv(back_split(dq, dk, dv))

        return y, back


class SwitchedAttention(_Switched):
    """proj(attend(q, k, v)), with what is switched off left out."""

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Back]:
        bias, back_bias = self._bias(x.shape[1])
        merged, back_attended = self._attended(x, None, bias, back_bias)
        y, back_proj = self.proj(merged)  # (B, N, D)

        @once
        def back(dy: Array) -> Array:
            return back_attended(back_proj(dy))

        return y, back


class SwitchedWindowAttention(_Switched, WindowAttention):
    """proj(attend(q, k, v)) in each window, with what is switched off left out."""

    def _attend_in_window(self, tokens: Array, mask: Array | None, window: Size, rng: Rng) -> tuple[Array, Back]:
        if self.position_bias is None:
            return self._attended(tokens, mask, None, once(lambda dbias: None))
        bias, back_bias = self.position_bias.bias(grid=window)  # (H, N, N)
        return self._attended(tokens, mask, bias, back_bias)


class SwitchedCosineWindowAttention(_Switched, CosineWindowAttention):
    """The same with the scaled cosines of Swin v2 as scores. "scale" leaves their factor out: the cosines alone."""

    def attend(
        self, q: Array, k: Array, v: Array, mask: Array | None = None, bias: Array | None = None
    ) -> tuple[Array, Back]:
        """y (..., H, N, d), and vjp(dy) -> (dq, dk, dv, dbias); it accumulates the gradient of `logit_scale`."""
        q_hat, back_q = F.normalize(q)
        k_hat, back_k = F.normalize(k)
        factor, back_factor = self._factor(q)  # (H, 1, 1)
        y, back_attention = self._weighted(q_hat * factor, k_hat, v, mask, bias, 1.0)

        @once
        def vjp(dy: Array) -> tuple[Array, Array, Array, Array | None]:
            dscaled, dk_hat, dv, dbias = back_attention(dy)
            back_factor(sum_to(dscaled * q_hat, factor.shape))
            return back_q(dscaled * factor), back_k(dk_hat), dv, dbias

        return y, vjp

    def _factor(self, q: Array) -> tuple[Array, Back]:
        """exp(min(logit_scale, log 100)), (H, 1, 1), or ones."""
        xp, learned = array_module(q), self.logit_scale
        if learned is None:
            return xp.ones((self.num_heads, 1, 1), dtype=q.dtype), once(lambda dfactor: None)
        free = learned.data.real <= MAX_LOGIT_SCALE
        factor = xp.exp(xp.where(free, learned.data, MAX_LOGIT_SCALE)).astype(q.dtype, copy=False)

        @once
        def back(dfactor: Array) -> None:
            learned.accumulate(dfactor * factor * free)

        return factor, back

    def _attend_in_window(self, tokens: Array, mask: Array | None, window: Size, rng: Rng) -> tuple[Array, Back]:
        if self.continuous_bias is None:
            return self._attended(tokens, mask, None, once(lambda dbias: None))
        bias, back_bias = self.continuous_bias.bias(window)  # (H, N, N)
        return self._attended(tokens, mask, bias, back_bias)


_REPLACED: dict[type, type] = {
    Attention: SwitchedAttention,
    WindowAttention: SwitchedWindowAttention,
    CosineWindowAttention: SwitchedCosineWindowAttention,
}


def scores_as_weights(
    q: Array, k: Array, v: Array, mask: Array | None, bias: Array | None, scale: float
) -> tuple[Array, Back]:
    """y = (scale q k^T + bias) v: attention without softmax; where the mask is False the weight is 0."""
    weights = scale * (q @ k.swapaxes(-1, -2))  # (..., N, N)
    weights = weights if bias is None else weights + bias
    weights = weights if mask is None else weights * mask
    y = weights @ v  # (..., N, d)

    @once
    def vjp(dy: Array) -> tuple[Array, Array, Array, Array | None]:
        dv = weights.swapaxes(-1, -2) @ dy
        dweights = dy @ v.swapaxes(-1, -2)
        dweights = dweights if mask is None else dweights * mask
        dbias = None if bias is None else sum_to(dweights, bias.shape)
        return scale * (dweights @ k), scale * (dweights.swapaxes(-1, -2) @ q), dv, dbias

    return y.astype(q.dtype, copy=False), vjp


# --- the changed image ----------------------------------------------------------------------------------------------


class Shuffle:
    """Patches in another, fixed order: a permutation of pixels, whose gradient is the inverse permutation."""

    def __init__(self, model: Model) -> None:
        self.grid, image = patch_grid(model.config), pair(model.config["img_size"])
        self.patch = (image[0] // self.grid[0], image[1] // self.grid[1])
        self.order = np.random.default_rng(_SEED).permutation(self.grid[0] * self.grid[1])

    def __call__(self, images: Array) -> Array:
        """(B, C, H, W): the patch at position n is the given image's patch order[n]."""
        return self._moved(images, self.order)

    def undo(self, images: Array) -> Array:
        """(B, C, H, W): the inverse."""
        return self._moved(images, np.argsort(self.order))

    def _moved(self, images: Array, order: Array) -> Array:
        rows, _ = F.patchify(images, self.patch)  # (B, N, Ph Pw C)
        return F.unpatchify(np.ascontiguousarray(rows[:, order]), self.patch, self.grid)[0]


def shuffles(model: Model, names: Iterable[str]) -> Shuffle | None:
    """What "shuffle" does to images, if it is among the names."""
    return Shuffle(model) if "shuffle" in set(names) else None
