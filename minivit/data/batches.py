"""Batches: a pure function of seed, epoch and position, so that a run resumes bitwise.

Images on a GPU stay there: the host sends indices and random numbers, a few kilobytes a batch, and waits for nothing.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from minivit.device import array_module, constant

Array: TypeAlias = NDArray[Any]
Augment: TypeAlias = Callable[[Array, Array, np.random.Generator], tuple[Array, Array]]

# Mean and standard deviation of the 60,000 x 784 training pixels, divided by 255.
MNIST_MEAN = 0.1307
MNIST_STD = 0.3081

# NumPy gives the seeds (s, e) and (s, e, 0) the same stream. This key separates an epoch's order
# from the augmentation of its first batch.
ORDER_KEY = 1


def epoch_order(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order in which epoch number `epoch` visits `n` images: a permutation (n,) of 0 ... n-1.

    Raises:
        ValueError: `n` below 1, or a negative seed or epoch.
    """
    _check_count("n", n, 1, "there are no images to order")
    _check_count("seed", seed, 0, "pass 0 or more")
    _check_count("epoch", epoch, 0, "count epochs from 0")
    key = np.random.SeedSequence((seed, epoch), spawn_key=(ORDER_KEY,))
    return np.random.default_rng(key).permutation(n)


def num_batches(n: int, batch_size: int, drop_last: bool = True) -> int:
    """Batches in one epoch of `n` images; including a shorter last one unless `drop_last`.

    Raises:
        ValueError: `n` or `batch_size` below 1, or no full batch although `drop_last`.
    """
    _check_count("n", n, 1, "the data set is empty")
    _check_count("batch_size", batch_size, 1, "choose 1 or more")
    if drop_last and batch_size > n:
        raise ValueError(
            f"batch_size={batch_size} leaves no full batch of {n} images: choose at most {n}, or pass drop_last=False"
        )
    return n // batch_size if drop_last else -(-n // batch_size)


def batch_indices(
    n: int, batch_size: int, seed: int, epoch: int, position: int, drop_last: bool = True
) -> NDArray[np.int64]:
    """Indices (batch_size,) of the images in batch number `position` of an epoch.

    Without `drop_last` the last batch may be shorter. Each call computes the permutation (1 ms for
    60,000 images): for all batches of an epoch slice `epoch_order`, as `batches` does.

    Raises:
        ValueError: as `num_batches` and `epoch_order`, or no batch has that position.
    """
    count = num_batches(n, batch_size, drop_last)
    _check_count("position", position, 0, "count batches from 0")
    if position >= count:
        raise ValueError(f"position={position} is past the last of {count} batches, {count - 1}")
    return epoch_order(n, seed, epoch)[position * batch_size : (position + 1) * batch_size]


def batches(
    images: Array,
    labels: Array,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    start: int = 0,
    augment: Augment | None = None,
    mean: float | Sequence[float] = MNIST_MEAN,
    std: float | Sequence[float] = MNIST_STD,
    dtype: DTypeLike = "float32",
    drop_last: bool = True,
) -> Iterator[tuple[Array, Array]]:
    """Yield the batches (x, y) of one epoch in random order, from batch number `start` on.

    Args:
        images: (n, H, W) or (n, C, H, W) uint8, on the host or on a GPU; x is there too, with the same numbers.
        labels: (n,) integers, on the host.
        batch_size: images in a batch, B.
        seed: the run's seed; the batches depend only on it, `epoch` and their position.
        epoch: number of this pass over the data, from 0.
        start: batches to skip: k to resume a run that stopped after k batches.
        augment: called as `augment(x, y, rng)` with x (B, C, H, W) of `dtype` in [0, 1], before
            normalization, and y (B,) int64; returns both, y perhaps as soft targets (B, K). See
            `chain` and `mixup`. Its `rng` is `np.random.default_rng((seed, epoch, position))`.
        mean: of pixels in [0, 1], one number or one for each channel.
        std: like `mean`.
        dtype: floating type of x.
        drop_last: omit the last batch if it is shorter.

    Returns:
        An iterator over x (B, C, H, W), normalized, and y (B,) int64 or what `augment` made of it.

    Raises:
        ValueError: immediately, before the first batch: bad shapes or types, counts that differ,
            and as `num_batches`, `epoch_order` and `normalize`.
    """
    images, labels = images if array_module(images) is not np else np.asarray(images), np.asarray(labels)
    count = num_batches(len(images), batch_size, drop_last)
    order = epoch_order(len(images), seed, epoch)
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"labels have shape {labels.shape} and dtype {labels.dtype}, expected "
            f"({len(images)},) integers: one label for each of the images {images.shape}"
        )
    _check_count("start", start, 0, "count batches from 0")
    if start > count:
        raise ValueError(f"start={start} is past the end of the epoch's {count} batches")
    normalize(images[:1], mean, std, dtype)  # refuses bad arguments now, not at the first batch

    def generate() -> Iterator[tuple[Array, Array]]:
        for position in range(start, count):
            chosen = order[position * batch_size : (position + 1) * batch_size]
            x, y = _to_unit(images[constant(chosen, images)], dtype), labels[chosen].astype(np.int64)
            if augment is not None:
                rng = np.random.default_rng((seed, epoch, position))
                x, y = _check_augmented(augment(x, y, rng), len(chosen))
            yield _standardize(x, mean, std, dtype), y

    return generate()


