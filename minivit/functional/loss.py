"""Losses: the scalar that training minimizes. Only losses average over the batch.

A loss follows the same protocol, `loss, back = F.softmax_cross_entropy(logits, labels)`, and `back()` starts the
backward pass. Notation: B batch, K classes.
"""

from __future__ import annotations

from minivit.argument_checks import check_array
from minivit.device import array_module
from minivit.fast.half import is_floating
from minivit.functional.activation import log_softmax
from minivit.protocol import Array, Back, once


def softmax_cross_entropy(logits: Array, labels: Array, label_smoothing: float = 0.0) -> tuple[Array, Back]:
    """loss = mean over the batch of -sum_k p_k log softmax(logits)_k: softmax and cross-entropy fused, for stability.

    Args:
        logits: (B, K).
        labels: integers (B,) in [0, K), or target distributions p (B, K), as mixup makes them.
        label_smoothing: s in [0, 1]; the targets become (1 - s) p + s/K (Szegedy et al. 2016).

    Returns:
        loss, a scalar of the logits' dtype, and back(dloss=1.0) -> dlogits (B, K).

    Raises:
        ValueError: for an empty batch (it has no mean), a label outside [0, K), or shapes that do not fit.

    Derivation: docs/derivations/cross_entropy.md.
    """
    p = _targets(logits, labels, label_smoothing)  # (B, K)
    log_probability, back_log_softmax = log_softmax(logits)  # (B, K)
    # a class of probability 0 adds 0, even if its logit is -inf
    terms = p * array_module(p).where(p == 0, 0, log_probability)
    loss = -(terms / len(logits)).sum()  # divided before the sum, which keeps float32 in NumPy 1 too

    @once
    def back(dloss: float = 1.0) -> Array:
        return back_log_softmax(p * (-dloss / len(logits)))

    return loss, back


def check_softmax_cross_entropy(logits: Array, labels: Array, label_smoothing: float = 0.0) -> None:
    check_array("softmax_cross_entropy", "logits", logits)
    check_array("softmax_cross_entropy", "labels", labels)
    if logits.ndim != 2:
        remedy = (
            "give labels second, (logits, labels)" if logits.dtype.kind in "iu" else "of one image use logits[None]"
        )
        raise ValueError(f"softmax_cross_entropy: logits must be (B, K), got shape {logits.shape}: {remedy}")
    batch, classes = logits.shape
    if batch == 0:
        raise ValueError("softmax_cross_entropy: the batch is empty, so its mean loss is undefined: skip empty batches")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must lie in [0, 1], got {label_smoothing}")
    if labels.shape[:1] != (batch,):
        count = len(labels) if labels.ndim else 1
        raise ValueError(f"{count} labels for the {batch} rows of logits {logits.shape}: give each image its label")
    if labels.dtype.kind in "iu" and labels.ndim == 1:
        _check_class_numbers(labels, classes)
    elif not (is_floating(labels.dtype) or labels.dtype.kind == "b") or labels.shape != logits.shape:
        raise ValueError(
            f"labels must be class numbers, integers of shape ({batch},), or target distributions of shape "
            f"{logits.shape}, got {labels.dtype} of shape {labels.shape}: {_remedy(labels, classes)}"
        )


def _check_class_numbers(labels: Array, classes: int) -> None:
    low, high = int(labels.min()), int(labels.max())  # checked here: a GPU would wrap a bad label around
    if low >= 0 and high < classes:
        return
    bad, where = (low, labels.argmin()) if low < 0 else (high, labels.argmax())
    if low < 0:
        remedy = "leave out images that have no class"
    elif low >= 1 and high == classes:
        remedy = "where labels count from 1, use labels - 1"
    else:
        remedy = f"build the model with num_classes={high + 1}, or number the classes from 0"
    raise ValueError(
        f"labels[{int(where)}]: label {bad} is out of range: the model has {classes} classes, 0 to {classes - 1}; "
        f"{remedy}"
    )


def _remedy(labels: Array, classes: int) -> str:
    """How to convert these labels to a form that the loss accepts."""
    if not (is_floating(labels.dtype) or labels.dtype.kind in "iub"):
        return "number the classes, names, labels = numpy.unique(labels, return_inverse=True)"
    if labels.ndim == 2 and labels.shape[1] == classes:
        return "one-hot integers become class numbers by labels.argmax(axis=1)"
    if labels.ndim == 2 and labels.shape[1] > 1:
        return f"they are of {labels.shape[1]} classes, and the model has num_classes={classes}"
    flat = "labels" if labels.ndim == 1 else "labels.reshape(-1)"
    return f"use {flat}" + ("" if labels.dtype.kind in "iu" else ".astype('int64')")


def _targets(logits: Array, labels: Array, smoothing: float) -> Array:
    """The distributions p (B, K), from class numbers or soft targets, smoothed."""
    xp, classes = array_module(logits), logits.shape[1]
    p = xp.asarray(labels)
    if p.dtype.kind in "iu":
        p = p[:, None] == xp.arange(classes)  # one-hot
    p = p.astype(logits.real.dtype)
    return p * (1 - smoothing) + smoothing / classes if smoothing else p


def mean_squared_error(prediction: Array, target: Array) -> tuple[Array, Back]:
    """loss = mean of (prediction - target)^2 over all elements; the target is a constant.

    Args:
        prediction: any shape.
        target: the same shape.

    Returns:
        loss, a scalar, and back(dloss=1.0) -> dprediction.
    """
    difference = prediction - target
    loss = (difference * difference / prediction.size).sum()

    @once
    def back(dloss: float = 1.0) -> Array:
        return difference * (2 * dloss / difference.size)

    return loss, back


def check_mean_squared_error(prediction: Array, target: Array) -> None:
    if prediction.shape != target.shape:
        raise ValueError(f"mean_squared_error: prediction {prediction.shape} and target {target.shape} differ in shape")
    if prediction.size == 0:
        raise ValueError("mean_squared_error: the batch is empty, so its mean loss is undefined: skip empty batches")
