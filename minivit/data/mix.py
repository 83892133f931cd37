"""Mixing the images of a batch: mixup and cutmix, which turn labels into soft targets.
`batches` takes these as the last part of a chain.
"""

# Notation: B images in the batch, C channels, H height, W width, K classes.

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from minivit.data.augment import check_images, rectangles
from minivit.device import array_module, constant

Array: TypeAlias = NDArray[Any]
Rng: TypeAlias = np.random.Generator


def mixup(images: Array, labels: Array, rng: Rng, num_classes: int, alpha: float = 0.2) -> tuple[Array, Array]:
    """Blend each image with another of the batch, and their labels (Zhang et al. 2017, eq. 1).

    Args:
        images: (B, C, H, W) floating.
        labels: (B,) integers, or soft targets (B, K) from an earlier mix.
        rng: the source of randomness.
        num_classes: K.
        alpha: weights are drawn from Beta(alpha, alpha), one for each image; the paper uses 0.1 to
            0.4 for images.

    Returns:
        New images (B, C, H, W), and targets (B, K) of the same dtype whose rows sum to 1.

    Raises:
        ValueError: uint8 or other images, a label out of range, or `alpha` not above 0.
    """
    check_images(images)
    if images.dtype.kind != "f":
        raise ValueError(f"mixup blends, and {images.dtype} would round: pass floating images, or use cutmix")
    targets = _soft_targets(labels, len(images), num_classes, images.dtype)
    weight = _beta(rng, alpha, len(images)).astype(images.dtype)
    partner = rng.permutation(len(images))
    w = constant(weight[:, None, None, None], images)  # (B, 1, 1, 1)
    mixed = w * images + (1 - w) * images[constant(partner, images)]
    return mixed, _blend_targets(targets, partner, weight)


def cutmix(images: Array, labels: Array, rng: Rng, num_classes: int, alpha: float = 1.0) -> tuple[Array, Array]:
    """Paste a rectangle of another image of the batch into each (Yun et al. 2019, section 3.1).

    Labels are blended by the pasted area, after clipping at the border.

    Args:
        images: (B, C, H, W), floating or uint8.
        labels: (B,) integers, or soft targets (B, K) from an earlier mix.
        rng: the source of randomness.
        num_classes: K.
        alpha: the kept part is drawn from Beta(alpha, alpha), one for each image; 1 in the paper.

    Returns:
        New images (B, C, H, W), and targets (B, K), float32 for uint8 images and of the images'
        dtype otherwise, whose rows sum to 1.

    Raises:
        ValueError: another shape or dtype, a label out of range, or `alpha` not above 0.
    """
    check_images(images)
    B, _, H, W = images.shape
    floating = images.dtype if images.dtype.kind == "f" else np.dtype(np.float32)
    targets = _soft_targets(labels, B, num_classes, floating)
    side = np.sqrt(1.0 - _beta(rng, alpha, B))  # of the rectangle, in parts of the image's
    partner = rng.permutation(B)
    y, x = rng.integers(H, size=B), rng.integers(W, size=B)
    height, width = np.floor(side * H), np.floor(side * W)
    top, left = y - height // 2, x - width // 2
    inside = rectangles(top, top + height, left, left + width, H, W)  # (B, 1, H, W)
    kept = (1.0 - inside.mean(axis=(1, 2, 3))).astype(floating)
    others = images[constant(partner, images)]
    mixed = array_module(images).where(constant(inside, images), others, images)
    return mixed, _blend_targets(targets, partner, kept)


def _beta(rng: Rng, alpha: float, size: int) -> Array:
    if not 0.0 < alpha < np.inf:
        raise ValueError(f"alpha={alpha} is not a parameter of a Beta distribution: choose above 0")
    return rng.beta(alpha, alpha, size)


def _soft_targets(labels: Array, size: int, num_classes: int, dtype: np.dtype[Any]) -> Array:
    """One-hot targets (B, K); soft ones are passed through."""
    labels = np.asarray(labels)
    if labels.shape == (size, num_classes) and labels.dtype.kind == "f":
        return labels.astype(dtype)
    if labels.shape != (size,) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"labels have shape {labels.shape} and dtype {labels.dtype}, expected ({size},) "
            f"integers or ({size}, {num_classes}) floating soft targets"
        )
    bad = (labels < 0) | (labels >= num_classes)
    if bad.any():
        raise ValueError(
            f"label {labels[bad.argmax()]} at index {bad.argmax()} is not one of "
            f"num_classes={num_classes}: labels run from 0 to {num_classes - 1}"
        )
    targets: Array = np.zeros((size, num_classes), dtype)
    targets[np.arange(size), labels] = 1
    return targets


def _blend_targets(targets: Array, partner: Array, weight: Array) -> Array:
    w = weight[:, None]  # (B, 1)
    blended: Array = w * targets + (1 - w) * targets[partner]
    return blended
