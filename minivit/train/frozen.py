"""What features are worth without training the model: classifiers on features that are computed once.

`knn_votes` has no parameters, `linear_probe` trains one linear layer. Notation: n training images, m tested images, D
channels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from minivit import functional as F, optim
from minivit.data.batches import epoch_order, num_batches
from minivit.device import to_device, to_numpy
from minivit.models import Model
from minivit.nn import Linear
from minivit.protocol import Array

_PREPARED = 256  # images at a time: 150 MB of 224 x 224 pixels
_SIMILARITIES = 2**24  # numbers of a block of similarities, 64 MB


def frozen_features(model: Model, images: Array, prepare: Callable[[Array], Array], device: str = "cpu") -> Array:
    """The pooled features (n, D) of images, on the host.

    Args:
        model: on `device`.
        images: (n, ...), the input of `prepare`, such as a `Part` of a task.
        prepare: a batch of `images` -> (B, C, H, W).
        device: "cpu" or "gpu".
    """
    batches = (images[start : start + _PREPARED] for start in range(0, len(images), _PREPARED))
    return np.concatenate([to_numpy(model.features(to_device(prepare(batch), device))) for batch in batches])


def knn_votes(
    queries: Array, features: Array, labels: Array, num_classes: int, *, k: int = 20, temperature: float = 0.07
) -> Array:
    """(m, K): the share of each class in the weighted votes of the k nearest training images.

    Nearness is the cosine s of two feature vectors, and a neighbor's vote has the weight exp(s / temperature).

    Args:
        queries: (m, D), the features of the tested images.
        features: (n, D), of the training images.
        labels: (n,) integers, their classes.
        num_classes: K.
        k: the number of neighbors, at most n.
        temperature: the smaller, the more the nearest ones decide.

    Sources: Wu et al. 2018, section 3.4, with k = 200; Caron et al. 2021, section 3.2, with k = 20.

    Raises:
        ValueError: for shapes that do not fit, and for k out of range.
    """
    _check(features, labels, num_classes)
    if queries.ndim != 2 or queries.shape[1] != features.shape[1]:
        raise ValueError(f"queries must be (m, {features.shape[1]}) like the features, got {queries.shape}")
    count = len(features)
    if not 1 <= k <= count:
        raise ValueError(f"k={k} neighbors of {count} training images: choose 1 to {count}")
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} must be positive")
    (asked, _), (known, _) = F.normalize(queries), F.normalize(features)
    votes = np.zeros((len(queries), num_classes), np.float64)
    rows = max(1, _SIMILARITIES // count)
    for start in range(0, len(queries), rows):
        cosines = asked[start : start + rows] @ known.T  # (rows, n)
        nearest = np.argpartition(-cosines, k - 1, axis=1)[:, :k]
        weights = np.take_along_axis(cosines, nearest, axis=1).astype(np.float64) / temperature
        weights = np.exp(weights - weights.max(axis=1, keepdims=True))  # a common factor of a row changes no share
        np.add.at(votes, (start + np.arange(len(cosines))[:, None], labels[nearest]), weights)
    return votes / votes.sum(axis=1, keepdims=True)


def linear_probe(
    features: Array,
    labels: Array,
    num_classes: int,
    *,
    epochs: int = 100,
    batch_size: int = 256,
    lr: float = 1e-2,
    weight_decay: float = 1e-4,
    seed: int = 0,
) -> Linear:
    """A linear layer D -> K, trained on features by cross-entropy with AdamW; the rate falls as half a cosine.

    It learns on features of mean 0 and variance 1 in each channel, as behind a batch norm without parameters (He et al.
    2021, MAE, appendix A.1), so that one learning rate suits every model. The returned layer takes the features
    themselves: mean and deviation are folded into its weights.

    Args:
        features: (n, D), of the training images.
        labels: (n,) integers.
        num_classes: K.
        epochs, batch_size, lr, weight_decay: of the training.
        seed: of the initial weights and of the order of the images.

    Raises:
        ValueError: for shapes that do not fit.
    """
    _check(features, labels, num_classes)
    mean, std = features.mean(axis=0), features.std(axis=0)
    std = np.where(std > 1e-6 * (np.abs(mean) + 1), std, 1).astype(features.dtype)  # a constant channel stays 0
    x = (features - mean) / std
    layer = Linear(x.shape[1], num_classes, dtype=x.dtype, seed=seed)
    weight, bias = layer.weight, layer.bias
    assert bias is not None
    opt = optim.AdamW(layer.parameters(), lr, weight_decay=weight_decay, no_decay={"bias"})
    batch_size = min(batch_size, len(x))
    count = num_batches(len(x), batch_size)
    for epoch in range(epochs):
        order = epoch_order(len(x), seed, epoch)
        for number in range(count):
            chosen = order[number * batch_size : (number + 1) * batch_size]
            opt.lr = optim.warmup_cosine(epoch * count + number, epochs * count, peak=lr)
            opt.zero_grad()
            logits, back = layer(x[chosen])
            _, back_loss = F.softmax_cross_entropy(logits, labels[chosen])
            back(back_loss())
            opt.step()
    weight.data = weight.data / std
    bias.data = bias.data - weight.data @ mean
    return layer


def _check(features: Array, labels: Array, num_classes: int) -> None:
    if features.ndim != 2 or labels.shape != features.shape[:1] or not len(features):
        raise ValueError(f"features must be (n, D) and labels (n,), got {features.shape} and {labels.shape}")
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"labels must be integers of 0 to {num_classes - 1}, for {num_classes} classes")
