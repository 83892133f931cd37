"""Data: IDX files, MNIST and folders of images, batches that are pure functions of a seed, and augmentation."""

from minivit.data.augment import affine, chain, crop, erase, flip, shift
from minivit.data.batches import (
    MNIST_MEAN,
    MNIST_STD,
    Augment,
    batch_indices,
    batches,
    epoch_order,
    holdout,
    normalize,
    num_batches,
)
from minivit.data.folder import ImageFolder, image_folder, read_images, split_folder
from minivit.data.idx import DataError, read_idx, read_labeled, write_idx
from minivit.data.images import read_image
from minivit.data.mix import cutmix, mixup
from minivit.data.mnist import Mnist, default_cache_dir, load_mnist
from minivit.data.preprocess import FILTERS, IMAGENET_MEAN, IMAGENET_STD, Preprocess
from minivit.renamed import old_names

__all__ = [
    "FILTERS",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "MNIST_MEAN",
    "MNIST_STD",
    "Augment",
    "DataError",
    "ImageFolder",
    "Mnist",
    "Preprocess",
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
    "image_folder",
    "load_mnist",
    "mixup",
    "normalize",
    "num_batches",
    "read_idx",
    "read_image",
    "read_images",
    "read_labeled",
    "shift",
    "split_folder",
    "write_idx",
]

__getattr__ = old_names(__name__, {"normalise": "normalize", "read_labelled": "read_labeled"})
