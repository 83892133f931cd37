"""Files of torch.save, in both of its formats, read without PyTorch: tensors as NumPy arrays, the rest as plain data.

No code in a file is run, and its claims are compared with its size before memory is allocated.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from io import BufferedReader
from typing import Any, TypeAlias

import numpy as np

from minivit.io.budget import open_file
from minivit.io.safetensors import CheckpointError
from minivit.io.text import quoted
from minivit.io.torch_file.bounds import DAMAGED, REFUSED, Source, Unreadable, check
from minivit.io.torch_file.globals import Named, NumpyArray, NumpyType
from minivit.io.torch_file.tensors import Storage, Tensor, storage_class, to_numbers
from minivit.io.torch_file.unpickler import Unpickler
from minivit.io.torch_file.zip_entries import Entry, find_entries

StrPath: TypeAlias = "str | os.PathLike[str]"

MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of the older format, and its protocol, the second
PROTOCOL = 1001
CHUNK = 1 << 20  # 1 MiB: read and summed at a time, while it is in the processor's cache
MAX_DEPTH = 100  # nested containers; Python's recursion limit is 1000
MAX_ITEMS = 10_000_000  # items, with shared objects counted once for each reference

_OTHERS = [
    (b"<", "it is a web page: the download went wrong, check the address and fetch it again"),
    (b"version https://git-lfs", "it is a pointer of Git LFS: fetch the file itself with `git lfs pull`"),
    (b"\x1f\x8b", "it is compressed with gzip: decompress it first"),
    (b"\x89HDF", "it is an HDF5 file, as Keras writes them: fetch the weights in PyTorch's format or as safetensors"),
]


def read_torch_file(path: StrPath) -> Any:
    """Read a file that torch.save wrote, or a pickle (protocol 2 to 5) of plain data and NumPy arrays.

    Tensors, parameters and storages become NumPy arrays of their dtype and in native byte order, except that bfloat16
    becomes float32, exactly. Attributes of an argparse.Namespace and items of a yacs CfgNode, an OrderedDict, a
    defaultdict or a Counter become a plain dict; torch.Size a tuple; a dtype, a device or a class its name.

    The arrays do not map the file, which may be changed or deleted afterwards. They are read-only, because tensors that
    shared a storage still do: copy one before changing it.

    Args:
        path: the file, in the zip format (since PyTorch 1.6) or in the older one; its content decides which.

    Returns:
        The saved object, usually a dict of arrays or of further dicts, lists, tuples, sets, numbers and text.

    Raises:
        CheckpointError: the file cannot be opened, is not of this kind, is truncated or damaged, or contains anything
            but tensors and plain data.
    """
    name = os.fspath(path)
    if not os.path.isfile(name):
        raise CheckpointError(
            f"{name} is {'a folder' if os.path.isdir(name) else 'missing or no file'}: check the path"
        )
    try:
        with open_file(name) as file:
            return _read(file, os.fstat(file.fileno()).st_size)
    except Unreadable as fault:
        raise CheckpointError(f"{name} {fault}") from None
    except OSError as error:
        raise CheckpointError(f"{name} cannot be read ({error}): check path and permissions") from None
    except MemoryError:
        raise CheckpointError(f"{name} needs more memory than there is: close other programs") from None


def _read(file: BufferedReader, size: int) -> Any:
    start = file.read(32)
    if start.startswith(b"PK\3\4"):
        return _read_zip(file, size)
    if start.startswith(b"\x80"):
        return _read_pickles(file, size)
    hint = next((text for magic, text in _OTHERS if start.startswith(magic)), "")
    if start[8:10] == b'{"':
        hint = "it is a safetensors file: read it with minivit.load"
    found = start[:8].hex(" ") or "nothing"
    raise Unreadable(f"is no PyTorch file, it begins with {found}: {hint or 'check where it came from'}")


def _read_zip(file: BufferedReader, size: int) -> Any:
    entries = find_entries(file, size)
    roots = [name.removesuffix("/data.pkl") for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    check(
        len(roots) == 1,
        f"is a zip archive with {len(roots)} entries `*/data.pkl`, and a PyTorch file has one: {DAMAGED}",
    )
    (root,) = roots
    if f"{root}/constants.pkl" in entries:
        raise Unreadable("is a TorchScript program: save the weights alone, torch.save(module.state_dict(), path)")
    order = b"little"
    if f"{root}/byteorder" in entries:
        entry = entries[f"{root}/byteorder"]
        order = _content(file, entry).tobytes() if entry.size <= 6 else b""
        check(order in (b"little", b"big"), f"has numbers of unknown byte order, {quoted(order)}: fetch it again")

    storages: dict[str, Storage] = {}

    def persistent(identity: Any) -> Storage:
        storage = _named_storage(identity, storages)
        entry = entries.get(f"{root}/data/{storage.key}")
        check(entry is not None, f"lacks the entry data/{quoted(storage.key)[1:-1]}: it is truncated, fetch it again")
        found = entry.size if entry else 0
        check(
            found == storage.nbytes,
            f"claims {storage.nbytes} bytes for the storage {quoted(storage.key)} and has {found}: fetch it again",
        )
        return storage

    entry = entries[f"{root}/data.pkl"]
    _content(file, entry)  # for its checksum
    source = Source(file, entry.start, entry.size)
    result = Unpickler(source, persistent).load()
    check(source.left == 0, f"has {source.left} bytes after the end of its pickle: {DAMAGED}")

    def read(storage: Storage) -> Any:
        raw = _content(file, entries[f"{root}/data/{storage.key}"])
        return to_numbers(raw, storage.dtype or "uint8", order == b"big")

    return _Finish(read).value(result)


def _read_pickles(file: BufferedReader, size: int) -> Any:
    """The older format, which is five pickles and the storages one after the other; or a single pickle."""
    source, storages = Source(file, 0, size), dict[str, Storage]()
    first = Unpickler(source, _nothing_outside).load()
    if type(first) is not int:
        check(source.left == 0, f"has {source.left} bytes after the end of its pickle: {DAMAGED}")
        return _Finish(lambda storage: None).value(first)
    check(first == MAGIC, f"begins with the number {first:#x}, expected {MAGIC:#x}: it is no PyTorch file or damaged")
    version = Unpickler(source, _nothing_outside).load()
    check(type(version) is int and version == PROTOCOL, f"has protocol {quoted(version)}, expected {PROTOCOL}")
    Unpickler(source, _nothing_outside).load()  # the machine that wrote it; the storages are little-endian on any
    result = Unpickler(source, lambda identity: _named_storage(identity, storages)).load()
    keys = Unpickler(source, _nothing_outside).load()
    check(type(keys) is list and all(type(key) is str for key in keys), f"lists storages without names: {DAMAGED}")
    check(sorted(keys) == sorted(storages), f"lists other storages than its tensors use: {DAMAGED}")
    stored = {key: _stored(source, storages[key]) for key in keys}
    check(source.left == 0, f"has {source.left} bytes after its last storage: {DAMAGED}")

    def read(storage: Storage) -> Any:
        return to_numbers(_content(file, stored[storage.key]), storage.dtype or "uint8", False)

    return _Finish(read).value(result)


def _stored(source: Source, storage: Storage) -> Entry:
    """The position of the next storage, after the number of its items, 8 bytes."""
    (count,) = struct.unpack("<q", source.take(8))
    check(
        count == storage.count,
        f"has {count} items in the storage {quoted(storage.key)}, expected {storage.count}: {DAMAGED}",
    )
    start = source.position
    source.skip(storage.nbytes)
    return Entry(start, storage.nbytes, 0)


def _nothing_outside(identity: Any) -> Any:
    raise Unreadable(f"names an object outside its pickle, and nothing in it was run: {REFUSED}")


def _named_storage(identity: Any, storages: dict[str, Storage]) -> Storage:
    """The storage that a tuple ("storage", class, key, device, number of items[, None]) names."""
    fits = type(identity) is tuple and (len(identity) == 5 or (len(identity) == 6 and identity[5] is None))
    check(
        fits and type(identity[0]) is str and identity[0] == "storage",
        f"names {quoted(identity)} as a storage: {DAMAGED}",
    )
    _, cls, key, _, count = identity[:5]
    dtype = storage_class(cls)
    fits = dtype is not None and type(key) is str and type(count) is int and count >= 0
    check(fits, f"names a storage of no dtype, name or size that PyTorch writes: {DAMAGED}")
    storage = storages.setdefault(key, Storage(key, dtype or "", count))
    check(
        (storage.stored_as, storage.count) == (dtype, count),
        f"gives two dtypes or sizes for the storage {quoted(key)}: {DAMAGED}",
    )
    return storage


def _content(file: BufferedReader, entry: Entry) -> Any:
    """The bytes of an entry, compared with its checksum; 0 means that torch.save wrote none."""
    raw, crc = np.empty(entry.size, np.uint8), 0
    file.seek(entry.start)
    for at in range(0, entry.size, CHUNK):
        part = raw[at : at + CHUNK].data
        check(file.readinto(part) == len(part), "ends before its claimed size: fetch it again")
        if entry.crc:
            crc = zlib.crc32(part, crc)
    check(crc == entry.crc, f"has bytes after byte {entry.start} that differ from their checksum: fetch it again")
    return raw


class _Finish:
    """Replaces tensors by arrays, and the other placeholders by plain data.

    Pickles may reference one object many times. A list that holds the same list twice, which does the same, 60 levels
    deep, takes a few hundred bytes of file and memory, but would never end for a reader that follows each reference.
    """

    def __init__(self, read: Callable[[Storage], Any]) -> None:
        self._read = read
        self._done: dict[int, tuple[Any, Any, int, int]] = {}  # by id: the object, to keep it alive, and the result

    def value(self, value: Any) -> Any:
        """The value that the user gets."""
        return self._visit(value, 0)[0]

    def _visit(self, value: Any, depth: int) -> tuple[Any, int, int]:
        """The finished value, its number of levels, and of items."""
        if not isinstance(value, _UNFINISHED):
            return value, 0, 1 + (len(value) if isinstance(value, (set, frozenset)) else 0)
        _, result, height, items = self._done.get(id(value)) or self._finish(value, depth)
        _check_depth(depth + height)
        return result, height, items

    def _finish(self, value: Any, depth: int) -> tuple[Any, Any, int, int]:
        _check_depth(depth)  # an object that contains itself reaches this again and again
        parts, results, height, items = _parts(value), [], 0, 1
        for part in parts:
            result, levels, inside = self._visit(part, depth + 1)
            results.append(result)
            height, items = max(height, levels + 1), items + inside
        check(items <= MAX_ITEMS, f"would hold more than {MAX_ITEMS} items if each were written out: {REFUSED}")
        if isinstance(value, dict):
            finished: Any = dict(zip(value, results))
        elif isinstance(value, (list, tuple)):
            finished = results if isinstance(value, list) else tuple(results)
        else:
            finished = self._leaf(value)
        self._done[id(value)] = value, finished, height, items
        return self._done[id(value)]

    def _leaf(self, value: Any) -> Any:
        if isinstance(value, NumpyType):
            return str(value.dtype)
        if isinstance(value, NumpyArray):
            check(value.value is not None, f"holds a NumPy array without content: {DAMAGED}")
            return value.value
        if isinstance(value, Named):
            return value.name
        storage = value.storage if isinstance(value, Tensor) else value
        if storage.base is None:
            storage.base = self._read(storage)
        return value.array() if isinstance(value, Tensor) else storage.base


_UNFINISHED = (dict, list, tuple, Tensor, Storage, Named, NumpyArray, NumpyType)


def _parts(value: Any) -> Any:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, (list, tuple)) else ()


def _check_depth(depth: int) -> None:
    check(depth <= MAX_DEPTH, f"holds lists or dicts nested more than {MAX_DEPTH} deep: {REFUSED}")
