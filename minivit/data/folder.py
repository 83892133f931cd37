"""A folder of images as labeled data: one folder for each class, its name the class; files are read when needed.

    pets/cat/1.jpg                      pets/train/cat/1.jpg
    pets/cat/2.jpg          or          pets/train/dog/7.jpg
    pets/dog/7.jpg                      pets/val/cat/2.jpg

How a file becomes an array is said by images.py. This is the last file of this folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minivit.data.batches import Array, Augment, epoch_order, holdout, num_batches
from minivit.data.idx import DataError, StrPath
from minivit.fast.threads import in_threads, usable_cores

Read = Callable[[Path], Array]  # path -> (C, H, W), such as a Preprocess

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")  # Pillow reads them all


@dataclass(frozen=True, eq=False, repr=False)
class ImageFolder:
    """Labelled images that lie in files.

    Attributes:
        folder: holds a folder for each class.
        classes: their names, sorted; label k is classes[k].
        names: (n,) str, such as "cat/1.jpg".
        labels: (n,) int64.
    """

    folder: Path
    classes: tuple[str, ...]
    names: NDArray[np.str_]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"ImageFolder({str(self.folder)!r}, {len(self):,} images of {len(self.classes)} classes)"

    @property
    def paths(self) -> NDArray[np.str_]:
        """(n,) str, the paths of the files."""
        return np.array([str(self.folder / name) for name in self.names])

    def take(self, which: Array) -> ImageFolder:
        """The images at these indices."""
        return replace(self, names=self.names[which], labels=self.labels[which])

    def batches(
        self,
        preprocess: Read,
        batch_size: int,
        *,
        seed: int,
        epoch: int,
        start: int = 0,
        augment: Augment | None = None,
        drop_last: bool = True,
        threads: int | None = None,
    ) -> Iterator[tuple[Array, Array]]:
        """The batches (x, y) of one epoch in random order, like `minivit.data.batches`, each read when it is due.

        Args:
            preprocess: path -> (C, H, W), normalized.
            augment: called as `augment(x, y, rng)` on the normalized batch, where 0 is the mean color; else as there.
            threads: see `read_images`.

        Returns:
            An iterator over x (B, C, H, W) and y (B,) int64, or what `augment` made of them.

        Raises:
            ValueError: at once, for a batch size or a position that does not fit; DataError when a file is no image.
        """
        paths, count = self.paths, num_batches(len(self), batch_size, drop_last)
        order = epoch_order(len(self), seed, epoch)
        if not 0 <= start <= count:
            raise ValueError(f"start={start} is not one of the epoch's {count} batches: count them from 0")

        def generate() -> Iterator[tuple[Array, Array]]:
            for position in range(start, count):
                chosen = order[position * batch_size : (position + 1) * batch_size]
                x, y = read_images(paths[chosen], preprocess, threads), self.labels[chosen]
                if augment is not None:
                    x, y = augment(x, y, np.random.default_rng((seed, epoch, position)))
                yield x, y

        return generate()


def image_folder(folder: StrPath, classes: tuple[str, ...] | None = None) -> ImageFolder:
    """List a folder of classes; no image is opened. Other files, and names that begin with a dot, are passed over.

    Args:
        folder: holds a folder for each class, and in it the images.
        classes: which classes there may be, as another part of the same data has them; None takes all that are there.

    Raises:
        DataError: the folder is missing, has no classes, an unknown one, or one without images.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder: name one that holds a folder of images for each class")
    found = _folders(folder)
    if not found:
        raise DataError(f"{folder} holds no folders: put the images of each class into a folder named after the class")
    unknown = [name for name in found if classes is not None and name not in classes]
    if classes is not None and unknown:
        raise DataError(f"{folder / unknown[0]}: a class that is not among those to learn ({', '.join(classes[:10])})")
    names: list[str] = []
    labels: list[int] = []
    every = tuple(found) if classes is None else classes
    for name in found:
        images = sorted(entry.name for entry in os.scandir(folder / name) if _is_image(entry))
        if not images:
            raise DataError(f"{folder / name} holds no images ({', '.join(SUFFIXES)}): fill or remove it")
        names += [f"{name}/{image}" for image in images]
        labels += [every.index(name)] * len(images)
    return ImageFolder(folder, every, np.array(names), np.array(labels, np.int64))


def split_folder(folder: StrPath, held_out: float = 0.1, seed: int = 0) -> tuple[ImageFolder, ImageFolder]:
    """The images to learn from, and those to hold out: `folder/train` and `folder/val`, or a share of each class.

    Args:
        folder: holds the classes, or `train` with the classes, and perhaps `val` with the same ones.
        held_out: without `val`, the share (float) or number (int) of images that is held out, as `data.holdout`.
        seed: of that choice.

    Raises:
        DataError: as `image_folder`; ValueError: as `data.holdout`.
    """
    train, val = Path(folder) / "train", Path(folder) / "val"
    learn = image_folder(train if _folders(train) else folder)  # a class may be called "train": it holds no folders
    if learn.folder == train and val.is_dir():
        return learn, image_folder(val, learn.classes)
    kept, held = holdout(learn.labels, held_out, seed)
    return learn.take(kept), learn.take(held)


def read_images(paths: Sequence[str] | NDArray[np.str_], preprocess: Read, threads: int | None = None) -> Array:
    """Files as an array (B, C, H, W).

    Args:
        paths: of B files.
        preprocess: path -> (C, H, W), all of one shape.
        threads: how many files are read at a time; the usable cores by default.

    Raises:
        DataError: a file is no image; names it.
    """
    threads = usable_cores() if threads is None else threads
    return np.stack(in_threads(lambda path: _read(Path(path), preprocess), list(paths), threads))


def _folders(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def _is_image(entry: os.DirEntry[str]) -> bool:
    return entry.is_file() and entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith(".")


def _read(path: Path, preprocess: Read) -> Any:
    try:
        return preprocess(path)
    except ImportError:
        raise  # not the file's fault: the reader of images is not installed
    except Exception as error:  # Pillow's decoders raise whatever their format's author chose
        if str(path) in str(error) and isinstance(error, ValueError):
            raise
        raise DataError(f"{path} cannot be read as an image ({error}): repair or remove it") from error
