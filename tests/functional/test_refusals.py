"""Arguments just outside what a function takes are refused by name, and those just inside are taken."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from minivit import functional as F


def z(*shape: int) -> Any:
    return np.zeros(shape)


REFUSED: dict[str, Any] = {
    "gelu's approximation": (lambda: F.gelu(z(2), "sigmoid"), "approximate='sigmoid': choose 'none' or 'tanh'"),
    "linear_gelu's": (lambda: F.linear_gelu(z(2, 3), z(4, 3), None, "erf"), "approximate='erf'"),
    "linear_gelu's bias": (lambda: F.linear_gelu(z(2, 3), z(4, 3), z(3)), r"bias must have shape \(4,\)"),
    "linear's input": (lambda: F.linear(z(2, 4), z(4, 3)), "linear"),
    "linear's bias": (lambda: F.linear(z(2, 3), z(4, 3), z(1)), r"bias must have shape \(4,\)"),
    "another head size": (lambda: F.scaled_dot_product_attention(z(2, 3, 4), z(2, 3, 5), z(2, 3, 5)), "same last axis"),
    "other values": (lambda: F.scaled_dot_product_attention(z(2, 3, 4), z(2, 5, 4), z(2, 3, 4)), "same tokens"),
    "another batch": (lambda: F.scaled_dot_product_attention(z(2, 3, 4), z(1, 3, 4), z(1, 3, 4)), "leading axes"),
    "two thirds of qkv": (lambda: F.self_attention(z(2, 3, 8), 2), "must be 3 D with D divisible by num_heads=2"),
    "heads of half a channel": (lambda: F.self_attention(z(2, 3, 9), 2), "must be 3 D"),
    "no heads": (lambda: F.self_attention(z(2, 3, 6), 0), "num_heads=0"),
    "negative heads": (lambda: F.split_heads(z(2, 3, 6), -2), "-2 heads do not divide 6 channels"),
    "no heads to split into": (lambda: F.split_heads(z(2, 3, 6), 0), "0 heads"),
    "heads that do not divide": (lambda: F.split_heads(z(2, 3, 6), 4), "4 heads do not divide 6 channels"),
    "parts that do not divide": (lambda: F.split_qkv(z(2, 3, 8), 2), "2 heads do not divide 8 / 3 channels"),
    "heads of a part": (lambda: F.split_qkv(z(2, 3, 9), 2), "2 heads do not divide 9 / 3 channels"),
    "no parts": (lambda: F.split_qkv(z(2, 3, 8), 2, 0), "8 / 0 channels"),
    "no heads of parts": (lambda: F.split_qkv(z(2, 3, 8), 0, 2), "0 heads do not divide 8 / 2"),
    "batch_norm of a vector": (lambda: F.batch_norm(z(3)), r"x must be \(B, C, ...\), got shape \(3,\)"),
    "group_norm of a vector": (lambda: F.group_norm(z(3), 1, None, None), r"x must be \(B, C, ...\)"),
    "no groups": (lambda: F.group_norm(z(2, 4), 0, None, None), "groups=0 must divide the 4 channels"),
    "groups that do not divide": (lambda: F.group_norm(z(2, 4), 3, None, None), "groups=3 must divide"),
    "groups of nothing": (lambda: F.group_norm(z(2, 4, 0), 2, None, None), "nothing to normalize over"),
    "group_norm's weight": (lambda: F.group_norm(z(2, 4), 2, z(2), None), "group_norm"),
    "layer_norm's bias": (lambda: F.layer_norm(z(2, 4), z(4), z(2)), "layer_norm"),
    "layer_norm of a number": (lambda: F.layer_norm(np.zeros(()), None, None), "no channels"),
    "layer_norm of no channels": (lambda: F.layer_norm(z(2, 0), None, None), "no channels"),
    "one number's variance": (lambda: F.batch_norm(z(1, 3, 1, 1)), "no variance"),
    "a mean alone": (lambda: F.batch_norm(z(4, 3), z(3)), "both running_mean and running_var"),
    "a variance alone": (lambda: F.batch_norm(z(4, 3), None, z(3)), "both running_mean and running_var"),
    "a rate of 1": (lambda: F.dropout(z(2), 1.0), r"dropout rate must lie in \[0, 1\), got 1.0"),
    "a branch of another shape": (lambda: F.residual(z(2, 3), z(2, 1)), r"residual: .* shape of x, \(2, 3\), got"),
    "a rate of a residual connection": (lambda: F.residual(z(2), z(2), 1.0), r"drop_path rate must lie in \[0, 1\)"),
    "a negative rate": (lambda: F.drop_path(z(2, 3), -0.1), r"drop_path rate must lie in \[0, 1\), got -0.1"),
    "index of fractions": (lambda: F.embedding(z(2), z(3, 2)), "index must be integers, got float64"),
    "an index below": (lambda: F.embedding(np.array([0, -1]), z(3, 2)), "index -1 is outside the table of 3 rows"),
    "an index above": (lambda: F.embedding(np.array([3, 0]), z(3, 2)), "index 3 is outside the table of 3 rows"),
    "logits of a vector": (lambda: F.softmax_cross_entropy(z(3), np.array([0])), r"logits must be \(B, K\)"),
    "too much smoothing": (lambda: F.softmax_cross_entropy(z(1, 3), np.array([0]), 1.1), r"lie in \[0, 1\], got 1.1"),
    "negative smoothing": (lambda: F.softmax_cross_entropy(z(1, 3), np.array([0]), -0.1), r"lie in \[0, 1\], got -0.1"),
    "a list of labels": (lambda: F.softmax_cross_entropy(z(1, 3), [0]), "labels is a list"),
    "soft targets of other classes": (lambda: F.softmax_cross_entropy(z(2, 3), z(2, 4)), "are of 4 classes"),
    "labels of another batch": (lambda: F.softmax_cross_entropy(z(2, 3), np.array([0])), "1 labels for the 2 rows"),
    "another target": (lambda: F.mean_squared_error(z(2, 3), z(3, 2)), "differ in shape"),
    "a mean of nothing": (lambda: F.mean_pool(z(2, 0, 3)), "axis 1 of shape"),
    "images without a batch": (lambda: F.patchify(z(3, 4, 4), 2), r"images must be \(B, C, H, W\)"),
    "a height that patches do not divide": (lambda: F.patchify(z(1, 3, 5, 4), 2), "5"),
    "a width that patches do not divide": (lambda: F.patchify(z(1, 3, 4, 5), 2), "5"),
    "rows of another grid": (lambda: F.unpatchify(z(1, 5, 4), (2, 2), (2, 3)), "do not make a grid"),
    "rows of another patch": (lambda: F.unpatchify(z(1, 6, 6), (2, 2), (2, 3)), "do not make a grid"),
    "flat rows": (lambda: F.unpatchify(z(6, 4), (2, 2), (2, 3)), "do not make a grid"),
    "a map of no batch": (lambda: F.adaptive_avg_pool2d(z(3, 4, 4), 2), r"x must be \(B, C, H, W\)"),
    "an empty map": (lambda: F.adaptive_avg_pool2d(z(1, 3, 0, 4), 2), "0x4"),
    "no cells": (lambda: F.adaptive_avg_pool2d(z(1, 3, 4, 4), (2, 0)), "2x0"),
    "pools of no batch": (lambda: F.max_pool2d(z(3, 4, 4), 2), r"max_pool2d: x must be \(B, C, H, W\)"),
    "more padding than half the kernel": (lambda: F.avg_pool2d(z(1, 1, 4, 4), 3, 1, 2), "more than half the kernel"),
    "too much padding of rows alone": (lambda: F.max_pool2d(z(1, 1, 4, 4), 3, 1, (2, 0)), "more than half the kernel"),
    "too much padding of columns alone": (lambda: F.avg_pool2d(z(1, 1, 4, 4), 3, 1, (1, 2)), "more than half"),
    "a convolution of no batch": (lambda: F.conv2d(z(3, 4, 4), z(2, 3, 1, 1)), r"x must be \(B, C, H, W\)"),
    "flat filters": (lambda: F.conv2d(z(1, 3, 4, 4), z(2, 3)), r"weight must be \(O, C/groups, Kh, Kw\)"),
    "filters of nothing": (lambda: F.standardize_weight(z(2, 3, 0)), "no numbers to average"),
    "filters of one axis": (lambda: F.standardize_weight(z(2)), "no numbers to average"),
}
TAKEN: dict[str, Any] = {
    "smoothing of 1": lambda: F.softmax_cross_entropy(z(1, 3), np.array([2]), 1.0),
    "a rate of 0": lambda: F.dropout(z(2), 0.0, np.random.default_rng(0)),
    "the last row": lambda: F.embedding(np.array([0, 2]), z(3, 2)),
    "no index": lambda: F.embedding(np.zeros(0, int), z(3, 2)),
    "one head of one channel": lambda: F.self_attention(z(2, 3, 3), 1),
    "one part": lambda: F.split_qkv(z(2, 3, 1), 1, 1),
    "group_norm of vectors": lambda: F.group_norm(z(2, 3), 1, None, None),
    "one group for each channel": lambda: F.group_norm(z(2, 3, 2), 3, None, None),
    "the variance of two images": lambda: F.batch_norm(z(2, 3)),
    "the variance of two pixels": lambda: F.batch_norm(z(1, 3, 1, 2)),
    "half the kernel": lambda: F.avg_pool2d(z(1, 1, 4, 4), 4, 1, 2),
    "a mean of one": lambda: F.mean_pool(z(2, 1, 3)),
    "one cell of one pixel": lambda: F.adaptive_avg_pool2d(z(1, 1, 1, 1), 1),
    "filters of one number": lambda: F.standardize_weight(z(2, 1)),
    "one channel": lambda: F.layer_norm(z(2, 1), None, None),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_just_outside_is_refused(name: str) -> None:
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_just_inside_is_taken(name: str) -> None:
    y, _ = TAKEN[name]()
    assert all(np.isfinite(part).all() for part in (y if isinstance(y, tuple) else (y,)))


def test_a_wrong_argument_beside_a_right_array_is_pythons_own_error() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'axes'"):
        F.softmax(np.ones((2, 3)), axes=1)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("q", "v", "vector", "message"),
    [
        (
            (4, 3, 2),
            (1, 3, 4),
            (2,),
            r"q \(4, 3, 2\), k \(4, 3, 2\), v \(1, 3, 4\): q and k must be \(\.\.\., 2H, N, d\)",
        ),
        ((4, 3, 2), (2, 5, 4), (2,), "q and k must be"),
        ((4, 3, 2), (2, 3, 4), (3,), r"the vectors of lambda must be \(2,\), not \(3,\)"),
    ],
)
def test_differential_attention_refuses_other_shapes(q: Any, v: Any, vector: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        F.differential_attention(np.ones(q), np.ones(q), np.ones(v), *[np.ones(vector)] * 4, 0.5)


@pytest.mark.parametrize(("a", "b"), [((2, 4), (5, 2)), ((2, 3), (4, 2)), ((2, 3), (5, 1))])
def test_updates_of_low_rank_of_other_shapes_are_refused(a: Any, b: Any) -> None:
    with pytest.raises(ValueError, match=r"lora_linear: lora_a and lora_b must have shapes \(r, 3\) and \(5, r\)"):
        F.lora_linear(np.ones((2, 3)), np.ones(a), np.ones(b), weight=np.ones((5, 3)))
