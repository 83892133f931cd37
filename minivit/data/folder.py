"""A folder of images as labeled data: one folder for each class, its name the class; files are read on demand.

    pets/cat/1.jpg                      pets/train/cat/1.jpg
    pets/cat/2.jpg          or          pets/train/dog/7.jpg
    pets/dog/7.jpg                      pets/val/cat/2.jpg  (or valid, validation, test)

preprocess.py converts a file to an array.
"""

from __future__ import annotations

import errno
import os
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minivit.data.batches import Array, Augment, epoch_order, holdout, num_batches
from minivit.data.idx import DataError, StrPath
from minivit.fast.threads import in_threads, usable_cores
from minivit.io.text import printable

Read = Callable[[Path], Array]  # path -> (C, H, W), such as a Preprocess

# Pillow reads these and more: see `_suffixes`
SUFFIXES = (".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_NO_PICTURES = (
    "EPS",
    "WMF",
    "BUFR",
    "GRIB",
    "HDF5",
    "FITS",
    "MPEG",
    "PDF",
)  # formats that are not images, or run other programs
_TRAIN = ("train", "training")
_HELD_OUT = (("val", "valid", "validation"), ("test", "testing"))  # the second if none of the first exists


@dataclass(frozen=True, eq=False, repr=False)
class ImageFolder:
    """Labeled images in files.

    Attributes:
        folder: with a folder for each class.
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
        """The batches (x, y) of one epoch in random order, like `minivit.data.batches`, each read on demand.

        Args:
            preprocess: path -> (C, H, W), normalized.
            augment: called as `augment(x, y, rng)` on the normalized batch, where 0 is the mean color; otherwise as
                there.
            threads: see `read_images`.

        Returns:
            An iterator over x (B, C, H, W) and y (B,) int64, or the result of `augment`.

        Raises:
            ValueError: immediately, for an invalid batch size or position; DataError when a file is not an image.
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


def image_folder(
    folder: StrPath, classes: tuple[str, ...] | None = None, report: Callable[[str], None] = print
) -> ImageFolder:
    """List a folder of classes, including nested folders; no image is opened.

    Names that begin with a dot are skipped. Class names are compared in Unicode's composed form (NFC), since some
    systems decompose accents.

    Args:
        folder: with a folder of images for each class.
        classes: the permitted classes, such as those of another part of the same data; None permits all.
        report: gets one line with the number and names of files that Pillow cannot read, such as broken links.

    Raises:
        DataError: the folder is missing, has no classes, an unknown one, or one without images; a link leads back to a
            folder that holds it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: name one that holds a folder of images for each class")
    found = _folders(folder)
    if not found:
        raise DataError(f"{folder} holds no folders: put the images of each class into a folder named after the class")
    every = tuple(sorted({_class(name) for name in found})) if classes is None else tuple(classes)
    numbers = {_class(name): number for number, name in enumerate(every)}
    unknown = [name for name in found if _class(name) not in numbers]
    if unknown:
        known = ", ".join(every[:10])
        raise DataError(f"{folder / printable(unknown[0])}: a class that is not among the training classes ({known})")
    names: list[str] = []
    labels: list[int] = []
    rest: list[str] = []
    suffixes = _suffixes()
    for name in found:
        images = sorted(_listed(folder, name, suffixes, rest))
        if not images:
            raise DataError(f"{folder / printable(name)} holds no images ({', '.join(SUFFIXES)}): fill or remove it")
        names += images
        labels += [numbers[_class(name)]] * len(images)
    if rest:
        shown = ", ".join(map(printable, sorted(rest)[:5])) + ", ..." * (len(rest) > 5)
        report(
            f"minivit: {len(rest):,} of {len(rest) + len(names):,} files in {folder} are skipped, because they are no "
            f"images that Pillow can read here: {shown}"
        )
    return ImageFolder(folder, every, np.array(names), np.array(labels, np.int64))


def split_folder(
    folder: StrPath, held_out: float = 0.1, seed: int = 0, report: Callable[[str], None] = print
) -> tuple[ImageFolder, ImageFolder]:
    """The training images and the held-out images: two folders, or a share of each class.

    Args:
        folder: holds the classes; or `train` (or `training`) with the classes, and perhaps `val`, `valid`, `validation`
            or else `test` with the same ones, in upper or lower case.
        held_out: without such folders, the share (float) or number (int) of images to hold out, as `data.holdout`.
        seed: of that choice.
        report: as `image_folder`.

    Raises:
        DataError: as `image_folder`; or there is only one class; ValueError: as `data.holdout`.
    """
    folder = Path(folder)
    train = _part(folder, _TRAIN)
    train = (
        train if train is not None and _folders(train) else None
    )  # a class may be called "train": it holds no folders
    learn = image_folder(train or folder, report=report)
    if len(learn.classes) < 2:
        raise DataError(
            f"{learn.folder} holds one class, {learn.classes[0]}, and training needs two: add a folder "
            "of images of another class"
        )
    if train is not None:
        for names in _HELD_OUT:
            held = _part(folder, names)
            if held is not None and (_folders(held) or "test" not in names):  # a test folder may have no classes
                return learn, image_folder(held, learn.classes, report)
    kept, held_indices = holdout(learn.labels, held_out, seed)
    return learn.take(kept), learn.take(held_indices)


def _part(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The one folder of these names, in upper or lower case; None if there is none."""
    found = [name for name in _folders(folder) if name.lower() in names]
    if len(found) > 1:
        raise DataError(f"{folder} holds {' and '.join(found)}, which mean the same: put their images into one")
    return folder / found[0] if found else None


