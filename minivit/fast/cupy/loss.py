"""Softmax and cross-entropy in two launches forward and one backward."""

from __future__ import annotations

from typing import Any

import cupy
import numpy as np

from minivit import functional as F
from minivit.fast.cupy.launch import launch, row_threads, total
from minivit.protocol import Array, Back, once


def softmax_cross_entropy(logits: Array, labels: Array, label_smoothing: float = 0.0) -> tuple[Array, Back]:
    """kernels/cross_entropy.cu."""
    if not logits.size:
        return F.softmax_cross_entropy.plain(logits, labels, label_smoothing)
    logits, (batch, classes), dtype = cupy.ascontiguousarray(logits), logits.shape, logits.dtype
    numbered = labels.dtype.kind in "iu"
    kind: Any = np.dtype(np.int64) if numbered else dtype
    given = cupy.ascontiguousarray(cupy.asarray(labels).astype(kind, copy=False))
    targets = (given, None) if numbered else (None, given)
    smoothing = (float(1 - label_smoothing), float(label_smoothing / classes))
    grid, block = (batch,), (row_threads(classes),)
    terms, statistics = cupy.empty(batch, dtype), cupy.empty((batch, 3), dtype)
    launch(
        "cross_entropy", "cross_entropy_forward", dtype, grid, block, logits, *targets, terms, statistics, batch,
        classes, *smoothing,
    )  # fmt: skip
    loss = total(terms)

    @once
    def back(dloss: Any = 1.0) -> Array:
        scale = 1.0 if isinstance(dloss, cupy.ndarray) else float(dloss)  # the host does not wait for one on the GPU
        dlogits = cupy.empty(logits.shape, dtype)
        launch(
            "cross_entropy", "cross_entropy_backward", dtype, grid, block, logits, *targets, statistics, dlogits,
            classes, *smoothing, scale / batch,
        )  # fmt: skip
        return dlogits * dloss if isinstance(dloss, cupy.ndarray) else dlogits

    return loss, back
