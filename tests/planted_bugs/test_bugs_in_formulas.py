"""The formulas themselves with one line changed, as a slip of the pen would: the checks of the table must find each.

The other files of planted bugs do the same to the fast functions and to layers.
"""

from __future__ import annotations

import inspect
import sys
from typing import Any

import numpy as np
import pytest
from table import EVERYTHING

import minivit
from minivit import functional as F
from minivit.gradcheck import GradientError

CASES = {case.name: case for case in EVERYTHING}

# the function, what its source says, what it says with the bug, and a line of the table that finds it
BUGS = [
    ("layer_norm", "(dxhat - by_mean - by_std)", "(dxhat - by_std)", "layer_norm"),
    ("layer_norm", "(dxhat - by_mean - by_std)", "(dxhat - by_mean)", "layer_norm"),
    ("layer_norm", "dxhat = dy if weight is None else dy * weight", "dxhat = dy", "layer_norm"),
    ("layer_norm", "dx = rstd * (", "dx = (", "layer_norm_plain"),
    ("group_norm", "back_normalize(dxhat.reshape(grouped))", "back_normalize(dy.reshape(grouped))", "group_norm"),
    ("normalize", "(dy - y * along) / length", "dy / length", "normalize"),
    ("batch_norm", "(dy * xhat).sum(axis=(0, 2))", "(dy * xhat).mean(axis=(0, 2))", "batch_norm"),
    ("softmax", "dy - (dy * y).sum(axis=-1, keepdims=True)", "dy", "softmax"),
    ("softmax", "(dy * y).sum(axis=-1, keepdims=True)", "(dy * y).sum(axis=0, keepdims=True)", "softmax"),
    ("log_softmax", "dy.sum(axis=-1, keepdims=True)", "1", "log_softmax"),
    ("gelu", "cdf + x * density", "cdf", "gelu"),
    ("linear_gelu", "back_linear(back_gelu(dy))", "back_linear(dy)", "linear_gelu"),
    ("gelu", "cdf + x * density", "cdf + density", "gelu_tanh"),
    ("sigmoid", "dy * y * (1 - y)", "dy * y", "sigmoid"),
    ("tanh", "1 - y * y", "1 - y", "tanh"),
    ("linear", "rows(dy).T @ rows(x)", "rows(x).T @ rows(dy)", "linear"),
    ("linear", "rows(dy).sum(axis=0)", "rows(dy).mean(axis=0)", "linear"),
    ("linear", "dx = dy @ weight", "dx = dy @ weight / len(dy)", "linear"),
    ("lora_linear", "(scale * dscaled)", "dscaled", "lora_linear"),
    ("lora_linear", "return dx + linear(dy, weight.T)[0]", "return dx", "lora_linear"),
    ("lora_linear", "(scale * lora_b)", "lora_b", "lora_linear_no_bias"),
    ("embedding", "scatter_add(index.reshape(-1), rows(dy), len(table))", "rows(dy)[: len(table)]", "embedding"),
    ("scaled_dot_product_attention", "dq = scale * (dscores @ k)", "dq = dscores @ k", "attention"),
    ("scaled_dot_product_attention", "dk = scale * (dscores", "dk = (dscores", "attention"),
    ("scaled_dot_product_attention", "dropped.swapaxes(-1, -2) @ dy", "weights.swapaxes(-1, -2) @ dy",
     "attention_dropout"),
    ("scaled_dot_product_attention", "back_softmax(back_dropout(dy @ v.swapaxes(-1, -2)))",
     "back_softmax(dy @ v.swapaxes(-1, -2))", "attention_dropout"),
    ("scaled_dot_product_attention", "sum_to(dscores, bias.shape)", "sum_to(scale * dscores, bias.shape)",
     "attention_biased"),
    ("self_attention", "back_split(dq, dk, dv)", "back_split(dk, dq, dv)", "self_attention"),
    ("cosine_attention", "scale.shape) * scale * free", "scale.shape) * free", "cosine_attention"),
    ("cosine_attention", "back_q(dq_scaled * scale)", "back_q(dq_scaled)", "cosine_attention"),
    ("conv2d", "filters.swapaxes(-1, -2) @ dproduct", "filters[..., ::-1].swapaxes(-1, -2) @ dproduct", "conv2d"),
    ("conv2d", ".sum(axis=0)  # (G, O/G, F)", ".mean(axis=0)", "conv2d"),
    ("max_pool2d", "taken == ", "taken <= ", "max_pool2d_overlapping"),
    ("avg_pool2d", "(dy * share)", "dy", "avg_pool2d"),
    ("mean_pool", "dy * (1 / count)", "dy", "mean_pool"),
    ("standardize_weight", "back_normalize(dy.reshape(filters.shape))", "back_normalize(filters)",
     "standardize_weight"),
    ("patch_embed", "back_patchify(dpatches)", "back_patchify(dpatches * 0)", "patch_embed"),
    ("residual", "return dy, back_drop(dy)", "return dy, dy", "residual"),
    ("residual", "return dy, back_drop(dy)", "return back_drop(dy), dy", "residual"),
    ("split_qkv", "stack(dparts, axis=-3)", "stack(dparts[::-1], axis=-3)", "split_qkv"),
    ("continuous_position_table", "back_sigmoid(dy * 16)", "back_sigmoid(dy)", "continuous_position_table"),
    ("relative_position_bias", ".T, rows)", ".T[::-1], rows)", "relative_position_bias"),
    ("softmax_cross_entropy", "-dloss / len(logits)", "-dloss", "cross_entropy"),
    ("mean_squared_error", "2 * dloss", "dloss", "mean_squared_error"),
    ("swiglu", "dy * opened", "dy * value", "swiglu"),
    ("layer_scale", "dy * gamma, rows", "dy, rows", "layer_scale"),
    ("rms_norm", "dxhat - by_rms", "dxhat", "rms_norm"),
    ("rotary", "dturned[..., half:], -dturned", "-dturned[..., half:], dturned", "rotary"),
    ("differential_attention", "-(dy * heads2)", "(dy * heads2)", "differential_attention"),
]  # fmt: skip