def read_images(paths: Sequence[str] | NDArray[np.str_], preprocess: Read, threads: int | None = None) -> Array:
    """Files as an array (B, C, H, W).

    Args:
        paths: of B files.
        preprocess: path -> (C, H, W), all of one shape.
        threads: how many files are read at a time; the usable cores by default.

    Raises:
        DataError: a file is not an image; names it.
    """
    threads = usable_cores() if threads is None else threads
    return np.stack(in_threads(lambda path: _read(Path(path), preprocess), list(paths), threads))


def _class(name: str) -> str:
    """The class of a folder's name: printable, and in one form of Unicode."""
    return printable(unicodedata.normalize("NFC", name))


def _suffixes() -> tuple[str, ...]:
    """The suffixes of images that Pillow can read here, including plugins such as pillow_heif."""
    try:
        from PIL import Image
    except ImportError:
        return SUFFIXES
    Image.init()
    readable = set(Image.OPEN) - set(_NO_PICTURES)
    return (*SUFFIXES, *(suffix for suffix, kind in Image.registered_extensions().items() if kind in readable))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        return [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{folder} cannot be read ({error.strerror}): check its permissions") from None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno != errno.ELOOP:
            return False  # a link through a file is broken
        raise DataError(f"{entry.path} cannot be followed ({error.strerror}): remove this link") from None


def _folders(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in _entries(folder) if _is_folder(entry))


def _listed(top: Path, name: str, suffixes: tuple[str, ...], rest: list[str]) -> Iterator[str]:
    """The images in a folder of `top` and its subfolders; the names of other files are added to `rest`."""
    pending: list[tuple[str, tuple[str, ...]]] = [(name, (os.path.realpath(top),))]
    while pending:
        within, above = pending.pop()
        here = os.path.realpath(top / within)
        if here in above:
            raise DataError(f"{top / within} is a link that leads back to a folder which holds it: remove it")
        for entry in _entries(top / within):
            inside = f"{within}/{entry.name}"
            if _is_folder(entry):
                pending.append((inside, (*above, here)))
            elif os.path.isfile(entry.path) and entry.name.lower().endswith(suffixes):
                yield inside
            else:
                rest.append(inside)


def _read(path: Path, preprocess: Read) -> Any:
    try:
        return preprocess(path)
    except ImportError:
        raise  # not the file's fault: Pillow is not installed
    except Exception as error:  # Pillow's decoders raise many types of errors
        if str(path) in str(error) and isinstance(error, ValueError):
            raise
        raise DataError(f"{path} cannot be read as an image ({error}): repair or remove it") from error