def normalize(
    images: Array,
    mean: float | Sequence[float] = MNIST_MEAN,
    std: float | Sequence[float] = MNIST_STD,
    dtype: DTypeLike = "float32",
) -> Array:
    """Normalize uint8 images for a model: (images / 255 - mean) / std.

    Args:
        images: (n, H, W) or (n, C, H, W) uint8, on the host or on a GPU, where the result is then.
        mean: of pixels in [0, 1], one number or one for each channel.
        std: like `mean`; above 0.
        dtype: floating type of the result.

    Returns:
        (n, 1, H, W) or (n, C, H, W).

    Raises:
        ValueError: another type or number of dimensions, or a mean or std that does not fit.
    """
    return _standardize(_to_unit(images, dtype), mean, std, dtype)


def holdout(labels: Array, fraction_or_count: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split indices in two, each class in proportion (largest remainders get the odd ones).

    At least one image of each class is kept: without it, a model could not learn the class.

    Args:
        labels: (n,) integers.
        fraction_or_count: images to hold out: an int is their number, a float in (0, 1) a fraction.
        seed: of the choice.

    Returns:
        (kept, held): indices in random order, so that any slice is a fair sample.

    Raises:
        ValueError: labels of another shape or type, a part that would be empty, or a class of which none would be kept.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(f"labels have shape {labels.shape} and dtype {labels.dtype}, expected (n,) integers")
    n = len(labels)
    count = _held_count(n, fraction_or_count)
    _check_count("seed", seed, 0, "pass 0 or more")
    rng = np.random.default_rng(seed)
    order = rng.permutation(n)
    _, classes, sizes = np.unique(labels[order], return_inverse=True, return_counts=True)
    room = sizes - 1  # one image of each class is kept
    if count > room.sum():
        raise ValueError(
            f"cannot hold out {count} of {n} images: one of each of the {len(sizes)} classes is kept, so that at most "
            f"{room.sum()} can be held out"
        )
    quota = sizes * count // n
    odd = np.argsort(-(sizes * count % n), kind="stable")[: count - quota.sum()]
    quota[odd] += 1
    quota = np.minimum(quota, room)
    while quota.sum() < count:  # large classes give what small ones cannot
        most = np.argsort(quota - room, kind="stable")[: count - quota.sum()]
        quota[most] += 1
    # Sorting by class is stable: within its class, each image has a random rank.
    by_class = np.argsort(classes, kind="stable")
    rank = np.empty(n, np.int64)
    rank[by_class] = np.arange(n) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    held = rank < quota[classes]
    return order[~held], order[held]


def _held_count(n: int, fraction_or_count: float) -> int:
    count = 0
    if isinstance(fraction_or_count, numbers.Integral):
        count = 0 if isinstance(fraction_or_count, bool) else int(fraction_or_count)
    elif 0.0 < fraction_or_count < 1.0:
        count = round(float(fraction_or_count) * n)
    if not 0 < count < n:
        raise ValueError(
            f"cannot hold out {fraction_or_count!r} of {n} images: pass an integer from 1 to "
            f"{n - 1}, or a fraction between 0 and 1 that leaves both parts at least one image"
        )
    return count


def _to_unit(images: Array, dtype: DTypeLike) -> Array:
    """uint8 (n, H, W) or (n, C, H, W) to floats (n, C, H, W) in [0, 1]."""
    xp = array_module(images)
    images = np.asarray(images) if xp is np else images
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise ValueError(
            f"images have shape {images.shape} and dtype {images.dtype}, expected (n, H, W) or "
            "(n, C, H, W) uint8 from 0 to 255: convert them, or normalize them yourself"
        )
    if np.dtype(dtype).kind != "f":
        raise ValueError(f"dtype={np.dtype(dtype)} is not floating: pass 'float32' or 'float64'")
    x: Array = xp.divide(images, 255, dtype=dtype)
    return x[:, None] if x.ndim == 3 else x  # (n, C, H, W)


def _standardize(x: Array, mean: float | Sequence[float], std: float | Sequence[float], dtype: DTypeLike) -> Array:
    """(x - mean) / std per channel, x (n, C, H, W), in a new array of `dtype`."""
    center, spread = np.asarray(mean, dtype), np.asarray(std, dtype)
    for name, value in (("mean", center), ("std", spread)):
        if value.ndim > 1 or value.size not in (1, x.shape[1]) or not np.isfinite(value).all():
            raise ValueError(
                f"{name}={value.tolist()} does not fit images of {x.shape[1]} channels: pass one "
                "finite number, or one for each channel"
            )
    if (spread <= 0).any():
        raise ValueError(f"std={spread.tolist()} must be above 0, as a divisor")
    x = array_module(x).subtract(x, constant(center.reshape(-1, 1, 1), x), dtype=dtype)
    x /= constant(spread.reshape(-1, 1, 1), x)
    return x


def _check_augmented(result: object, size: int) -> tuple[Array, Array]:
    """Refuse the result of an `augment` with another protocol."""
    if not isinstance(result, tuple) or len(result) != 2:
        raise ValueError(
            f"augment returned {type(result).__name__}, expected a pair (images, targets): wrap "
            "functions of images alone in chain(...)"
        )
    x, y = result
    if len(x) != size or len(y) != size:
        raise ValueError(
            f"augment returned {len(x)} images and {len(y)} targets for a batch of {size}: it must keep their number"
        )
    return x, y


def _check_count(name: str, value: int, least: int, remedy: str) -> None:
    integral = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not integral or value < least:
        raise ValueError(f"{name}={value!r}, expected an integer of at least {least}: {remedy}")
