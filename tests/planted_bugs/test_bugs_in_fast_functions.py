"""The fast functions with one line changed, as a slip of the pen would: the checks of the table must find each.

The gradient checks find a wrong gradient; the comparison with the formula finds a wrong function.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from table import EVERYTHING
from test_fast import close, results

import minivit
from minivit.fast import blocks
from minivit.fast.numpy import REPLACEMENTS, activation, attention, convolution, linear, norm, pooling
from minivit.gradcheck import GradientError

CASES = {case.name: case for case in EVERYTHING}


def composite(name: str) -> Any:
    """A replacement that is its formula on fast parts: a function of its own, with the formula's source."""
    return REPLACEMENTS[name].function


# the function, what its source says, what it says with the bug, and a line of the table that finds it
BUGS: list[tuple[Callable[..., Any], str, str, str]] = [
    (activation.gelu, 'np.array(x, order="C")', "x", "gelu"),
    (activation.gelu_in_place, "np.multiply(dy, slope, out=slope)", "slope", "gelu_fitted"),
    (activation.gelu_in_place, "density *= part", "pass", "gelu_fitted"),
    (activation.gelu_in_place, "density += cdf", "pass", "gelu_fitted"),
    (activation._fitted_cdf, "density *= _NORMAL_DENSITY_AT_0", "pass", "gelu_fitted"),
    (activation._fitted_cdf, "cdf += _FIT_START", "pass", "gelu_fitted"),
    (activation._tanh_cdf, "density *= 1 - tanh * tanh", "pass", "gelu_tanh_fast"),
    (activation._tanh_cdf, "1 - tanh * tanh", "1 - tanh", "gelu_tanh_fast"),
    (activation._tanh_cdf, "squares *= 3 * 0.044715 * root", "squares *= 0.044715 * root", "gelu_tanh_fast"),
    (activation.linear_gelu, "back_linear(back_gelu(dy))", "back_linear(dy)", "linear_gelu_fast"),
    (activation.softmax, "weighted - y * weighted.sum(axis=-1, keepdims=True)", "weighted", "softmax"),
    (activation.softmax, "weighted.sum(axis=-1", "weighted.sum(axis=0", "softmax"),
    (activation.exponentials, "scores *= mask.astype(scores.dtype)", "pass", "attention_masked"),
    (attention.attend, "y *= norm", "pass", "attention"),
    (attention.attend, "dsum = dy * norm", "dsum = dy * 1", "attention"),
    (attention.attend, "dsum *= scale", "dsum *= 1", "attention_biased"),
    (attention.attend, 'np.einsum("...nd,...nd->...n", dsum, y)[..., None]', "0", "attention"),
    (attention.attend, "dscores *= weights", "pass", "attention"),
    (attention.attend, "np.matmul(dscores, k, out=dq)", "np.matmul(dscores * scale, k, out=dq)", "attention"),
    (attention.attend, "dscores.swapaxes(-1, -2), q,", "dscores.swapaxes(-1, -2), q * scale,", "attention"),
    (attention.attend, "sum_to(dscores, bias.shape) / scale", "sum_to(dscores, bias.shape)", "attention_biased"),
    (attention.attend, "(weights if keep is None else weights * keep).swapaxes", "weights.swapaxes",
     "attention_dropout"),
    (attention.attend, "dscores *= keep", "pass", "attention_dropout"),
    (attention.self_attention, "*dparts)", "*dparts[::-1])", "self_attention"),
    (attention.self_attention, "merge_heads(heads)", "merge_heads(heads[..., ::-1])", "self_attention"),
    (attention.self_attention, "back_merge(dy)", "dy.reshape(heads.shape)", "self_attention"),
    (blocks.attention_in_blocks, "dk += dk_part", "dk = dk_part", "attention_in_blocks_reused"),
    (blocks.attention_in_blocks, "dv += dv_part", "pass", "attention_in_blocks"),
    (blocks.attention_in_blocks, "run(part, replay,", "run(part, rng,", "attention_in_blocks"),
    (blocks.attention_in_blocks, "[...] += dbias_part", "[...] = dbias_part", "attention_in_blocks_one_bias"),
    (convolution.conv2d, "y += bias[:, None, None]", "pass", "conv2d"),
    (convolution.conv2d, "dy.sum(axis=(0, 2, 3))", "dy[0].sum(axis=(1, 2))", "conv2d"),
    (convolution._gradient_by_flipped_filters, "filters[..., ::-1, ::-1]", "filters", "conv2d_same"),
    (convolution._gradient_by_folding, "inner(padded, how, size)", "padded[..., : size[0], : size[1]]",
     "conv2d_strided"),
    (convolution._fold, "+= dtaps", "= dtaps", "conv2d_strided"),
    (linear.linear, "y += bias", "pass", "linear"),
    (linear.linear, "(flat_dy @ weight)", "(flat_dy @ weight / len(flat_dy))", "linear"),
    (linear.linear, "flat_dy.T @ flat,", "flat_dy[:1].T @ flat[:1],", "linear"),
    (linear.sum_rows, "np.ones(len(x), x.dtype) @ x", "x[0]", "linear"),
    (linear.embedding, "scatter_add(index.reshape(-1), rows(dy), len(table))", "rows(dy)[: len(table)]", "embedding"),
    (linear.scatter_add, "np.add.reduceat(values[order], starts, axis=0)", "values[order][starts]", "embedding"),
    (linear.scatter_add, "out[ordered[starts]]", "out[index[starts]]", "relative_position_bias"),
    (norm.layer_norm, 'np.einsum("ij,ij->j", drows, xhat)', "drows[0] * xhat[0]", "layer_norm"),
    (norm.layer_norm, "sum_rows(drows)", "drows[0]", "layer_norm"),
    (norm.layer_norm, "drows if weight is None else drows * weight", "drows", "layer_norm"),
    (norm.normalize_rows, "variance += eps", "pass", "layer_norm_plain"),
    (norm.normalize_rows, 'np.einsum("ij,ij->i", xhat, xhat)[:, None] / width',
     'np.einsum("ij,ij->i", xhat, xhat)[:, None] / (width - 1)', "layer_norm"),
    (norm.normalize_rows_backward, "dx -= dxhat @ average", "pass", "layer_norm"),
    (norm.normalize_rows_backward, "along /= width", "pass", "layer_norm"),
    (norm.normalize_rows_backward, "dx *= rstd", "pass", "layer_norm_plain"),
    (norm.group_norm, "y += by_channel(bias)", "pass", "group_norm"),
    (norm.group_norm, 'np.einsum("bcs,bcs->c", dy, xhat.reshape(maps))', "dy.sum(axis=(0, 2))", "group_norm"),
    (norm.group_norm, "dy if weight is None else dy * by_channel(weight)", "dy", "group_norm"),
    (norm.normalize, "(dy - y * along) / length", "dy / length", "normalize"),
    (pooling.max_pool2d, "np.where(taken == number", "np.where(taken <= number", "max_pool2d"),
    (pooling.max_pool2d, "np.maximum(y, padded[tap], out=y)", "np.minimum(y, padded[tap], out=y)", "max_pool2d"),
    (pooling.max_pool2d, "dpadded[tap] += ", "dpadded[tap] = ", "max_pool2d_overlapping"),
    (composite("standardize_weight"), "dfilters.reshape(weight.shape)", "dy", "standardize_weight"),
    (composite("patch_embed"), "back_patchify(dpatches)", "images", "patch_embed"),
    (composite("relative_position_bias"), ".T, rows)", ".T[::-1], rows)", "relative_position_bias"),
    (composite("cosine_attention"), "scale.shape) * scale * free", "scale.shape) * free", "cosine_attention"),
    (composite("cosine_attention"), "back_q(dq_scaled * scale)", "back_q(dq_scaled)", "cosine_attention"),
]  # fmt: skip


