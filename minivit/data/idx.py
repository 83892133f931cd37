"""IDX, the format of MNIST: a writer, and a reader that checks a file's claims."""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import os
import struct
import zlib
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray

from minivit.io.atomic import write_atomically
from minivit.io.budget import MAX_PADDING, MAX_RATIO, most_unpacked, open_file

Array: TypeAlias = NDArray[Any]
StrPath: TypeAlias = "str | os.PathLike[str]"

# The six type codes, from the format's description (LeCun, Cortes and Burges, the MNIST page).
TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
MAX_DIMS = 8  # published files have 1 to 4; the byte could claim 255, NumPy 1 allows 32
MAX_BYTES = 1 << 30  # 1 GiB: 22 times MNIST's largest file and twice EMNIST's, yet fits in memory
CHUNK = 1 << 20  # 1 MiB: memory beyond the array itself while reading
MAX_MEMBERS = 1000  # of a gzip file: writers make one, parallel writers some dozens
GZIP_MAGIC = b"\x1f\x8b"
_GZIP = 16 + zlib.MAX_WBITS  # zlib's number for its gzip format


class DataError(ValueError):
    """A data file is missing, damaged or of the wrong kind; the message names file and remedy."""


def read_idx(path: StrPath, *, max_bytes: int = MAX_BYTES) -> Array:
    """Read an IDX file, plain or gzipped: its first two bytes decide, not its name.

    The size that the header claims is compared with the file before anything of that size is
    allocated, and at most one byte more than claimed is ever decompressed. Zero bytes after a gzip
    member are padding and ignored, as in gzip; all else must match exactly.

    Args:
        path: the file.
        max_bytes: largest array accepted, in bytes; 1 GiB by default.

    Returns:
        A writable array of the shape in the header, in native byte order: uint8, int8, int16,
        int32, float32 or float64.

    Raises:
        DataError: the file cannot be opened, is not IDX, is truncated, has trailing bytes, a bad
            checksum, more than 8 dimensions, or claims more than `max_bytes`.
    """
    name = os.fspath(path)
    try:
        with open_file(name) as file:
            return _read(file, name, os.fstat(file.fileno()).st_size, max_bytes)
    except (OSError, io.UnsupportedOperation) as error:
        raise DataError(f"{name}: cannot be read ({error}): check path and permissions") from error


def parse_idx(data: bytes, name: str, *, max_bytes: int = MAX_BYTES) -> Array:
    """`read_idx` for bytes already in memory; `name` stands for the file in errors."""
    return _read(io.BytesIO(data), name, len(data), max_bytes)


def read_labeled(images_path: StrPath, labels_path: StrPath, num_classes: int = 10) -> tuple[Array, Array]:
    """Read a matching pair of IDX files of images and labels.

    Returns:
        images (n, H, W) uint8 and labels (n,) int64, each label in 0 ... num_classes - 1.

    Raises:
        DataError: as `read_idx`; or a file has another type or number of dimensions, the counts
            differ, or a label is out of range (the first such file and index are named).
    """
    images, labels = read_idx(images_path), read_idx(labels_path)
    check_labeled(images, labels, os.fspath(images_path), os.fspath(labels_path), num_classes)
    return images, labels.astype(np.int64)


def check_labeled(images: Array, labels: Array, images_name: str, labels_name: str, num_classes: int) -> None:
    """Raise the DataError that `read_labeled` documents if images and labels do not match."""
    for array, name, ndim, noun in (
        (images, images_name, 3, "images"),
        (labels, labels_name, 1, "labels"),
    ):
        if array.ndim != ndim or array.dtype != np.uint8:
            raise DataError(
                f"{name}: found {array.ndim} dimensions of {array.dtype}, expected {ndim} of "
                f"uint8: this is not a file of {noun}; are images and labels swapped?"
            )
    if len(images) != len(labels):
        raise DataError(
            f"{images_name} holds {len(images)} images but {labels_name} holds {len(labels)} "
            "labels: take both from the same set (train or t10k)"
        )
    bad = labels >= num_classes
    if bad.any():
        first = int(bad.argmax())
        raise DataError(
            f"{labels_name}: label {labels[first]} at index {first}, expected 0 to "
            f"{num_classes - 1}: pass the num_classes of this data set, or fetch the file again"
        )