def changed(name: str, line: str, bug: str) -> Any:
    """The formula with one piece of its source replaced, in the globals of its own file."""
    formula = getattr(F, name).plain
    source = inspect.getsource(formula)
    assert line in source, f"{name} no longer says {line!r}"
    module = vars(sys.modules[formula.__module__])
    found: dict[str, Any] = {}
    exec(compile(source.replace(line, bug), f"{name} with a bug", "exec"), module, found)
    return found[name]


def check(name: str) -> None:
    case = CASES[name]
    args = case.arguments(seed=2)
    noise = 3 if case.noise else None
    with minivit.plain():
        minivit.check_vjp(case.callable(args), *args, rng_seed=noise)
        minivit.check_complex_step(case.callable(args), *args, rng_seed=noise)


@pytest.mark.parametrize(("name", "line", "bug", "case"), BUGS, ids=lambda value: str(value)[:32])
def test_a_changed_formula_is_caught(
    name: str, line: str, bug: str, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(case)  # healthy before
    formula, wrong = getattr(F, name), changed(name, line, bug)
    # the public function keeps its formula in a closure, which is where the choice finds it
    (cell,) = [cell for cell in formula.__closure__ if cell.cell_contents is formula.plain]
    monkeypatch.setattr(cell, "cell_contents", wrong)
    with np.errstate(all="ignore"), pytest.raises((GradientError, ValueError, AssertionError)):
        check(case)


def test_every_function_with_a_derivative_has_a_bug_here() -> None:
    moves = {"merge_heads", "split_heads", "patchify", "unpatchify", "pad", "crop", "roll", "patch_merging"}
    moves |= {"window_partition", "window_reverse", "shifted_windows", "shifted_windows_reverse"}
    moves |= {"resize_grid", "resize_images"}  # permutations, and linear resizing
    simple = {"relu", "dropout", "drop_path", "adaptive_avg_pool2d", "quick_gelu", "silu"}
    differentiable = {name for name in F.__all__ if hasattr(getattr(F, name), "plain")}
    assert differentiable - moves - simple == {name for name, *_ in BUGS}
