"""Files: arrays saved as safetensors with a hash of their content, written atomically.

Files contain no pickle, only numbers and text, and reading one runs no code.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np

from minivit.device import to_numpy
from minivit.io.atomic import write_atomically
from minivit.io.budget import MAX_TEXT, open_file, parse_json
from minivit.io.text import printable, quoted
from minivit.protocol import Array
from minivit.renamed import old_names

_FORMAT = "1"  # raised when an old reader could no longer understand the file
_KEYS = ("minivit_format", "minivit_content", "minivit_sha256")
_DTYPES = {
    "BOOL": "?",
    "U8": "u1",
    "I8": "i1",
    "U16": "<u2",
    "I16": "<i2",
    "U32": "<u4",
    "I32": "<i4",
    "U64": "<u8",
    "I64": "<i8",
    "F16": "<f2",
    "F32": "<f4",
    "F64": "<f8",
    "BF16": "<u2",
}


_TORCH = "a file of torch.save"
_OTHER_FORMATS = {  # the formats that the endings of file names stand for
    **dict.fromkeys((".pt", ".pth", ".bin", ".ckpt", ".tar"), _TORCH),
    **dict.fromkeys((".npz", ".npy"), "a file of numpy.save"),
    **dict.fromkeys((".pkl", ".pickle"), "a pickle"),
    **dict.fromkeys((".h5", ".hdf5", ".keras"), "a file of Keras"),
    ".onnx": "a file of ONNX",
    ".gguf": "a file of GGUF",
    ".msgpack": "a file of Flax",
    ".json": "a text",
}


class CheckpointError(ValueError):
    """A file that cannot be read, is damaged, or does not fit; names the file and the expected content."""


def save_arrays(path: str | Path, arrays: dict[str, Array], content: dict[str, Any] | None) -> None:
    """Write arrays and a JSON-able description, atomically, with a SHA-256 of both; equal input gives equal bytes.

    With content None the file has no description and no hash, like PyTorch's.

    Raises:
        ValueError: for a file name of another format.
        CheckpointError: for arrays of a dtype that the format does not have.
    """
    ending = Path(path).suffix.lower()
    if ending in _OTHER_FORMATS:
        raise ValueError(
            f"{path}: minivit writes the safetensors format, and {ending} promises {_OTHER_FORMATS[ending]}: name it "
            f"{Path(path).with_suffix('.safetensors').name}, which timm, transformers and safetensors.torch read too"
        )
    from safetensors import SafetensorError
    from safetensors.numpy import save as to_bytes

    # safetensors 0.8.0 writes the raw buffer of a transposed or strided array silently (its issue 825)
    host = {name: _plain(to_numpy(array)) for name, array in arrays.items()}
    metadata = {"format": "pt"}  # transformers refuses a file without it
    if content is not None:
        text = json.dumps(content, sort_keys=True)
        metadata = dict(zip(_KEYS, (_FORMAT, text, _digest(host, text))))
    try:
        data = to_bytes(host, metadata=metadata)
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} cannot hold these arrays ({error}): convert them to float32 or float64"
        ) from None
    write_atomically(Path(path), *_in_order(data))


def _plain(array: Array) -> Array:
    """C-contiguous, in this machine's byte order, of the same shape."""
    return np.asarray(array, array.dtype.newbyteorder("="), order="C")


