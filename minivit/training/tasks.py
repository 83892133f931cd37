"""What there is to learn: labelled images in parts, from MNIST or from a folder, in the form that training takes.

Next: `finetuning.py`, which learns them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from minivit import data
from minivit import functional as F
from minivit.data.folder import ImageFolder, read_images
from minivit.protocol import Array, refuse
from minivit.training.loop import Batches
from minivit.training.run import fingerprint


class Part(NamedTuple):
    """Some images (n, ...), or the paths of their files, and their labels (n,)."""

    images: Array
    labels: Array


@dataclass(frozen=True, eq=False)
class Task:
    """Labelled images to learn from, to watch the run with, and to test with.

    Attributes:
        source: where they come from, in words.
        classes: their names.
        learn, held_out, test: the parts; without a `test` the held-out accuracy is all that is known.
        preprocess: how a picture becomes what the model takes.
        prepare: images or paths -> (B, C, H, W), what a model takes.
        batches: (batch_size, seed=, epoch=, start=) -> the batches (x, y) of an epoch of `learn`, with augmentation.
        fingerprint: of what is learned from; a resumed run must find the same.
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

    def config(self) -> dict[str, Any]:
        """For a config.json beside the weights: what the classes are called and how pictures are prepared.

        The keys are timm's; `minivit.weights` and examples/classify_image.py read them.
        """
        made = self.preprocess
        cfg = {
            "input_size": [made.channels, *F.pair(made.size)],
            "mean": list(made.mean),
            "std": list(made.std),
            "interpolation": made.interpolation,
            "crop_pct": made.crop,
            "crop_mode": "squash" if made.squash else "center",
        }
        return {"num_classes": len(self.classes), "label_names": list(self.classes), "pretrained_cfg": cfg}


def mnist_task(mnist: data.Mnist, limit: int | None = None, seed: int = 0, held_out: int = 1000) -> Task:
    """MNIST with small moves of the digits, as `mnist.py` trains on it.

    Args:
        mnist: from `data.load_mnist`.
        limit: learn from so many images, the same number of each digit.
        seed: of their choice.
        held_out: training images that only watch the run; the same ones whatever the seed.
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
        data.normalise,
        partial(data.batches, images, labels, augment=data.chain(data.shift)),
        fingerprint(images, labels),
    )


def folder_task(
    pictures: ImageFolder, held_out: ImageFolder, preprocess: data.Preprocess, limit: int | None = None, seed: int = 0
) -> Task:
    """Images in files, mirrored left to right with probability 1/2 and moved by up to an eighth of their size.

    Args:
        pictures, held_out: what `data.folder.split_folder` gives.
        preprocess: what the model takes.
        limit: learn from so many images, the same number of each class.
        seed: of their choice.
    """
    total = len(pictures) + len(held_out)
    if limit is not None:
        pictures = pictures.take(balanced(pictures.labels, limit, seed))

    return Task(
        f"{total:,} pictures in {pictures.folder}",
        pictures.classes,
        Part(pictures.paths, pictures.labels),
        Part(held_out.paths, held_out.labels),
        None,
        preprocess,
        partial(read_images, preprocess=preprocess),
        partial(pictures.batches, preprocess, augment=data.chain(data.flip, move)),
        fingerprint(pictures.names, pictures.labels),
    )


def move(images: Array, rng: Any) -> Array:
    """Images (B, C, H, W) moved by up to an eighth of their size, as CIFAR's by 4 of 32 pixels (He et al. 2015).

    What comes in from outside is 0, which is the mean colour of normalised images.
    """
    return data.crop(images, rng, padding=max(images.shape[2:]) // 8)


def balanced(labels: Array, count: int, seed: int) -> Array:
    """Indices of `count` images, the same number of each class, in random order.

    Raises:
        ValueError: a number that the classes do not divide, or a class with too few images.
    """
    classes, sizes = np.unique(labels, return_counts=True)
    each = count // len(classes)
    refuse(
        count < 1 or count % len(classes) > 0,
        f"limit={count} images cannot be shared evenly by {len(classes)} classes: choose a multiple of {len(classes)}",
    )
    refuse(
        each > sizes.min(),
        f"limit={count} asks for {each} images of each of {len(classes)} classes, but class {classes[sizes.argmin()]} "
        f"has {sizes.min()}: choose at most {sizes.min() * len(classes)}",
    )
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    return rng.permutation(np.concatenate([order[labels[order] == k][:each] for k in classes]))
