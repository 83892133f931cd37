"""Losses: the one number that training makes small. They alone average over the batch.

A loss follows the same protocol, `loss, back = F.softmax_cross_entropy(logits, labels)`, and `back()` starts the
backward pass. Alphabet: B batch, K classes. This is the last file of the calculus; next: `minivit/nn/layer.py`.
"""

from __future__ import annotations

from minivit.backend import array_module
from minivit.protocol import Array, Back, once, refuse


def softmax_cross_entropy(logits: Array, labels: Array, label_smoothing: float = 0.0) -> tuple[Array, Back]:
    """loss = mean over the batch of -sum_k p_k log softmax(logits)_k: softmax and cross-entropy in one, as is stable.

    Args:
        logits: (B, K).
        labels: integers (B,) in [0, K), or target distributions p (B, K), as mixup makes them.
        label_smoothing: s in [0, 1]; the targets become (1 - s) p + s/K (Szegedy et al. 2016).

    Returns:
        loss, a scalar of the logits' dtype, and back(dloss=1.0) -> dlogits (B, K).

    Raises:
        ValueError: for an empty batch (it has no mean), a label outside [0, K), or shapes that do not fit.
    """
    refuse(logits.ndim != 2, f"softmax_cross_entropy: logits must be (B, K), got shape {logits.shape}")
    batch, classes = logits.shape
    refuse(batch == 0, "softmax_cross_entropy: the batch is empty, so its mean loss is undefined: skip empty batches")
    xp = array_module(logits)
    target = _targets(logits, labels, label_smoothing)  # (B, K)
    shifted = logits - logits.real.max(axis=1, keepdims=True)
    exponential = xp.exp(shifted)
    total = exponential.sum(axis=1, keepdims=True)  # (B, 1)
    mass = target.sum(axis=1, keepdims=True)  # (B, 1): 1 for a distribution
    each = (mass * xp.log(total))[:, 0] - (target * shifted).sum(axis=1)  # (B,)
    loss = (each / batch).sum()  # divided before the sum: NumPy 1 makes float64 of a float32 scalar / int

    @once
    def back(dloss: float = 1.0) -> Array:
        # d(-sum_k p_k log softmax_k)/dlogits = softmax * sum(p) - p
        dlogits = exponential / total * mass - target
        dlogits *= dloss / batch
        return dlogits

    return loss, back


def _targets(logits: Array, labels: Array, smoothing: float) -> Array:
    """The distributions (B, K) to be matched, from class numbers or soft targets, smoothed."""
    batch, classes = logits.shape
    refuse(not 0 <= smoothing <= 1, f"label_smoothing must lie in [0, 1], got {smoothing}")
    refuse(not hasattr(labels, "dtype"), f"labels are a {type(labels).__name__}: convert them with numpy.asarray")
    real = logits.real.dtype
    if labels.dtype.kind in "iu":
        refuse(labels.shape != (batch,), f"labels must be ({batch},) for logits {logits.shape}, got {labels.shape}")
        low, high = int(labels.min()), int(labels.max())  # checked here: a GPU would wrap a bad label around
        bad = low if low < 0 else high
        refuse(
            low < 0 or high >= classes,
            f"label {bad} is out of range: the model has {classes} classes, 0 to {classes - 1}",
        )
        target = (array_module(logits).asarray(labels)[:, None] == array_module(logits).arange(classes)).astype(real)
    else:
        refuse(
            labels.shape != logits.shape,
            f"soft targets must have the shape of the logits, {logits.shape}, got {labels.shape}; "
            "class numbers must be integers",
        )
        target = array_module(logits).asarray(labels).astype(real)
    return target * (1 - smoothing) + smoothing / classes if smoothing else target


def mean_squared_error(prediction: Array, target: Array) -> tuple[Array, Back]:
    """loss = mean of (prediction - target)^2 over all elements; the target is a constant.

    Args:
        prediction: any shape.
        target: the same shape.

    Returns:
        loss, a scalar, and back(dloss=1.0) -> dprediction.
    """
    refuse(
        prediction.shape != target.shape,
        f"mean_squared_error: prediction {prediction.shape} and target {target.shape} differ in shape",
    )
    refuse(prediction.size == 0, "mean_squared_error: the batch is empty, so its mean loss is undefined")
    difference = prediction - target
    loss = (difference * difference / prediction.size).sum()

    @once
    def back(dloss: float = 1.0) -> Array:
        return difference * (2 * dloss / difference.size)

    return loss, back