def _in_order(data: bytes) -> tuple[bytes, memoryview]:
    """A safetensors file with the entries of its description sorted: the library writes them in random order."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # numbers begin at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text, memoryview(data)[start:]


def load_arrays(path: str | Path) -> tuple[dict[str, Array], dict[str, Any]]:
    """Arrays and description of a file; those written by minivit are checked against their hash.

    bfloat16, which NumPy does not know, becomes float32, exactly.

    Raises:
        CheckpointError: if the file is missing, is not a safetensors file, or was changed since it was written.
    """
    from safetensors import SafetensorError

    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is not a regular file" if path.exists() else "no such file"
        raise CheckpointError(f"{path}: {what}, check the path")
    try:
        file, metadata = _opened(path)
        known = [key for key in _KEYS if key in metadata]
        with file:
            arrays, digest = _read(file, metadata[_KEYS[1]] if len(known) == len(_KEYS) else None)
        content = parse_json(metadata[_KEYS[1]]) if len(known) == len(_KEYS) else {}
    except MemoryError:
        raise CheckpointError(f"{path} needs more memory than there is: close other programs") from None
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = printable(str(error)[:200])
        raise CheckpointError(f"{path} is not a complete safetensors file ({reason}): copy or train it again") from None
    if not known and not any("minivit" in key for key in metadata):
        return arrays, {}  # written by another program, without a hash
    if len(known) < len(_KEYS) or metadata[_KEYS[2]] != digest:
        raise CheckpointError(f"{path} is damaged: its content does not match its SHA-256. Restore it from a copy")
    if metadata[_KEYS[0]] != _FORMAT:
        raise CheckpointError(
            f"{path} has format {quoted(metadata[_KEYS[0]])[1:-1]}, this version reads {_FORMAT}: install the version "
            "that wrote it"
        )
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} has {quoted(content)} as its description, expected an object: save it again")
    return arrays, content


def _opened(path: Path) -> tuple[BufferedReader, dict[str, str]]:
    """The file, and the description in its header, all of whose sizes and offsets the library has checked."""
    from safetensors import safe_open

    while True:
        file = open_file(path)
        try:
            length = int.from_bytes(file.read(8), "little")
            if length > MAX_TEXT:
                raise ValueError(f"it claims a header of {length:,} bytes, more than {MAX_TEXT:,}")
            file.seek(0)
            with safe_open(path, framework="numpy") as checked:
                metadata = checked.metadata() or {}
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file, metadata
        except BaseException:
            file.close()
            raise
        file.close()  # it was replaced by another file meanwhile


def _read(file: BufferedReader, text: str | None) -> tuple[dict[str, Array], str]:
    """The arrays of a file whose header was checked, and if there is a description, the digest of both.

    All are parts of one block of memory, and each is hashed while the next one is read. The library's reader needs the
    file in memory twice.
    """
    arrays: dict[str, Array] = {}
    digest = hashlib.sha256((text or "").encode())
    with ThreadPoolExecutor(1) as beside:
        size = int.from_bytes(file.read(8), "little")
        entries = json.loads(file.read(size))
        entries.pop("__metadata__", None)
        length = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        memory = fresh_memory(length)
        hashed = []
        for name in sorted(entries):
            kind, shape, (begin, end) = (entries[name][key] for key in ("dtype", "shape", "data_offsets"))
            if kind not in _DTYPES:
                raise ValueError(f"{name!r} is of dtype {kind}, which NumPy does not know")
            file.seek(8 + size + begin)
            if file.readinto(memory[begin:end].data) != end - begin:
                raise ValueError(f"{name!r} ends too soon")
            array = memory[begin:end].view(_DTYPES[kind]).reshape(shape)
            if kind == "BF16":
                array = widened(array)
            arrays[name] = array
            if text is not None:
                hashed.append(beside.submit(_add, digest, name, array))
        for future in hashed:
            future.result()
    return arrays, digest.hexdigest()


def widened(halves: Array) -> Array:
    """bfloat16, which NumPy does not know, as float32, exactly: uint16 of any shape, the upper halves."""
    return (halves.astype(np.uint32) << 16).view(np.float32)


def fresh_memory(length: int) -> Array:
    """`size` bytes as an array, whose pages the system allocates as they are written to.

    np.empty would request huge pages, which take some virtual machines four times as long as reading the file.
    """
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}  # not Windows
    return np.frombuffer(mmap.mmap(-1, max(1, length), **private), np.uint8)[:length]


def _digest(arrays: dict[str, Array], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        _add(digest, name, arrays[name])
    return digest.hexdigest()


def _add(digest: Any, name: str, array: Array) -> None:
    digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
    digest.update(array.reshape(-1).view(np.uint8).data)


__getattr__ = old_names(__name__, {"save": "minivit.pretrained.save"})
