"""Tasks for fine-tuning: labeled images from MNIST or from a folder, split into training, held-out and test images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from minivit import data
from minivit.data.folder import ImageFolder, read_images
from minivit.pretrained.preprocessing import preprocess_entries
from minivit.protocol import Array
from minivit.train.loop import Batches
from minivit.train.run import fingerprint


class Part(NamedTuple):
    """Some images (n, ...), or the paths of their files, and their labels (n,)."""

    images: Array
    labels: Array


@dataclass(frozen=True, eq=False, repr=False)
class Task:
    """Labeled images: for training, for validation, and for testing.

    Attributes:
        source: their origin, in words.
        classes: their names.
        learn: the training images.
        held_out: images that select the best epoch.
        test: images for the final accuracy, or None.
        preprocess: the transform from an image to the model's input.
        prepare: images or paths -> (B, C, H, W), the model's input.
        batches: (batch_size, seed=, epoch=, start=) -> the batches (x, y) of an epoch of `learn`, with augmentation.
        fingerprint: of the training images; a resumed run must have the same.
    """

    source: str
    classes: tuple[str, ...]
    learn: Part
    held_out: Part
    test: Part | None
    preprocess: data.Preprocess
    prepare: Callable[[Array], Array]
    batches: Callable[..., Batches]
    fingerprint: str

    def __repr__(self) -> str:
        test = "" if self.test is None else f", {len(self.test.labels):,} test"
        parts = f"{len(self.learn.labels):,} training, {len(self.held_out.labels):,} held-out{test}"
        return f"Task({self.source!r}, {parts} images of {len(self.classes)} classes)"

    def config(self) -> dict[str, Any]:
        """The content of a config.json next to the weights: the names of the classes and the preprocessing.

        The keys are timm's, and one of minivit's for what these do not express; `minivit.pretrained` reads them.
        """
        entries = preprocess_entries(self.preprocess)
        return {"num_classes": len(self.classes), "label_names": list(self.classes), **entries}


def mnist_task(mnist: data.Mnist, limit: int | None = None, seed: int = 0, held_out: int = 1000) -> Task:
    """MNIST, its digits moved by up to 2 pixels as in examples/train_mnist_vit.py.

    Args:
        mnist: from `data.load_mnist`.
        limit: the number of training images to use, equally many of each digit.
        seed: of their choice.
        held_out: the number of training images held out; the same ones for every seed.
    """
    kept, watch = data.holdout(mnist.train_labels, held_out, seed=0)
    chosen = kept if limit is None else kept[balanced(mnist.train_labels[kept], limit, seed)]
    images, labels = mnist.train_images[chosen], mnist.train_labels[chosen]
    return Task(
        mnist.source,
        tuple("0123456789"),
        Part(images, labels),
        Part(mnist.train_images[watch], mnist.train_labels[watch]),
        Part(mnist.test_images, mnist.test_labels),
        data.Preprocess(mnist.train_images.shape[1:], mean=(data.MNIST_MEAN,), std=(data.MNIST_STD,), squash=True),
        data.normalize,
        partial(data.batches, images, labels, augment=data.chain(data.shift)),
        fingerprint(images, labels),
    )


def folder_task(
    pictures: ImageFolder, held_out: ImageFolder, preprocess: data.Preprocess, limit: int | None = None, seed: int = 0
) -> Task:
    """Images in files, mirrored left to right with probability 1/2 and moved by up to an eighth of their size.

    Args:
        pictures, held_out: from `data.folder.split_folder`.
        preprocess: of the model.
        limit: the number of training images to use, equally many of each class.
        seed: of their choice.
    """
    if len(pictures.classes) < 2:
        raise ValueError(f"there is one class, {pictures.classes[0]}: add images of another class")
    total = len(pictures) + len(held_out)
    if limit is not None:
        pictures = pictures.take(balanced(pictures.labels, limit, seed))

    return Task(
        f"{total:,} images in {pictures.folder}",
        pictures.classes,
        Part(pictures.paths, pictures.labels),
        Part(held_out.paths, held_out.labels),
        None,
        preprocess,
        partial(read_images, preprocess=preprocess),
        partial(pictures.batches, preprocess, augment=data.chain(data.flip, move)),
        fingerprint(pictures.names, pictures.labels),
    )


def move(images: Array, rng: np.random.Generator) -> Array:
    """Images (B, C, H, W) moved by up to an eighth of their size, as CIFAR's by 4 of 32 pixels (He et al. 2016).

    New pixels at the border are 0, the mean color of normalized images.
    """
    return data.crop(images, rng, padding=max(images.shape[2:]) // 8)


def balanced(labels: Array, count: int, seed: int) -> Array:
    """Indices of `count` images, equally many of each class, in random order.

    Raises:
        ValueError: a number that the classes do not divide, or a class with too few images.
    """
    classes, sizes = np.unique(labels, return_counts=True)
    each = count // len(classes)
    if count < 1 or count % len(classes) > 0:
        raise ValueError(
            f"limit={count} images cannot be shared evenly by {len(classes)} classes: choose a multiple of "
            f"{len(classes)}"
        )
    if each > sizes.min():
        raise ValueError(
            f"limit={count} needs {each} images of each of {len(classes)} classes, but class "
            f"{classes[sizes.argmin()]} has {sizes.min()}: choose at most {sizes.min() * len(classes)}"
        )
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    return rng.permutation(np.concatenate([order[labels[order] == k][:each] for k in classes]))
