"""One table of every operation, layer and model: name, input shapes, and how to build it.

Every promise of the protocol is tested over all of it; a new layer is proven by adding its line here.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st

from minivit import functional as F, nn
from minivit.device import array_module
from minivit.fast.blocks import attention_in_blocks
from minivit.fast.numpy import activation as numpy_activation, attention as numpy_attention
from minivit.models import Swin, SwinV2, ViT
from minivit.protocol import once

PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "ci")
# of each array of a model in the complex step, which runs the model once for each; None for all of them
MODEL_ELEMENTS = 4 if PROFILE == "quick" else None


@dataclass(frozen=True)
class Case:
    """One line of the table.

    Attributes:
        letters: shapes of the arguments, such as "BNI OI O"; see minivit.strategies.arrays.
        build: for a function, the function; for a layer, called with the first argument, returns the layer.
        layer: whether `build` builds a layer.
        fixed: lengths of letters that are not free.
        noise: the layer draws random numbers, so checks give it a generator.
        analytic: whether the complex step applies.
        kink: keep inputs away from 0, where the slope jumps.
        example: lengths of letters for the tests that need one example.
        empty: letters whose length may be 0.
        host_only: a kernel of NumPy's alone.
        scale: results are compared relative to their largest number, or to this if it is larger: arguments are near 1,
            so smaller results are differences of larger numbers.
    """

    name: str
    letters: str
    build: Callable[..., Any]
    layer: bool = False
    fixed: dict[str, Any] = field(default_factory=dict)
    noise: bool = False
    analytic: bool = True
    kink: bool = False
    example: dict[str, int] = field(default_factory=dict)
    empty: str = "BN"
    host_only: bool = False
    scale: float = 0.1

    def callable(self, args: tuple[Any, ...]) -> Any:
        """What is called as f(*args): the function, or a new layer in the dtype of its input."""
        return self.build(args[0]) if self.layer else self.build

    def arguments(self, seed: int = 0, dtype: str = "float64", **lengths: int) -> tuple[Any, ...]:
        """Arrays for one example; free letters are 2 or 3 long, B and N never 1 unless asked."""
        sizes = {letter: 2 + index % 2 for index, letter in enumerate(sorted(set(self.letters) - {" "}))}
        sizes |= {letter: size for letter, size in self.fixed.items() if isinstance(size, int)}
        sizes |= self.example | lengths
        rng = np.random.default_rng(seed)
        arrays = [rng.standard_normal([sizes[letter] for letter in word]) for word in self.letters.split()]
        if self.kink:
            arrays = [array + 0.1 * np.sign(array) for array in arrays]
        return tuple(array.astype(dtype) for array in arrays)


def _like(x: Any, values: Any) -> Any:
    """Constants on the device of x."""
    return array_module(x).asarray(np.asarray(values))


def _rng() -> Any:
    """The same draws at every call: a check calls f many times and must see one function."""
    return np.random.default_rng(5)


def _low_rank(x: Any, a: Any, b: Any, bias: Any = None) -> Any:
    weight = _like(x, np.random.default_rng(6).standard_normal((len(b), x.shape[-1])).astype(b.real.dtype))
    return F.lora_linear(x, a, b, bias, weight=weight, scale=0.7)


def _embedding(table: Any) -> Any:
    return F.embedding(_like(table, [[0, 1], [1, 1], [0, 0]]), table)


def _masked(q: Any, k: Any, v: Any) -> Any:
    mask = (np.arange(q.shape[-2])[:, None] + np.arange(k.shape[-2])) % 3 != 0
    mask[0] = False  # the first query may look at nothing
    return F.scaled_dot_product_attention(q, k, v, _like(q, mask))


def _biased(q: Any, k: Any, v: Any, bias: Any) -> Any:
    return F.scaled_dot_product_attention(q, k, v, None, bias, scale=0.7)


def _attention_dropout(q: Any, k: Any, v: Any) -> Any:
    return F.scaled_dot_product_attention(q, k, v, dropout_rate=0.4, rng=_rng())


def _attention_in_blocks(q: Any, k: Any, v: Any, bias: Any) -> Any:
    attend = F.scaled_dot_product_attention
    return attention_in_blocks(attend, q, k, v, None, bias, block=2, dropout_rate=0.3, rng=_rng())


def _reused_in_blocks(q: Any, k: Any, v: Any, bias: Any) -> Any:
    attend = numpy_attention.attend
    return attention_in_blocks(attend, q, k, v, None, bias, block=2, reuse=True, dropout_rate=0.3, rng=_rng())


def _self_attention(qkv: Any, bias: Any) -> Any:
    return F.self_attention(qkv, 2, None, bias)


def _self_attention_masked(qkv: Any) -> Any:
    tokens = qkv.shape[-2]
    mask = np.arange(tokens)[:, None] >= np.arange(tokens)
    return F.self_attention(qkv, 1, _like(qkv, mask), mask_value=-100.0, dropout_rate=0.3, rng=_rng())


def _differential(q: Any, k: Any, v: Any, *vectors: Any) -> Any:
    return F.differential_attention(q, k, v, *vectors, lambda_init=0.3, dropout_rate=0.2, rng=_rng())


def _rotary(x: Any) -> Any:
    angles = np.outer(np.arange(x.shape[-2]), np.tile([1.0, 0.3], 2))  # (N, d)
    return F.rotary(x, _like(x, np.cos(angles).astype(x.real.dtype)), _like(x, np.sin(angles).astype(x.real.dtype)))


def _relative_bias(table: Any) -> Any:
    return F.relative_position_bias(table, F.relative_position_index((2, 3)))


def _cosine(q: Any, k: Any, v: Any, logit_scale: Any, bias: Any) -> Any:
    return F.cosine_attention(q, k, v, logit_scale, None, bias)


def _cosine_masked(q: Any, k: Any, v: Any, logit_scale: Any) -> Any:
    mask = (np.arange(q.shape[-2])[:, None] + np.arange(k.shape[-2])) % 3 != 0
    return F.cosine_attention(q, k, v, logit_scale, _like(q, mask), mask_value=-100.0, dropout_rate=0.3, rng=_rng())


def _labels(logits: Any, smoothing: float) -> Any:
    labels = np.arange(len(logits)) % logits.shape[1]
    return F.softmax_cross_entropy(logits, labels, smoothing)


def _soft(logits: Any) -> Any:
    target = np.random.default_rng(3).dirichlet(np.ones(logits.shape[1]), len(logits))
    return F.softmax_cross_entropy(logits, _like(logits, target), 0.1)


def _mean_squared(prediction: Any) -> Any:
    return F.mean_squared_error(prediction, _like(prediction, np.ones(prediction.shape, prediction.real.dtype)))


def _fitted(x: Any) -> Any:
    """The GELU of float32, run in float64: the code that trains is the code that is proven."""
    return numpy_activation.gelu(x)


def _given_statistics(x: Any, weight: Any, bias: Any, mean: Any, root: Any) -> Any:
    """A variance that is positive whatever is drawn, and its gradient carried on to what was drawn."""
    y, vjp = F.batch_norm(x, mean, root * root + 0.5, weight, bias)

    @once
    def back(dy: Any) -> Any:
        dx, dmean, dvariance, dweight, dbias = vjp(dy)
        return dx, dweight, dbias, dmean, dvariance * 2 * root

    return y, back


def _own_statistics(x: Any, weight: Any = None, bias: Any = None) -> Any:
    y, vjp = F.batch_norm(x, None, None, weight, bias)

    @once
    def back(dy: Any) -> Any:
        dx, dmean, dvariance, dweight, dbias = vjp(dy)
        assert dmean is None and dvariance is None
        return dx if weight is None else (dx, dweight, dbias)

    return y, back


# one class makes softmax constant, and its gradient rounding noise
_CLASSES: dict[str, Any] = {"K": st.integers(2, 4)}
_KERNEL: dict[str, Any] = {"a": 4, "b": 5, "P": 3, "Q": 2}

FUNCTIONS = [
    Case("linear", "BNI OI O", F.linear),
    Case("linear_no_bias", "BI OI", F.linear),
    Case("lora_linear", "BNI rI Or O", _low_rank, fixed={"I": 3, "O": 4}),
    Case("lora_linear_no_bias", "BI rI Or", _low_rank, fixed={"I": 3, "O": 4}),
    # two channels make LayerNorm's rows (+1, -1) whatever x is, and its gradient rounding noise: 3 to 6 channels
    Case("layer_norm", "BND D D", F.layer_norm, fixed={"D": 5}),
    Case("layer_norm_plain", "ND", lambda x: F.layer_norm(x, None, None, 1e-5), fixed={"D": 4}),
    Case("rms_norm", "BND D", F.rms_norm, fixed={"D": 3}),
    Case("rms_norm_plain", "ND", lambda x: F.rms_norm(x, None, 1e-5), fixed={"D": 3}),
    Case("layer_scale", "BND D", F.layer_scale),
    # the error of Phi(x) = (1 + tanh h(x)) / 2 is that of numbers near 1, also where GELU itself is small
    Case("gelu", "BND", F.gelu, scale=1.0),
    Case("gelu_tanh", "BND", lambda x: F.gelu(x, "tanh"), scale=1.0),
    Case("gelu_fitted", "BND", _fitted, analytic=False, host_only=True),
    Case("linear_gelu", "BNI OI O", F.linear_gelu, scale=1.0),
    Case("linear_gelu_tanh", "BI OI", lambda x, weight: F.linear_gelu(x, weight, None, "tanh"), scale=1.0),
    Case("linear_gelu_fast", "BNI OI O", numpy_activation.linear_gelu, analytic=False, host_only=True),
    Case("gelu_tanh_fast", "BND", lambda x: numpy_activation.gelu(x, "tanh"), host_only=True),
    Case("quick_gelu", "BND", F.quick_gelu, scale=1.0),
    Case("silu", "BND", F.silu, scale=1.0),
    Case("swiglu", "BND BND", F.swiglu, scale=1.0),
    Case("relu", "BND", F.relu, kink=True),
    Case("tanh", "BND", F.tanh),
    Case("softmax", "BNK", F.softmax, fixed=_CLASSES),
    Case("log_softmax", "BNK", F.log_softmax, fixed=_CLASSES),
    Case("attention", "BHNd BHMd BHMd", F.scaled_dot_product_attention, fixed={"B": 2}, empty="BHN"),
    Case("attention_masked", "BNd BMd BMd", _masked, example={"N": 3, "M": 4}, empty="B"),
    Case("attention_biased", "BHNd BHMd BHMd HNM", _biased, fixed={"B": 2}, empty="B"),
    Case("attention_dropout", "BNd BMd BMd", _attention_dropout),
    Case("attention_in_blocks", "BNd BMd BMd NM", _attention_in_blocks, fixed={"N": 5}),
    Case("attention_in_blocks_reused", "BNd BMd BMd NM", _reused_in_blocks, fixed={"N": 5}, host_only=True),
    Case("attention_in_blocks_one_bias", "BNd BMd BMd M", _attention_in_blocks, fixed={"N": 3}),
    Case("self_attention", "BNF HNN", _self_attention, fixed={"F": 12, "H": 2}, empty="B"),
    Case("self_attention_masked", "BWNF", _self_attention_masked, fixed={"F": 6}, empty="B"),
    Case("differential_attention", "BGNd BGNd BHNv d d d d", _differential,
         fixed={"B": 2, "G": 4, "H": 2, "d": 2, "v": 4}, empty="B"),
    Case("rotary", "BNd", _rotary, fixed={"d": 4}),
    Case("dropout", "BND", lambda x: F.dropout(x, 0.4, _rng())),
    Case("drop_path", "BND", lambda x: F.drop_path(x, 0.4, _rng())),
    Case("residual", "BND BND", lambda x, branch: F.residual(x, branch, 0.4, _rng())),
    Case("residual_of_two", "BND BND", F.residual),
    Case("embedding", "RD", _embedding, fixed={"R": 2}, empty="D"),
    Case("patch_embed", "BCab DCPQ D", F.patch_embed, fixed={"a": 4, "b": 6, "P": 2, "Q": 3}, empty="B"),
    Case("patchify", "BCab", lambda x: F.patchify(x, (2, 3)), fixed={"a": 4, "b": 6}, empty="B"),
    Case("unpatchify", "BNF", lambda x: F.unpatchify(x, (2, 1), (1, 3)), fixed={"N": 3, "F": 4}, empty="B"),
    Case("split_heads", "BND", lambda x: F.split_heads(x, 2), fixed={"D": 6}),
    Case("merge_heads", "BHNd", F.merge_heads),
    Case("split_qkv", "BND", lambda x: F.split_qkv(x, 2), fixed={"D": 12}),
    Case("mean_pool", "BND", F.mean_pool, empty="B"),
    Case("conv2d", "BCab OCPQ O", F.conv2d, fixed=_KERNEL, empty="B"),
    Case("conv2d_same", "BCab OCPQ", lambda x, w: F.conv2d(x, w, padding=(1, 0)), fixed=_KERNEL, empty="B"),
    Case("conv2d_same_strided", "BCab OCPQ O", lambda x, w, b: F.conv2d(x, w, b, stride=(2, 1), padding="same"),
         fixed={**_KERNEL, "Q": 4}, empty="B"),
    Case("conv2d_strided", "BCab OCPQ O", lambda x, w, b: F.conv2d(x, w, b, stride=(2, 3), padding=(2, 1)),
         fixed=_KERNEL, empty="B"),
    Case("conv2d_dilated", "BCab OCPQ O", lambda x, w, b: F.conv2d(x, w, b, padding=2, dilation=(1, 2)),
         fixed=_KERNEL, empty="B"),
    Case("conv2d_groups", "BEab OCPQ O", lambda x, w, b: F.conv2d(x, w, b, stride=2, padding=1, dilation=2, groups=2),
         fixed={**_KERNEL, "E": 4, "C": 2, "O": 4}, empty="B"),
    Case("conv2d_depthwise", "BOab OCPQ O", lambda x, w, b: F.conv2d(x, w, b, padding=1, groups=len(w)),
         fixed={**_KERNEL, "C": 1}, empty="B"),
    Case("conv2d_1x1", "BCab OCii O", F.conv2d, fixed={"i": 1}, empty="B"),
    # filters of two numbers become (+1, -1) whatever they were, as with layer_norm
    Case("standardize_weight", "OCPQ", F.standardize_weight, fixed={"C": 2, "P": 3}, empty="O"),
    Case("standardize_weight_outside", "OCPQ", lambda w: F.standardize_weight(w, 0.1, outside=True),
         fixed={"C": 2, "P": 3}, empty="O"),
    Case("group_norm", "BCab C C", lambda x, w, b: F.group_norm(x, 2, w, b), fixed={"C": 4, "a": 3}, empty="B"),
    Case("group_norm_plain", "BCN", lambda x: F.group_norm(x, 1, None, None), fixed={"C": 3, "N": 2}, empty="B"),
    Case("batch_norm", "BCab C C", _own_statistics, fixed={"a": 3, "b": 2}, empty="B"),
    Case("batch_norm_plain", "BCN", _own_statistics, fixed={"N": 5}, empty="B"),
    Case("batch_norm_given", "BCab C C C C", _given_statistics, empty="B"),
    Case("max_pool2d", "BCab", lambda x: F.max_pool2d(x, 2), fixed={"a": 5, "b": 4}, empty="B"),
    Case("max_pool2d_overlapping", "BCab", lambda x: F.max_pool2d(x, (3, 2), (2, 1), 1), empty="B"),
    Case("max_pool2d_same", "BCab", lambda x: F.max_pool2d(x, 3, 2, "same"), empty="B"),
    Case("avg_pool2d", "BCab", lambda x: F.avg_pool2d(x, (2, 3), padding=(1, 0)), fixed={"b": 4}, empty="B"),
    Case("avg_pool2d_inside", "BCab", lambda x: F.avg_pool2d(x, 3, 2, 1, False), empty="B"),
    Case("adaptive_avg_pool2d", "BCab", lambda x: F.adaptive_avg_pool2d(x, (2, 3)), empty="B"),
    Case("sigmoid", "BND", F.sigmoid),
    Case("normalize", "BND", F.normalize, fixed={"D": 3}),
    Case("normalize_short", "BND", lambda x: F.normalize(x, 50.0), fixed={"D": 3}),
    Case(
        "shifted_windows", "BabD", lambda x: F.shifted_windows(x, (2, 3), (1, 2), (4, 6)), fixed={"a": 3, "b": 6},
        empty="B",
    ),
    Case(
        "shifted_windows_reverse", "WabD",
        lambda x: F.shifted_windows_reverse(x, (2, 3), (1, 0), (4, 6), (3, 6), pad_first=False),
        fixed={"W": 8, "a": 2, "b": 3}, empty="",
    ),
    Case("window_partition", "BabD", lambda x: F.window_partition(x, (2, 3)), fixed={"a": 4, "b": 6}, empty="B"),
    Case(
        "window_reverse", "WabD", lambda x: F.window_reverse(x, (2, 3), 4, 3), fixed={"W": 4, "a": 2, "b": 3}, empty=""
    ),
    Case("roll", "BabD", lambda x: F.roll(x, (-1, 2)), fixed={"a": 3}, empty="B"),
    Case("pad", "BabD", lambda x: F.pad(x, (4, 3)), fixed={"a": 3, "b": 2}, empty="B"),
    Case("crop", "BabD", lambda x: F.crop(x, (2, 2)), fixed={"a": 3, "b": 2}, empty="B"),
    Case("patch_merging", "BabD", F.patch_merging, empty="B"),  # odd sides among the drawn ones
    Case("relative_position_bias", "RH", _relative_bias, fixed={"R": 15}, empty=""),
    Case("continuous_position_table", "RI UI U HU", F.continuous_position_table, fixed={"I": 2}, empty=""),
    Case("cosine_attention", "BHNd BHMd BHMd Hii HNM", _cosine, fixed={"B": 2, "i": 1, "d": 3}, empty="B"),
    Case(
        "cosine_attention_masked",
        "BNd BMd BMd iii",
        _cosine_masked,
        fixed={"B": 2, "i": 1, "d": 3},
        example={"N": 3, "M": 4},
        empty="B",
    ),
    Case("resize_up", "abD", lambda x: F.resize_grid(x, (5, 4)), fixed={"a": 3, "b": 2}, empty=""),
    Case("resize_down", "abD", lambda x: F.resize_grid(x, (2, 3)), fixed={"a": 5, "b": 4}, empty=""),
    Case("resize_images", "BCab", lambda x: F.resize_images(x, (3, 5)), fixed={"a": 5, "b": 4}, empty="B"),
    Case("resize_linear", "abD", lambda x: F.resize_grid(x, (4, 2), "bilinear", False), fixed={"a": 3}, empty=""),
    Case("cross_entropy", "BK", lambda x: _labels(x, 0.0), fixed=_CLASSES, empty=""),
    Case("cross_entropy_smoothed", "BK", lambda x: _labels(x, 0.2), fixed=_CLASSES, empty=""),
    Case("cross_entropy_soft", "BK", _soft, fixed=_CLASSES, empty=""),
    Case("mean_squared_error", "BK", _mean_squared, empty=""),
]  # fmt: skip


def _attention(kind: Any = nn.Attention, **options: Any) -> Callable[[Any], Any]:
    return lambda x: kind(x.shape[-1], 2, dtype=x.dtype, seed=1, **options)


def _lora(x: Any, kind: Any = nn.Linear, **options: Any) -> nn.LoRALinear:
    linear = kind(x.shape[-1], 4, dtype=x.dtype, seed=1, **options)
    return (nn.LoRALinearGELU if kind is nn.LinearGELU else nn.LoRALinear)(linear, 2, 3.0, seed=2)


def _with_lora(layer: Any) -> Any:
    layer.qkv = nn.LoRALinear(layer.qkv, 2, 3.0, seed=2)
    layer.proj = nn.LoRALinear(layer.proj, 1, 3.0, seed=3)
    return layer


def _mlp(x: Any, drop: float = 0.0) -> nn.Mlp:
    return nn.Mlp(x.shape[-1], 5, drop=drop, dtype=x.dtype, seed=1)


def _block(x: Any, drop_path: float = 0.0, post_norm: bool = False, **options: Any) -> nn.Block:
    dim, dtype = x.shape[-1], x.dtype
    attention = nn.Attention(dim, 2, dtype=dtype, seed=1, **options)
    mlp = nn.Mlp(dim, 3, drop=options.get("proj_drop", 0.0), dtype=dtype, seed=2)
    norms = [nn.LayerNorm(dim, dtype=dtype) for _ in range(2)]
    return nn.Block(norms[0], attention, norms[1], mlp, drop_path, post_norm=post_norm)


def _block_of(part: Callable[[], Any], post_norm: bool = False) -> nn.Block:
    """A block whose parts hand back the very arrays that they are given."""
    attention = part()
    attention.queries = None
    return nn.Block(part(), attention, part(), part(), post_norm=post_norm)


def _heads(x: Any, **options: Any) -> nn.Heads:
    """Heads with norms of q and k that are far from their start."""
    norms = [nn.RMSNorm(x.shape[-1] // 2, dtype=x.dtype), nn.LayerNorm(x.shape[-1] // 2, dtype=x.dtype)]
    return nn.Heads(2, q_norm=norms[0], k_norm=norms[1], **options)


def _differential_heads(x: Any, **options: Any) -> nn.DifferentialHeads:
    return nn.DifferentialHeads(x.shape[-1], 2, 3, dtype=x.dtype, seed=4, **options)


def _composed(x: Any, heads: Any, **options: Any) -> nn.ComposedAttention:
    norm = nn.LayerNorm(x.shape[-1], dtype=x.dtype)
    return nn.ComposedAttention(x.shape[-1], heads, norm=norm, dtype=x.dtype, seed=1, **options)


def _attention_pool(x: Any) -> nn.Layer:
    norm = nn.LayerNorm(x.shape[-1], dtype=x.dtype)
    return nn.AttentionPool(x.shape[-1], 2, norm, _mlp(x), dtype=x.dtype, seed=1)


def _scaled_block(x: Any, **options: Any) -> nn.Block:
    block, dim = _block(x, **options), x.shape[-1]
    scales = [nn.LayerScale(dim, value, dtype=x.dtype) for value in (0.7, -0.4)]
    return nn.ScaledBlock(block.norm1, block.attn, scales[0], block.norm2, block.mlp, scales[1], block.drop_path)


def _parallel_things(x: Any, drop_path: float = 0.0) -> nn.Layer:
    blocks = [_scaled_block(x, proj_drop=drop_path / 2) for _ in range(2)]
    attns = [nn.Branch("attn", each.norm1, each.attn, each.ls1, drop_path) for each in blocks]
    return nn.ParallelThingsBlock(attns, [nn.Branch("mlp", each.norm2, each.mlp, None, drop_path) for each in blocks])


def _parallel_scaling(x: Any, heads: Any, **options: Any) -> nn.Layer:
    dim, dtype = x.shape[-1], x.dtype
    scale = nn.LayerScale(dim, 0.6, dtype=dtype)
    parts = (heads, nn.RMSNorm(dim, dtype=dtype), nn.GELU(), scale)
    return nn.ParallelScalingBlock(dim, 3, *parts, **options, dtype=dtype, seed=1)


class _Windowed(nn.Identity):
    """An attention within windows that changes nothing."""

    def forward(self, x: Any, rng: Any = None, mask: Any = None) -> Any:
        return super().forward(x, rng)


def _sequential(x: Any) -> nn.Sequential:
    dim, dtype = x.shape[-1], x.dtype
    return nn.Sequential(nn.Linear(dim, 3, dtype=dtype, seed=1), nn.Tanh(), nn.Linear(3, 2, dtype=dtype, seed=2))


def _patch_embed(x: Any, **options: Any) -> nn.PatchEmbed:
    return nn.PatchEmbed((2, 3), x.shape[1], 4, dtype=x.dtype, seed=1, **options)


def _windows(x: Any, kind: Any = nn.WindowAttention, made: Any = None, **options: Any) -> nn.WindowAttention:
    return kind(x.shape[-1], 2, made or x.shape[1:3], dtype=x.dtype, seed=1, **options)


def _shifted(
    x: Any, shift: tuple[int, int], hide: bool = False, side: int = 2, covered: str = "shrink", **options: Any
) -> nn.ShiftedWindows:
    pad_first = options.pop("pad_first", True)
    attention = nn.WindowAttention(x.shape[-1], 2, (side, side), dtype=x.dtype, seed=1, **options)
    return nn.ShiftedWindows(attention, side, shift, mask_padding=hide, covered=covered, pad_first=pad_first)


def _conv(x: Any, kind: Any = nn.Conv2d, **options: Any) -> nn.Conv2d:
    return kind(x.shape[1], 4, (3, 2), dtype=x.dtype, seed=1, **({"padding": 1} | options))


def _batch_norm(x: Any, training: bool = False) -> nn.Layer:
    """In training it stands before a dropout, which shows that it was given the generator."""
    layer = nn.BatchNorm2d(x.shape[1], dtype=x.dtype)
    layer.running_mean.data += 0.3
    layer.running_var.data *= 2
    return nn.Sequential(layer, nn.Dropout(0.3)) if training else layer


_TOKENS: dict[str, Any] = {"D": 4}
_WINDOWS: dict[str, Any] = {"D": 4, "a": 2, "b": 3}
_MAP: dict[str, Any] = {"D": 4, "a": 4, "b": 3}  # two rows of windows, and a last column that is padded

LAYERS = [
    Case("Linear", "BNI", lambda x: nn.Linear(x.shape[-1], 3, dtype=x.dtype, seed=1), layer=True),
    Case("Linear_no_bias", "BI", lambda x: nn.Linear(x.shape[-1], 3, False, dtype=x.dtype, seed=1), layer=True),
    Case("LayerNorm", "BND", lambda x: nn.LayerNorm(x.shape[-1], dtype=x.dtype), layer=True, fixed={"D": 5}),
    Case("GELU", "BND", lambda x: nn.GELU(), layer=True),
    Case("LinearGELU", "BNI", lambda x: nn.LinearGELU(x.shape[-1], 3, dtype=x.dtype, seed=1), layer=True),
    Case("LoRALinear", "BNI", _lora, layer=True, fixed={"I": 3}),
    Case("LoRALinear_no_bias", "BI", lambda x: _lora(x, bias=False), layer=True, fixed={"I": 3}),
    Case("LoRALinearGELU", "BNI", lambda x: _lora(x, nn.LinearGELU), layer=True, fixed={"I": 3}),
    Case("Attention_lora", "BND", lambda x: _with_lora(_attention()(x)), layer=True, fixed=_TOKENS),
    Case("Attention_first_token_lora", "BND", lambda x: _with_lora(_attention(queries=1)(x)), layer=True,
         fixed={**_TOKENS, "N": 3}),
    Case("CosineWindowAttention_lora", "BabD", lambda x: _with_lora(_windows(x, nn.CosineWindowAttention)),
         layer=True, fixed=_WINDOWS),
    Case("Identity", "BND", lambda x: nn.Identity(), layer=True),
    Case("ReLU", "BND", lambda x: nn.ReLU(), layer=True, kink=True),
    Case("Tanh", "BND", lambda x: nn.Tanh(), layer=True),
    Case("Dropout", "BND", lambda x: nn.Dropout(0.4), layer=True, noise=True),
    Case("DropPath", "BND", lambda x: nn.DropPath(0.4), layer=True, noise=True),
    Case("Sequential", "BND", _sequential, layer=True),
    Case("Mlp", "BND", lambda x: _mlp(x), layer=True),
    Case("Mlp_dropout", "BND", lambda x: _mlp(x, drop=0.3), layer=True, noise=True, fixed={"D": 2}),
    Case("Attention", "BND", _attention(), layer=True, fixed=_TOKENS),
    Case("Attention_no_qkv_bias", "BND", _attention(qkv_bias=False), layer=True, fixed=_TOKENS),
    Case("Attention_dropout", "BND", _attention(attn_drop=0.3, proj_drop=0.2), layer=True, fixed=_TOKENS, noise=True),
    Case("Attention_first_queries", "BND", _attention(queries=1), layer=True, fixed=_TOKENS),
    Case("Attention_position_bias", "BND", _attention(position_bias=(2, 1), prefix_tokens=1), layer=True,
         fixed={"D": 4, "N": 3}, empty="B"),
    Case("Block", "BND", _block, layer=True, fixed=_TOKENS),
    Case("Block_noise", "BND", lambda x: _block(x, 0.3, proj_drop=0.2), layer=True, fixed=_TOKENS, noise=True),
    Case("Block_first_queries", "BND", lambda x: _block(x, queries=1), layer=True, fixed=_TOKENS),
    Case("Block_of_identities", "BND", lambda x: _block_of(nn.Identity), layer=True),
    Case("Block_of_dropouts", "BND", lambda x: _block_of(lambda: nn.Dropout(0.0)), layer=True),
    Case("Block_of_identities_post_norm", "BND", lambda x: _block_of(nn.Identity, post_norm=True), layer=True),
    Case("Sequential_of_identities", "BND", lambda x: nn.Sequential(nn.Identity(), nn.Dropout(0.0), nn.DropPath(0.0)),
         layer=True),
    Case("Recompute_identity", "BND", lambda x: nn.Recompute(nn.Identity()), layer=True),
    Case("ShiftedWindows_identity", "BabD", lambda x: nn.ShiftedWindows(_Windowed(), 2, 1), layer=True, fixed=_MAP,
         empty="B"),
    Case("RMSNorm", "BND", lambda x: nn.RMSNorm(x.shape[-1], dtype=x.dtype), layer=True, fixed={"D": 3}),
    Case("LayerScale", "BND", lambda x: nn.LayerScale(x.shape[-1], 0.3, dtype=x.dtype), layer=True),
    Case("QuickGELU", "BND", lambda x: nn.QuickGELU(), layer=True),
    Case("SiLU", "BND", lambda x: nn.SiLU(), layer=True),
    Case("Mlp_quick", "BND", lambda x: nn.Mlp(x.shape[-1], 5, gelu="quick", bias=False, dtype=x.dtype, seed=1),
         layer=True),
    Case("Mlp_norm", "BND",
         lambda x: nn.Mlp(x.shape[-1], 5, norm=nn.LayerNorm(5, dtype=x.dtype), drop=0.2, dtype=x.dtype, seed=1),
         layer=True, noise=True),
    Case("SwiGLU", "BND",
         lambda x: nn.SwiGLU(
             x.shape[-1], 3, align=4, drop=0.2, norm=nn.RMSNorm(4, dtype=x.dtype), dtype=x.dtype, seed=1
         ),
         layer=True, noise=True),
    Case("PackedSwiGLU", "BND", lambda x: nn.PackedSwiGLU(x.shape[-1], 6, dtype=x.dtype, seed=1), layer=True),
    Case("Attention_no_proj_bias", "BND", _attention(proj_bias=False), layer=True, fixed=_TOKENS),
    Case("Heads", "BNF", lambda x: _heads(x[..., :6], attn_drop=0.2), layer=True, fixed={"F": 18}, noise=True),
    Case("DifferentialHeads", "BNF", lambda x: _differential_heads(x[..., :4], attn_drop=0.2), layer=True,
         fixed={"F": 12}, noise=True),
    Case("ComposedAttention", "BND", lambda x: _composed(x, _heads(x), qkv_bias="qv", proj_drop=0.2), layer=True,
         fixed={"D": 6}, noise=True),
    Case("ComposedAttention_differential", "BND", lambda x: _composed(x, _differential_heads(x), proj_bias=False),
         layer=True, fixed=_TOKENS),
    Case("AttentionPool", "BND", _attention_pool, layer=True, fixed=_TOKENS),
    Case("ScaledBlock", "BND", lambda x: _scaled_block(x, drop_path=0.3, proj_drop=0.2), layer=True, fixed=_TOKENS,
         noise=True),
    Case("ScaledBlock_first_queries", "BND", lambda x: _scaled_block(x, queries=1), layer=True, fixed=_TOKENS),
    Case("Branch", "BND", lambda x: nn.Branch("mlp", nn.RMSNorm(x.shape[-1], dtype=x.dtype), _mlp(x), None, 0.2),
         layer=True, noise=True, fixed={"D": 3}),
    Case("ParallelThingsBlock", "BND", lambda x: _parallel_things(x, 0.2), layer=True, fixed=_TOKENS, noise=True),
    Case("ParallelScalingBlock", "BND",
         lambda x: _parallel_scaling(x, _heads(x), qkv_bias=False, proj_drop=0.2, drop_path=0.2), layer=True,
         fixed={"D": 6}, noise=True),
    Case("ParallelScalingBlock_differential", "BND", lambda x: _parallel_scaling(x, _differential_heads(x), fused=True),
         layer=True, fixed=_TOKENS),
    Case("PatchEmbed", "BCab", _patch_embed, layer=True, fixed={"a": 2, "b": 6}, empty="B"),
    Case("PatchEmbed_norm", "BCab", lambda x: _patch_embed(x, norm_eps=1e-5), layer=True, fixed={"a": 2, "b": 3},
         empty="B"),
    Case("WindowAttention", "BabD", lambda x: _windows(x), layer=True, fixed=_WINDOWS, empty="B"),
    Case("WindowAttention_smaller", "BabD", lambda x: _windows(x, made=(3, 4)), layer=True, fixed=_WINDOWS, empty="B"),
    Case("CosineWindowAttention", "BabD", lambda x: _windows(x, nn.CosineWindowAttention, cpb_hidden=3), layer=True,
         fixed=_WINDOWS, empty="B"),
    Case("CosineWindowAttention_no_bias", "BabD",
         lambda x: _windows(x, nn.CosineWindowAttention, cpb_hidden=2, qkv_bias=False, pretrained_window=(4, 4)),
         layer=True, fixed=_WINDOWS, empty="B"),
    Case("ShiftedWindows", "BabD", lambda x: _shifted(x, (1, 1)), layer=True, fixed=_MAP, empty="B"),
    Case("ShiftedWindows_noise", "BabD", lambda x: _shifted(x, (1, 0), attn_drop=0.3, proj_drop=0.2), layer=True,
         fixed=_MAP, noise=True, empty="B"),
    Case("ShiftedWindows_padding_masked", "BabD", lambda x: _shifted(x, (0, 1), hide=True, mask_value=-np.inf),
         layer=True, fixed=_MAP, empty="B"),
    Case("ShiftedWindows_padded_after", "BabD", lambda x: _shifted(x, (1, 1), side=3, pad_first=False), layer=True,
         fixed=_MAP, empty="B"),
    Case("ShiftedWindows_covered_shift", "BabD", lambda x: _shifted(x, (2, 2), side=4, covered="shift"), layer=True,
         fixed=_MAP, empty="B"),
    Case("PatchMerging", "BabD", lambda x: nn.PatchMerging(x.shape[-1], dtype=x.dtype, seed=1), layer=True,
         fixed={"D": 2}, empty="B"),
    Case("PatchMerging_post_norm", "BabD",
         lambda x: nn.PatchMerging(x.shape[-1], post_norm=True, dtype=x.dtype, seed=1),
         layer=True, fixed={"D": 2}, empty="B"),
    Case("Conv2d", "BCab", _conv, layer=True, empty="B"),
    Case("Conv2d_strided_groups", "BCab", lambda x: _conv(x, stride=2, groups=2, bias=False), layer=True,
         fixed={"C": 4}, empty="B"),
    Case("StdConv2d", "BCab", lambda x: _conv(x, nn.StdConv2d, dilation=(1, 2)), layer=True, fixed={"b": 4},
         empty="B"),
    Case("StdConv2d_outside", "BCab", lambda x: _conv(x, nn.StdConv2d, eps=0.1, outside=True), layer=True, empty="B"),
    Case("StdConv2d_no_bias", "BCab", lambda x: _conv(x, nn.StdConv2d, stride=2, bias=False), layer=True, empty="B"),
    Case("Bottleneck", "BCab", lambda x: nn.Bottleneck(x.shape[1], 16, 1, 1, dtype=x.dtype, seed=1), layer=True,
         fixed={"C": 16, "a": 3, "b": 2}, empty="B"),
    Case("Bottleneck_projection", "BCab", lambda x: nn.Bottleneck(x.shape[1], 16, 2, 2, dtype=x.dtype, seed=1),
         layer=True, fixed={"C": 4, "a": 3, "b": 4}, empty="B"),
    Case("GroupNorm", "BCab", lambda x: nn.GroupNorm(2, x.shape[1], dtype=x.dtype), layer=True,
         fixed={"C": 4, "a": 3}, empty="B"),
    Case("BatchNorm2d", "BCab", _batch_norm, layer=True, empty="B"),
    Case("BatchNorm2d_training", "BCab", lambda x: _batch_norm(x, training=True), layer=True, noise=True,
         fixed={"a": 3, "b": 2}, empty="B"),
    Case("MaxPool2d", "BCab", lambda x: nn.MaxPool2d(3, 2, 1), layer=True, empty="B"),
    Case("AvgPool2d", "BCab", lambda x: nn.AvgPool2d(3, 1, 1), layer=True, empty="B"),
    Case("AdaptiveAvgPool2d", "BCab", lambda x: nn.AdaptiveAvgPool2d(1), layer=True, empty="B"),
    Case("Block_post_norm", "BND", lambda x: _block(x, 0.3, post_norm=True), layer=True, fixed=_TOKENS, noise=True),
    Case("Recompute", "BND", lambda x: nn.Recompute(_mlp(x, drop=0.3)), layer=True, noise=True, fixed={"D": 2}),
]  # fmt: skip


def _vit(**options: Any) -> Callable[[Any], Any]:
    def build(x: Any) -> ViT:
        size: dict[str, Any] = {"img_size": (4, 4), "patch_size": 2, "in_chans": 1, "num_classes": 3}
        size |= {"embed_dim": 4, "depth": 2, "num_heads": 2, "mlp_ratio": 1.5}
        return ViT(**(size | options), dtype=x.dtype, seed=1)

    return build


_IMAGES: dict[str, Any] = {"B": 2, "C": 1, "a": 4, "b": 4}
_LARGE: dict[str, Any] = {"B": 2, "C": 1, "a": 6, "b": 6}
_HYBRID: dict[str, Any] = {"B": 2, "C": 2, "a": 9, "b": 12}
_STEM = {"in_chans": 2, "resnet_width": 4, "resnet_groups": 2}  # filters of at least 4 numbers
_NOISE = {
    "drop_rate": 0.2,
    "pos_drop_rate": 0.1,
    "proj_drop_rate": 0.1,
    "attn_drop_rate": 0.2,
    "drop_path_rate": 0.3,
}


def _model(name: str, noise: bool = False, images: dict[str, Any] = _IMAGES, **options: Any) -> Case:
    return Case(name, "BCab", _vit(**options), layer=True, fixed=images, noise=noise, empty="B")


def _swin(name: str, noise: bool = False, kind: Any = Swin, **options: Any) -> Case:
    """Maps of 5x4 and 3x2, windows of 2x2: shifted, padded, merged from an odd side, and covered whole on one axis."""

    def build(x: Any) -> Swin:
        size: dict[str, Any] = {"img_size": (9, 8), "patch_size": 2, "in_chans": 1, "num_classes": 3, "embed_dim": 4}
        size |= {"depths": (2, 2), "num_heads": (1, 2), "window_size": 2, "mlp_ratio": 1.5, "drop_path_rate": 0.0}
        return kind(**(size | options), dtype=x.dtype, seed=1)

    return Case(name, "BCab", build, layer=True, fixed={"B": 2, "C": 1, "a": 9, "b": 8}, noise=noise, empty="B")


def _swin_v2(name: str, noise: bool = False, **options: Any) -> Case:
    return _swin(name, noise, SwinV2, **({"cpb_hidden": 3} | options))


MODELS = [
    _model("ViT"),
    _model("ViT_all_tokens", skip_unused_tokens=False),
    _model("ViT_noise", noise=True, **_NOISE),
    _model("ViT_average", global_pool="avg", class_token=False),
    _model("ViT_average_with_class_token", global_pool="avg"),
    _model("ViT_distilled", distilled=True),
    _model("ViT_distilled_features", distilled=True, num_classes=0),
    _model("ViT_pre_logits", representation_size=3),
    _model("ViT_features", num_classes=0),
    _model("ViT_patch_norm", patch_norm=True, gelu="tanh"),
    _model("ViT_no_positions", pos_embed="none", qkv_bias=False),
    _model("ViT_learned_2d", pos_embed="learned_2d"),
    _model("ViT_sincos_1d", pos_embed="sincos_1d"),
    _model("ViT_sincos_2d", pos_embed="sincos_2d", weight_init="jax"),
    _model("ViT_relative", pos_embed="relative"),
    _model("ViT_padded", images={"B": 2, "C": 1, "a": 5, "b": 3}, img_size=(5, 3), partial_patches="pad"),
    _model("ViT_dropped", images={"B": 2, "C": 1, "a": 5, "b": 3}, img_size=(5, 3), partial_patches="drop"),
    _model("ViT_dynamic", images={"B": 2, "C": 1, "a": 6, "b": 2}, dynamic_img_size=True),
    _model("ViT_registers", reg_tokens=2, no_embed_class=True, init_values=0.5),
    _model("ViT_registers_average", reg_tokens=2, class_token=False, global_pool="avg", pool_include_prefix=True),
    _model("ViT_pre_norm", pre_norm=True, gelu="quick", norm_eps=1e-5),
    _model("ViT_map", class_token=False, global_pool="map", reg_tokens=1),
    _model("ViT_no_last_norm", final_norm=False),
    _model("ViT_rms_swiglu", norm_layer="rmsnorm", mlp_layer="swiglu", patch_norm=True, proj_bias=False),
    _model("ViT_packed_swiglu", mlp_layer="swiglu_packed", scale_mlp_norm=True),
    _model("ViT_norms_within", scale_attn_norm=True, scale_mlp_norm=True, qk_norm=True, embed_dim=16),
    _model("ViT_rotary", pos_embed="rotary", embed_dim=8, reg_tokens=1, qkv_bias="qv"),
    _model("ViT_rotary_dynamic", pos_embed="rotary", embed_dim=8, images=_LARGE, dynamic_img_size=True),
    _model("ViT_relative_norms", qk_norm=True, pos_embed="relative"),
    _model("ViT_differential", attn_layer="diff", noise=True, **_NOISE),
    _model("ViT_parallel_things", block_fn="parallel_things", init_values=0.5, noise=True, **_NOISE),
    _model("ViT_parallel_scaling", block_fn="parallel_scaling", qk_norm=True, norm_layer="rmsnorm", qkv_bias=False),
    _model("ViT_differential_parallel", block_fn="diff_parallel_scaling", init_values=0.5),
    _model("ViT_hybrid", images=_HYBRID, img_size=(9, 12), resnet_layers=(1, 1), patch_size=1, **_STEM),  # map of 2x2
    _model(
        "ViT_hybrid_root",
        images=_HYBRID,
        img_size=(12, 8),
        dynamic_img_size=True,
        resnet_layers=(),
        patch_size=(3, 1),
        **_STEM,
    ),  # map of 3x3
    _swin("Swin_dropped", partial_patches="drop", ape=True),
    _swin("Swin"),
    _swin("Swin_noise", noise=True, **_NOISE),
    _swin("Swin_absolute_positions", ape=True, img_size=(6, 8), patch_norm=False, qkv_bias=False),
    _swin("Swin_strict_masks", mask_value=-np.inf, mask_padding=True, gelu="tanh"),
    _swin("Swin_odd_depth_features", depths=(1, 2), allow_odd_depths=True, num_classes=0),
    _swin("Swin_padded_after", pad_first=False, img_size=10, window_size=3),
    _swin("Swin_covered_stay", covered="stay", window_size=3),
    _swin_v2("SwinV2_covered_shift", covered="shift", window_size=3),
    _swin_v2("SwinV2"),
    _swin_v2("SwinV2_noise", noise=True, **_NOISE),
    _swin_v2("SwinV2_pretrained_windows", pretrained_window_sizes=(3, 2), mask_padding=True),
    _model("ViT_dynamic_2d", images={"B": 2, "C": 1, "a": 2, "b": 6}, dynamic_img_size=True, pos_embed="learned_2d"),
]

PARTS = FUNCTIONS + LAYERS
EVERYTHING = PARTS + MODELS


def name_of(case: Case) -> str:
    return case.name