def write_idx(path: StrPath, array: Array) -> None:
    """Write `array` as IDX, gzipped if the name ends in .gz, atomically.

    Args:
        path: the file; an existing one is replaced.
        array: 1 to 8 dimensions of uint8, int8, int16, int32, float32 or float64.

    Raises:
        DataError: IDX has no code for the dtype, or the shape does not fit its header.
        OSError: the file cannot be written.
    """
    data = idx_header(array) + _big_endian(array).tobytes()
    if os.fspath(path).endswith(".gz"):
        data = gzip.compress(data, mtime=0)  # no time stamp: the same array gives the same file
    write_atomically(Path(path), data)


def content_sha256(array: Array) -> str:
    """SHA-256 (hex) of the uncompressed IDX file that holds `array`.

    An array has exactly one such file, so this is also the hash of the content of its file,
    however it was compressed.
    """
    digest = hashlib.sha256(idx_header(array))
    digest.update(_big_endian(array).data)
    return digest.hexdigest()


def idx_header(array: Array) -> bytes:
    """The magic number and dimensions of `array`'s IDX file: 4 + 4 ndim bytes."""
    codes = {np.dtype(spec).newbyteorder("="): code for code, spec in TYPES.items()}
    code = codes.get(array.dtype.newbyteorder("="))
    if code is None:
        known = ", ".join(str(dtype) for dtype in codes)
        raise DataError(f"IDX has no type code for {array.dtype}: convert to one of {known}")
    if not 1 <= array.ndim <= MAX_DIMS or max(array.shape) >= 1 << 32:
        raise DataError(
            f"shape {array.shape} does not fit an IDX header: reshape to 1 to {MAX_DIMS} dimensions, each below 2**32"
        )
    return struct.pack(f">HBB{array.ndim}I", 0, code, array.ndim, *array.shape)


def _read(file: BinaryIO, name: str, size: int, max_bytes: int) -> Array:
    """Read the array in `file`, which is `size` bytes long and positioned at its start."""
    zipped = file.read(2) == GZIP_MAGIC
    file.seek(0)
    if not zipped:
        dtype, shape, nbytes = _read_header(file, name, max_bytes)
        found = size - 4 - 4 * len(shape)
        if found != nbytes:
            raise DataError(_mismatch(name, shape, nbytes, f"{found} bytes follow it"))
        return _read_payload(file, name, dtype, shape, nbytes)
    try:
        content = _Unzipped(file)
        dtype, shape, nbytes = _read_header(content, name, max_bytes)
        if nbytes > most_unpacked(size):
            found_text = (
                f"no gzip file of {size} bytes may unpack to that, {MAX_RATIO} times as much: decompress it first"
            )
            raise DataError(_mismatch(name, shape, nbytes, found_text))
        return _read_payload(content, name, dtype, shape, nbytes)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{name}: damaged gzip stream ({error}), expected one complete IDX file: fetch it again"
        ) from error


