"""Attention within windows, and the journey of a feature map into its windows and back: pad, shift, cut, attend, undo.

`ShiftedWindows` is the whole idea of Swin: any attention that works on windows, put where a block has its attention.

Alphabet: B batch, H x W the map, D channels, Mh x Mw the window, nW windows of one map, N = Mh Mw tokens of a window,
Hd heads, d = D/Hd head size. Next: `mlp.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import log
from typing import Any

from minivit import functional as F
from minivit.backend import array_module, as_generator
from minivit.functional.permutations import Size, pair
from minivit.nn import init
from minivit.nn.attention import Attention
from minivit.nn.layer import Layer, Param
from minivit.nn.position_bias import ContinuousPositionBias
from minivit.protocol import Array, Back, compose, once, refuse


class WindowAttention(Attention):
    """Windows (B nW, Mh, Mw, D) -> the same shape: multi-head attention with a relative position bias (Swin v1).

    Called as `attention(windows, rng, mask=mask)`, mask (nW, N, N) booleans, True = may look, or None.

    Args:
        dim: D.
        num_heads: Hd, which must divide D.
        window_size: (Mh, Mw), for which the table of biases is made; smaller windows use the rows of their offsets.
        qkv_bias: whether the fused projection to q, k and v has a bias.
        attn_drop: dropout rate of the attention weights.
        proj_drop: dropout rate after the output projection.
        mask_value: what a forbidden score gets added, -100 as published, or -inf to shut it out for certain.

    Parameters: qkv.weight (3D, D), qkv.bias, relative_position_bias_table ((2Mh-1)(2Mw-1), Hd), proj.weight, proj.bias.

    Source: Liu et al. 2021, section 3.2; names and layout are timm's.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int | Size,
        qkv_bias: bool = True,
        *,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        mask_value: float = -100.0,
        dtype: Any = "float32",
        seed: Any = None,
    ) -> None:
        super().__init__(
            dim,
            num_heads,
            qkv_bias,
            attn_drop=attn_drop,
            proj_drop=proj_drop,
            position_bias=pair(window_size),
            dtype=dtype,
            seed=seed,
        )
        self.mask_value = mask_value

    def forward(self, x: Array, rng: Any = None, mask: Array | None = None) -> tuple[Array, Back]:
        refuse(x.ndim != 4, f"windows must be (B nW, Mh, Mw, D), got shape {x.shape}")
        count, height, width, dim = shape = x.shape
        windows, places = 1 if mask is None else len(mask), height * width
        refuse(
            count % windows != 0 or (mask is not None and mask.shape[1:] != (places, places)),
            f"mask {() if mask is None else mask.shape} does not fit {count} windows of {height}x{width}: it must be "
            "(nW, N, N) for the nW windows of one map and their N places",
        )
        tokens = x.reshape(count // windows, windows, places, dim)  # (B, nW, N, D)
        seen, back_attend = self._attend(
            tokens, None if mask is None else mask[:, None], (height, width), rng
        )  # (B, nW, Hd, N, d)
        y, back_join = self._join(seen, rng)  # (B, nW, N, D)

        @once
        def back(dy: Array) -> Array:
            return back_attend(back_join(dy.reshape(tokens.shape))).reshape(shape)

        return y.reshape(shape), back

    def _attend(self, tokens: Array, mask: Array | None, window: Size, rng: Any) -> tuple[Array, Back]:
        assert self.position_bias is not None
        bias, back_bias = self.position_bias.bias(grid=window)  # (Hd, N, N)
        (q, k, v), back_heads = self._heads(tokens)  # each (B, nW, Hd, N, d)
        y, back_attention = F.scaled_dot_product_attention(
            q, k, v, mask, bias, mask_value=self.mask_value, dropout_rate=self.attn_drop, rng=rng
        )

        @once
        def back(dy: Array) -> Array:
            dq, dk, dv, dbias = back_attention(dy)
            back_bias(dbias)
            return back_heads(dq, dk, dv)

        return y, back

    def macs(self, shape: tuple[int, ...]) -> int:
        """Multiply-adds for windows (B nW, Mh, Mw, D)."""
        count, height, width, dim = shape
        return super().macs((count, height * width, dim))


class CosineWindowAttention(WindowAttention):
    """Swin v2's: scores are cosines times a learned factor, biases come from an MLP of the offset, k has no bias.

    Args beyond those of `WindowAttention`:
        qkv_bias: whether q and v have a bias; k has none (a key's bias adds the same to all scores of a query).
        pretrained_window: the window that the weights were trained with; 0 is `window_size`.
        cpb_hidden: units of the MLP, 512 as published.

    Parameters: qkv.weight, q_bias (D,), v_bias (D,), logit_scale (Hd, 1, 1) starting at log 10, cpb_mlp.0.weight,
    cpb_mlp.0.bias, cpb_mlp.2.weight, proj.weight, proj.bias.

    Source: Liu et al. 2022 (Swin v2), sections 3.2 and 3.3; names and layout are timm's.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int | Size,
        qkv_bias: bool = True,
        *,
        pretrained_window: int | Size = 0,
        cpb_hidden: int = 512,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        mask_value: float = -100.0,
        dtype: Any = "float32",
        seed: Any = None,
    ) -> None:
        rng, dtype = as_generator(seed), init.dtype_of(dtype)
        Attention.__init__(self, dim, num_heads, False, attn_drop=attn_drop, proj_drop=proj_drop, dtype=dtype, seed=rng)
        self.mask_value = mask_value
        self.q_bias = Param(init.zeros((dim,), dtype)) if qkv_bias else None
        self.v_bias = Param(init.zeros((dim,), dtype)) if qkv_bias else None
        self.logit_scale = Param(init.ones((num_heads, 1, 1), dtype) * dtype.type(log(10)))  # a temperature of 0.1
        self.continuous_bias = ContinuousPositionBias(
            pair(window_size), num_heads, cpb_hidden, pair(pretrained_window), dtype=dtype, seed=rng
        )

    def _attend(self, tokens: Array, mask: Array | None, window: Size, rng: Any) -> tuple[Array, Back]:
        bias, back_bias = self.continuous_bias.bias(window)  # (Hd, N, N)
        (q, k, v), back_heads = self._heads(tokens)  # each (B, nW, Hd, N, d)
        y, back_attention = F.cosine_attention(
            q,
            k,
            v,
            self.logit_scale.data,
            mask,
            bias,
            mask_value=self.mask_value,
            dropout_rate=self.attn_drop,
            rng=rng,
        )

        @once
        def back(dy: Array) -> Array:
            dq, dk, dv, dlogit_scale, dbias = back_attention(dy)
            self.logit_scale.accumulate(dlogit_scale)
            back_bias(dbias)
            return back_heads(dq, dk, dv)

        return y, back

    def _heads(self, x: Array) -> tuple[tuple[Array, Array, Array], Back]:
        q_bias, v_bias = self.q_bias, self.v_bias
        if q_bias is None or v_bias is None:
            return super()._heads(x)
        xp, dim = array_module(x), x.shape[-1]
        fused = xp.concatenate((q_bias.data, xp.zeros_like(q_bias.data), v_bias.data))  # (3D,), k's third is 0
        qkv, vjp = F.linear(x, self.qkv.weight.data, fused)  # (..., N, 3D)
        parts, back_split = F.split_qkv(qkv, self.num_heads)

        @once
        def back(dq: Array, dk: Array, dv: Array) -> Array:
            dx, dweight, dbias = vjp(back_split(dq, dk, dv))
            self.qkv.weight.accumulate(dweight)
            q_bias.accumulate(dbias[:dim])
            v_bias.accumulate(dbias[2 * dim :])
            return dx

        return parts, back


COVERED = ("shrink", "shrink_both", "stay", "shift")


class ShiftedWindows(Layer):
    """A map (B, H, W, D) -> the same shape: `attention` within each window, the windows shifted by `shift_size`.

    The map is padded at the right and bottom to a multiple of the window, rolled so that shifted windows become plain
    ones, cut, attended to with a mask over the seam, and all of it is undone. On an axis that the window covers
    whole, the window shrinks to the map and does not shift: everyone sees everyone there already.

    Args:
        attention: a `WindowAttention` or alike: `attention(windows, rng, mask=mask)`; its parameters keep their names.
        window_size: (Mh, Mw).
        shift_size: (sh, sw), each less than the window; half a window in every second block, else 0.
        mask_padding: keep padded places from being looked at. The published models let them be (they are zeros, but
            projections give them values), so this is off.
        covered: what happens where a window covers the map; the projects differ. "shrink" (as above, timm): on that
            axis the window shrinks and does not shift. "shrink_both" (Microsoft, transformers): both axes take the
            shorter side of the map, without a shift. "stay" (torchvision): the window stays, over padding, and does
            not shift. "shift" (WZMIAOMIAO): it stays and shifts all the same.
        pad_first: pad, then roll. False is timm's order, whose mask then cuts beside the seam where there is padding.

    Source: Liu et al. 2021, section 3.2. Derivation and pictures: docs/derivations/windows.md.
    """

    queries = None  # every token asks

    def __init__(
        self,
        attention: Layer,
        window_size: int | Size,
        shift_size: int | Size = 0,
        *,
        mask_padding: bool = False,
        covered: str = "shrink",
        pad_first: bool = True,
    ) -> None:
        self.attention = attention
        self.window_size, self.shift_size, self.mask_padding = pair(window_size), pair(shift_size), mask_padding
        self.covered, self.pad_first = covered, pad_first
        refuse(covered not in COVERED, f"covered={covered!r}: choose one of {', '.join(map(repr, COVERED))}")
        refuse(mask_padding and not pad_first, "mask_padding=True needs pad_first=True: only then padding has a place")
        for shift, window in zip(self.shift_size, self.window_size):
            refuse(
                not 0 <= shift < window,
                f"shift_size={shift_size} must lie between 0 and window_size={window_size} less 1 on each axis",
            )

    def _walk(self, prefix: str) -> Iterator[tuple[str, Param]]:
        return self.attention._walk(prefix)

    def plan(self, height: int, width: int) -> tuple[Size, Size, Size]:
        """The window, the shift, and the padded size that a map of H x W gets."""
        sides, shifts = self.window_size, self.shift_size
        if self.covered == "shrink_both" and (height <= sides[0] or width <= sides[1]):
            least = min(height, width)
            sides, shifts = (min(sides[0], least), min(sides[1], least)), (0, 0)
        (wh, sh, ph), (ww, sw, pw) = (
            _fit(length, side, shift, self.covered) for length, side, shift in zip((height, width), sides, shifts)
        )
        return (wh, ww), (sh, sw), (ph, pw)

    def forward(self, x: Array, rng: Any = None) -> tuple[Array, Back]:
        return compose(x, *self._journey(x, lambda windows, mask: self.attention(windows, rng, mask=mask)))

    def infer(self, x: Array, **context: Any) -> Array:
        for step in self._journey(x, lambda windows, mask: (self.attention.infer(windows, mask=mask), None)):
            x, _ = step(x)
        return x

    def _journey(self, x: Array, attend: Callable[[Array, Array | None], Any]) -> list[Callable[[Array], Any]]:
        """What happens to the map, step by step, with `attend(windows, mask)` in the middle."""
        real = (x.shape[1], x.shape[2])
        window, shift, size = self.plan(*real)
        mask = F.shift_mask(size, window, shift, real if self.mask_padding else None)  # (nW, N, N) or None
        mask = None if mask is None else array_module(x).asarray(mask)
        moves = [lambda a: F.pad(a, size), lambda a: F.roll(a, (-shift[0], -shift[1]))]
        undo = [lambda a: F.roll(a, shift), lambda a: F.crop(a, real)]
        if not self.pad_first:
            moves, undo = moves[::-1], undo[::-1]
        return [
            *moves,
            lambda a: F.window_partition(a, window),  # (B nW, Mh, Mw, D)
            lambda a: attend(a, mask),
            lambda a: F.window_reverse(a, window, *size),  # (B, H', W', D)
            *undo,
        ]

    def macs(self, shape: tuple[int, ...]) -> int:
        """Multiply-adds for a map (B, H, W, D), padding included."""
        batch, height, width, dim = shape
        window, _, size = self.plan(height, width)
        count = batch * (size[0] // window[0]) * (size[1] // window[1])
        return self.attention.macs((count, *window, dim))


def _fit(length: int, window: int, shift: int, covered: str) -> tuple[int, int, int]:
    """(window, shift, padded length) on one axis."""
    if length <= window and covered == "shrink":
        return length, 0, length
    stays = length <= window and covered != "shift"
    return window, 0 if stays else shift, -(-length // window) * window
