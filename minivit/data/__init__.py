"""Data: reading IDX files and MNIST, batches that are pure functions of a seed, and augmentation.
Read idx.py first, then download.py, mnist.py, batches.py, augment.py,
mix.py and warp.py.
"""

from .augment import affine, chain, crop, erase, flip, shift
from .batches import (
    MNIST_MEAN,
    MNIST_STD,
    Augment,
    batch_indices,
    batches,
    epoch_order,
    holdout,
    normalise,
    num_batches,
)
from .idx import DataError, read_idx, read_labelled, write_idx
from .mix import cutmix, mixup
from .mnist import Mnist, default_cache_dir, load_mnist

__all__ = [
    "MNIST_MEAN",
    "MNIST_STD",
    "Augment",
    "DataError",
    "Mnist",
    "affine",
    "batch_indices",
    "batches",
    "chain",
    "crop",
    "cutmix",
    "default_cache_dir",
    "epoch_order",
    "erase",
    "flip",
    "holdout",
    "load_mnist",
    "mixup",
    "normalise",
    "num_batches",
    "read_idx",
    "read_labelled",
    "shift",
    "write_idx",
]
