"""Any file of weights as arrays by name: safetensors, PyTorch, NumPy's .npz, in one file or in shards.

No code in a file is run, and every fault is a CheckpointError that names the file.
"""

from __future__ import annotations

import codecs
import os
import zipfile
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np

from minivit.io.budget import most_unpacked, open_file, parse_json, read_small
from minivit.io.safetensors import CheckpointError, fresh_memory, load_arrays, widened
from minivit.io.saved_object import named_arrays
from minivit.io.text import quoted
from minivit.io.torch_file.bounds import DAMAGED, REFUSED, Unreadable
from minivit.io.torch_file.reader import read_torch_file
from minivit.io.torch_file.zip_entries import find_entries
from minivit.protocol import Array

_SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".tar", ".bin", ".npz")  # .tar as in .pth.tar
_IN_FOLDER = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class Weights:
    """The content of a file.

    Attributes:
        path: of the file.
        arrays: by the file's names.
        content: the description in a file of minivit's, else empty.
        config: config.json next to the file, as Hugging Face and timm write it, else empty.
        config_fault: the reason why config.json could not be read.
        note: what else the file holds, of which these arrays were chosen, in words; else empty.
    """

    path: Path
    arrays: dict[str, Array] = field(repr=False)
    content: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    config_fault: str | None = None
    note: str = ""


def read_weights(path: str | os.PathLike[str]) -> Weights:
    """The arrays of a file, or of a folder that holds one.

    Raises:
        CheckpointError: if there is no such file, or it is damaged, or holds other objects than plain data.
    """
    file = _file_in(Path(path))
    config, fault = read_config(file.parent / "config.json")
    if file.name.endswith(".index.json"):
        return Weights(file, _shards(file), {}, config, fault)
    arrays, content, note = _one(file)
    return Weights(file, arrays, content, config, fault, note)