class _Unzipped:
    """The content of a gzip file with limited numbers of members and padding bytes.

    `gzip.GzipFile` reads a member's name, and zero bytes after a member, one at a time: minutes for some hundred MB.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._left = file, b""
        self._member: Any = zlib.decompressobj(_GZIP)
        self._members = 1
        self._padding = 0

    def read(self, count: int) -> bytes:
        """`count` bytes, or fewer at the end, after each member was compared with its checksum."""
        data = b""
        while len(data) < count and (self._member is not None or self._next_member()):
            data += self._more(count - len(data))
        return data

    def _more(self, count: int) -> bytes:
        """Up to `count` bytes of the current member."""
        packed = self._left or self._file.read(CHUNK)
        try:
            data: bytes = self._member.decompress(packed, count)
        except zlib.error as error:
            raise gzip.BadGzipFile("CRC check failed" if "data check" in str(error) else str(error)) from None
        self._left = self._member.unconsumed_tail
        if self._member.eof:
            self._left, self._member = self._member.unused_data, None
        elif not data and not packed:
            raise EOFError("it ends before its end-of-stream marker")
        return data

    def _next_member(self) -> bool:
        """Continue with the next member, after zero bytes; False at the end of the file."""
        while not (rest := self._left.lstrip(b"\0")):
            self._padding += len(self._left)
            if self._padding > MAX_PADDING:
                raise gzip.BadGzipFile(f"more than {MAX_PADDING} zero bytes after it")
            self._left = self._file.read(CHUNK)
            if not self._left:
                return False
        self._left = rest if len(rest) > 1 else rest + self._file.read(1)
        self._members += 1
        if not self._left.startswith(GZIP_MAGIC):
            raise gzip.BadGzipFile(f"not a gzip member, it begins with {self._left[:2]!r}")
        if self._members > MAX_MEMBERS:
            raise gzip.BadGzipFile(f"more than {MAX_MEMBERS} members")
        self._member = zlib.decompressobj(_GZIP)
        return True


def _read_header(file: BinaryIO | _Unzipped, name: str, max_bytes: int) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    """Read and check the header; the last of the three results is the payload's size in bytes."""
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in TYPES:
        raise DataError(
            f"{name}: begins with bytes {magic.hex(' ') or '(none)'}, expected 00 00, a type code "
            "(08 09 0b 0c 0d 0e) and the number of dimensions: this is not an IDX file"
        )
    ndim = magic[3]
    if not 1 <= ndim <= MAX_DIMS:
        raise DataError(f"{name}: header claims {ndim} dimensions, expected 1 to {MAX_DIMS}")
    dims = file.read(4 * ndim)
    if len(dims) < 4 * ndim:
        raise DataError(
            f"{name}: ends after {4 + len(dims)} bytes, expected a header of {4 + 4 * ndim}: "
            "the file is truncated, fetch it again"
        )
    shape, dtype = struct.unpack(f">{ndim}I", dims), np.dtype(TYPES[magic[2]])
    # A dimension of 0 must not hide others that NumPy cannot represent: count it as 1.
    if math.prod(max(dim, 1) for dim in shape) * dtype.itemsize > max_bytes:
        raise DataError(
            f"{name}: header claims shape {shape} of {dtype.itemsize}-byte items, expected at most "
            f"{max_bytes} bytes: if the file is trusted, pass a larger max_bytes to read_idx"
        )
    return dtype, shape, math.prod(shape) * dtype.itemsize


def _read_payload(
    file: BinaryIO | _Unzipped,
    name: str,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    nbytes: int,
) -> Array:
    """Read exactly `nbytes` bytes and the end of file, which is where gzip checks its CRC."""
    payload = bytearray()
    while chunk := file.read(min(CHUNK, nbytes + 1 - len(payload))):
        payload += chunk
        if len(payload) > nbytes:
            raise DataError(_mismatch(name, shape, nbytes, "more bytes follow it"))
    if len(payload) < nbytes:
        raise DataError(_mismatch(name, shape, nbytes, f"{len(payload)} bytes follow it"))
    array: Array = np.ndarray(shape, dtype, buffer=payload)
    return array.astype(dtype.newbyteorder("="), copy=False)


def _mismatch(name: str, shape: tuple[int, ...], nbytes: int, found: str) -> str:
    return (
        f"{name}: header claims shape {shape}, expected {nbytes} bytes of data after it, but "
        f"{found}: the file is truncated or damaged, fetch it again"
    )


def _big_endian(array: Array) -> Array:
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder(">"))
