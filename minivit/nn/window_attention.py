"""Attention within windows, and the windows of a feature map: pad, shift, partition, attend, and reverse.

`ShiftedWindows` applies any attention that works on windows to a map: the central idea of Swin.

Notation: B batch, H x W the map, D channels, Mh x Mw the window, nW windows of one map, N = Mh Mw tokens of a window,
Hd heads, d = D/Hd head size.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import log
from typing import Any

from minivit import functional as F
from minivit.device import constant
from minivit.nn import init
from minivit.nn.attention import Attention, project_without_key_bias
from minivit.nn.layer import Layer
from minivit.nn.parameter import Buffer, Parameter
from minivit.nn.position_bias import ContinuousPositionBias
from minivit.protocol import Array, Back, Rng, compose, once
from minivit.random import as_generator
from minivit.sizes import Size, pair


class WindowAttention(Attention):
    """Windows (B nW, Mh, Mw, D) -> the same shape: multi-head attention with a relative position bias (Swin v1).

    Called as `attention(windows, rng, mask=mask)`, mask (nW, N, N) booleans, True = attends, or None.

    Args:
        dim: D.
        num_heads: Hd, which must divide D.
        window_size: (Mh, Mw), the window of the bias table; smaller windows use the rows of their offsets.
        qkv_bias: whether the fused projection to q, k and v has a bias.
        attn_drop: dropout rate of the attention weights.
        proj_drop: dropout rate after the output projection.
        mask_value: added to a masked score, -100 as published, or -inf to exclude it exactly.

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

    def forward(self, x: Array, rng: Rng = None, mask: Array | None = None) -> tuple[Array, Back]:
        if x.ndim != 4:
            raise ValueError(f"windows must be (B nW, Mh, Mw, D), got shape {x.shape}")
        count, height, width, dim = shape = x.shape
        windows, pixels = 1 if mask is None else len(mask), height * width
        if count % windows or (mask is not None and mask.shape[1:] != (pixels, pixels)):
            raise ValueError(
                f"mask {() if mask is None else mask.shape} does not fit {count} windows of {height}x{width}: it must "
                "be (nW, N, N) for the nW windows of one map and their N pixels"
            )
        tokens = x.reshape(count // windows, windows, pixels, dim)  # (B, nW, N, D)
        heads, back_heads = self._attend_in_window(
            tokens, None if mask is None else mask[:, None], (height, width), rng
        )  # (B, nW, N, D)
        y, back_project = self._project(heads, rng)

        @once
        def back(dy: Array) -> Array:
            return back_heads(back_project(dy.reshape(tokens.shape))).reshape(shape)

        return y.reshape(shape), back

    def _attend_in_window(self, tokens: Array, mask: Array | None, window: Size, rng: Rng) -> tuple[Array, Back]:
        assert self.position_bias is not None
        qkv, back_qkv = self.project_qkv(tokens)  # (B, nW, N, 3D)
        bias, back_bias = self.position_bias.bias(grid=window)  # (Hd, N, N)
        y, back_attention = F.self_attention(
            qkv, self.num_heads, mask, bias, mask_value=self.mask_value, dropout_rate=self.attn_drop, rng=rng
        )  # (B, nW, N, D)

        @once
        def back(dy: Array) -> Array:
            dqkv, dbias = back_attention(dy)
            back_bias(dbias)
            return back_qkv(dqkv)

        return y, back


class CosineWindowAttention(WindowAttention):
    """Swin v2's attention: scores are scaled cosines, biases come from an MLP of the offset, k has no bias.

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
        self.q_bias = Parameter(init.zeros((dim,), dtype)) if qkv_bias else None
        self.v_bias = Parameter(init.zeros((dim,), dtype)) if qkv_bias else None
        self.logit_scale = Parameter(init.ones((num_heads, 1, 1), dtype) * dtype.type(log(10)))  # a temperature of 0.1
        self.continuous_bias = ContinuousPositionBias(
            pair(window_size), num_heads, cpb_hidden, pair(pretrained_window), dtype=dtype, seed=rng
        )

    def _attend_in_window(self, tokens: Array, mask: Array | None, window: Size, rng: Rng) -> tuple[Array, Back]:
        qkv, back_qkv = self.project_qkv(tokens)  # (B, nW, N, 3D)
        (q, k, v), back_split = F.split_qkv(qkv, self.num_heads)  # each (B, nW, Hd, N, d)
        bias, back_bias = self.continuous_bias.bias(window)  # (Hd, N, N)
        heads, back_attention = F.cosine_attention(
            q, k, v, self.logit_scale.data, mask, bias,
            mask_value=self.mask_value, dropout_rate=self.attn_drop, rng=rng,
        )  # fmt: skip
        y, back_merge = F.merge_heads(heads)  # (B, nW, N, D)

        @once
        def back(dy: Array) -> Array:
            dq, dk, dv, dlogit_scale, dbias = back_attention(back_merge(dy))
            self.logit_scale.accumulate(dlogit_scale)
            back_bias(dbias)
            return back_qkv(back_split(dq, dk, dv))

        return y, back

    def project_qkv(self, x: Array) -> tuple[Array, Back]:
        """The fused projection, whose bias is q's and v's with zeros for k."""
        q_bias, v_bias = self.q_bias, self.v_bias
        if q_bias is None or v_bias is None:
            return self.qkv(x)
        return project_without_key_bias(x, self.qkv, q_bias, v_bias)


COVERED = ("shrink", "shrink_both", "stay", "shift")


class ShiftedWindows(Layer):
    """A map (B, H, W, D) -> the same shape: `attention` within each window, the windows shifted by `shift_size`.

    The map is zero-padded at the right and bottom to a multiple of the window, rolled, and split into windows.
    Attention runs with a mask at the seam, and these steps are then reversed. On an axis that one window covers, the
    window is reduced to the map and not shifted, because all pixels attend to each other already.

    Args:
        attention: a `WindowAttention` or similar: `attention(windows, rng, mask=mask)`; its parameters keep their
            names.
        window_size: (Mh, Mw).
        shift_size: (sh, sw), each less than the window; half a window in every second block, else 0.
        mask_padding: mask the padding. The published models do not (the padding is zeros, but projections give it
            values), so the default is False.
        covered: the rule where a window covers the map, which differs between projects. "shrink" (as above, timm): on
            that axis the window is reduced and not shifted. "shrink_both" (Microsoft, transformers): both axes take
            the shorter side of the map, without a shift. "stay" (torchvision): the window keeps its size, with
            padding, and is not shifted. "shift" (WZMIAOMIAO): it keeps its size and is shifted.
        pad_first: pad, then roll. False is timm's order: where there is padding, its mask is not at the seam.

    Source: Liu et al. 2021, section 3.2. Derivation and figures: docs/derivations/windows.md.
    """

    queries = None  # every token has a query

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
        if covered not in COVERED:
            raise ValueError(f"covered={covered!r}: choose one of {', '.join(map(repr, COVERED))}")
        if mask_padding and not pad_first:
            raise ValueError("mask_padding=True needs pad_first=True: only then are the positions of the padding known")
        if not all(0 <= shift < window for shift, window in zip(self.shift_size, self.window_size)):
            raise ValueError(
                f"shift_size={shift_size} must lie between 0 and window_size={window_size} less 1 on each axis"
            )

    def named_state(self, prefix: str) -> Iterator[tuple[str, Buffer]]:
        return self.attention.named_state(prefix)

    def plan(self, height: int, width: int) -> tuple[Size, Size, Size]:
        """The window, the shift, and the padded size for a map of H x W."""
        sides, shifts = self.window_size, self.shift_size
        if self.covered == "shrink_both" and (height <= sides[0] or width <= sides[1]):
            sides, shifts = shrunk_window(sides, (height, width), self.covered), (0, 0)
        (wh, sh, ph), (ww, sw, pw) = (
            _fit(length, side, shift, self.covered) for length, side, shift in zip((height, width), sides, shifts)
        )
        return (wh, ww), (sh, sw), (ph, pw)

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Back]:
        real = (x.shape[1], x.shape[2])
        window, shift, size = self.plan(*real)
        mask = F.shift_mask(size, window, shift, real if self.mask_padding else None)  # (nW, N, N) or None
        mask = None if mask is None else constant(mask, x)
        how = (window, shift, size)
        return compose(
            x,
            lambda a: F.shifted_windows(a, *how, self.pad_first),  # (B nW, Mh, Mw, D)
            lambda a: self.attention(a, rng, mask=mask),
            lambda a: F.shifted_windows_reverse(a, *how, real, self.pad_first),  # (B, H, W, D)
        )


def shrunk_window(window: Size, grid: Size, covered: str) -> Size:
    """The window, reduced by the rule `covered` of `ShiftedWindows` where it covers the map."""
    if covered == "shrink_both" and (grid[0] <= window[0] or grid[1] <= window[1]):
        return min(window[0], *grid), min(window[1], *grid)
    return (min(window[0], grid[0]), min(window[1], grid[1])) if covered == "shrink" else window


def _fit(length: int, window: int, shift: int, covered: str) -> tuple[int, int, int]:
    """(window, shift, padded length) on one axis."""
    if length <= window and covered == "shrink":
        return length, 0, length
    stays = length <= window and covered != "shift"
    return window, 0 if stays else shift, -(-length // window) * window