def _file_in(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = [path / name for name in _IN_FOLDER if (path / name).is_file()]
    found = found or sorted(each for each in path.iterdir() if each.is_file() and each.suffix in _SUFFIXES)
    if not found:
        raise CheckpointError(f"{path} is a folder without weights: expected one of {', '.join(_IN_FOLDER)}")
    if len(found) > 1 and found[0].name not in _IN_FOLDER:
        names = ", ".join(quoted(each.name) for each in found[:5]) + ", ..." * (len(found) > 5)
        raise CheckpointError(f"{path} holds {len(found)} files of weights ({names}): choose one and pass its path")
    return found[0]


def _one(file: Path) -> tuple[dict[str, Array], dict[str, Any], str]:
    """Arrays, description and note; see `Weights`."""
    start = _start(file)
    if start[8:9] == b"{":
        return *load_arrays(file), ""
    if start.startswith(b"PK") and _is_npz(file):
        return _npz(file), {}, ""
    arrays, note = _named(file, read_torch_file(file))
    return arrays, {}, note


def _start(file: Path) -> bytes:
    try:
        with open_file(file) as stream:
            return stream.read(16)
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        reason = getattr(error, "strerror", None) or error
        missing = "no such file" if not os.path.exists(file) else f"cannot be read ({reason})"
        raise CheckpointError(f"{file}: {missing}, check the path") from None


def _is_npz(file: Path) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            return bool(names) and all(name.endswith(".npy") for name in names)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False  # the other reader names the fault


def _npz(file: Path) -> dict[str, Array]:
    """np.load without pickles; sizes are compared with the file before anything is allocated."""
    arrays: dict[str, Array] = {}
    try:
        with open_file(file) as data, zipfile.ZipFile(data) as archive:
            if archive.comment or any(entry.comment or b"PK" in entry.extra for entry in archive.infolist()):
                raise ValueError("it has comments, which NumPy does not write")  # a wrong length hides entries in one
            _check_entries(archive, data)
            for entry in archive.infolist():
                with archive.open(entry) as stream:
                    arrays[entry.filename.removesuffix(".npy")] = _npy(file, entry, stream)
    except Unreadable as fault:
        raise CheckpointError(f"{file} {fault}") from None
    except CheckpointError:
        raise
    except MemoryError:
        raise CheckpointError(f"{file} needs more memory than there is: close other programs") from None
    except Exception as error:  # zipfile and NumPy raise at least seven types for damaged files
        reason = quoted(str(error).split("\n")[0])[1:-1]  # NumPy's may have three lines, with a complete header
        raise CheckpointError(f"{file} is not a complete .npz file ({reason}): fetch it again") from None
    return arrays


def _check_entries(archive: zipfile.ZipFile, data: BufferedReader) -> None:
    """Refuse entries that overlap, or that unpack to more than the file may."""
    size = os.fstat(data.fileno()).st_size
    entries = find_entries(data, size, deflated=True)
    unpacked = sum(entry.size for entry in entries.values())
    if unpacked > most_unpacked(size):
        raise Unreadable(f"is {size} bytes long and unpacks to {unpacked}: {REFUSED}")
    listed = {each.filename: (each.header_offset, each.compress_size, each.file_size) for each in archive.infolist()}
    if listed != {name: (each.offset, each.packed, each.size) for name, each in entries.items()}:
        raise Unreadable(f"has two zip directories that differ: {DAMAGED}")


def _npy(file: Path, entry: zipfile.ZipInfo, stream: Any) -> Array:
    version = np.lib.format.read_magic(stream)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = header(stream)
    count = int(np.prod(shape, dtype=object))
    if dtype.hasobject or count * dtype.itemsize != entry.file_size - stream.tell():
        raise CheckpointError(
            f"{file}: the entry {entry.filename!r} claims {shape} of {dtype}, which do not fit its size: {DAMAGED}"
        )
    memory = fresh_memory(count * dtype.itemsize)
    if stream.readinto(memory.data) != len(memory) or stream.read(1):  # to the end, where the checksum is compared
        raise ValueError(f"the entry {quoted(entry.filename)} ends too soon")
    array = memory.view(dtype).reshape(shape, order="F" if fortran else "C")
    return widened(array.view(np.uint16)) if dtype == np.dtype("V2") else array  # V2: JAX's bfloat16


def _shards(index: Path) -> dict[str, Array]:
    """The arrays of all files that an index names."""
    shards = shards_of(index)
    arrays: dict[str, Array] = {}
    for name in sorted(set(shards.values())):
        arrays |= _one(index.parent / name)[0]
    missing = [name for name in shards if name not in arrays]
    if missing:
        raise CheckpointError(
            f"{index} names {len(missing)} arrays that its shards lack, first {quoted(missing[0])}: {DAMAGED}"
        )
    return arrays


def shards_of(index: Path) -> dict[str, str]:
    """The file name of each array in an index.

    Raises:
        CheckpointError: if it is not an index, or names files that are not in its folder.
    """
    try:
        shards = parse_json(read_small(index))["weight_map"]
        if not all(isinstance(name, str) for name in shards.values()):
            raise ValueError("it names files by other values than text")
        plain = all(map(_is_plain, shards.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is not an index of shards ({error}): remove it, and fetch it again") from None
    if not plain:
        raise CheckpointError(f"{index} names files outside its folder: {REFUSED}")
    return dict(shards)


def _is_plain(name: str) -> bool:
    """Whether it is the name of a file in the same folder, short enough for any system."""
    plain = Path(name).name == name and PureWindowsPath(name).name == name  # on any system
    return plain and name not in ("", ".", "..") and name.isprintable() and len(name) < 256


def _named(file: Path, content: Any) -> tuple[dict[str, Array], str]:
    """The arrays of the model in a saved object, and the note."""
    try:
        arrays, note = named_arrays(content)
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}") from None
    if arrays:
        return arrays, note
    kind = f"a dict of {', '.join(map(repr, list(content)[:3]))}" if isinstance(content, dict) else f"{content!r:.60}"
    raise CheckpointError(f"{file} holds no named arrays but {kind}: expected a state dict, or one under 'model'")


def read_config(path: Path) -> tuple[dict[str, Any], str | None]:
    """A configuration in JSON, empty if there is no such file, and why it could not be read, or None."""
    try:
        data = read_small(path)
    except FileNotFoundError:
        return {}, None
    except (OSError, ValueError) as error:
        return {}, f"{path} cannot be read: {getattr(error, 'strerror', None) or error}"
    coding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        config = parse_json(data.decode(coding))
    except ValueError as error:
        return {}, f"{path} is not JSON in UTF-8: {error}"
    return (config, None) if isinstance(config, dict) else ({}, f"{path} holds no JSON object")


# byte-order marks; that of UTF-32 begins with that of UTF-16
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