def plant(patch: pytest.MonkeyPatch, function: Any, line: str, bug: str) -> None:
    """Put a bug into a function wherever it is used: the function stays the same object, with other code."""
    source = inspect.getsource(function)
    assert source.count(line) == 1, f"{function.__name__} says {line!r} {source.count(line)} times"
    name = f"{function.__name__} with a bug"
    found: dict[str, Any] = dict(function.__globals__)
    exec(compile(source.replace(line, bug), name, "exec"), found)
    patch.setattr(function, "__code__", found[function.__name__].__code__)


def check(name: str) -> None:
    """The checks of the table, and the formula's numbers."""
    case = CASES[name]
    args = case.arguments(seed=2)
    minivit.check_vjp(case.callable(args), *args)
    if case.analytic:
        minivit.check_complex_step(case.callable(args), *args)
    for dtype, bound in (("float32", 1e-5), ("float64", 1e-11)):
        cast = tuple(arg.astype(dtype) for arg in args)
        for fast, plain in zip(results(case, cast, 3, "auto"), results(case, cast, 3, "plain")):
            close(fast, plain, bound)


@pytest.mark.parametrize(("function", "line", "bug", "case"), BUGS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_changed_fast_function_is_caught(
    function: Any, line: str, bug: str, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(case)  # healthy before
    plant(monkeypatch, function, line, bug)
    with np.errstate(all="ignore"), pytest.raises((GradientError, ValueError, AssertionError)):
        check(case)


def test_every_replacement_has_a_bug_here() -> None:
    changed = {function.__name__ for function, *_ in BUGS}
    # the attention of all queries together or in blocks; for AdamW see test_optimizers.py; LoRA is its formula with the
    # linear map of this file
    assert set(REPLACEMENTS) - changed == {"scaled_dot_product_attention", "adamw_step", "lora_linear"}
    assert {"attend", "attention_in_blocks"} <= changed
