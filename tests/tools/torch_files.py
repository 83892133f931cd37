"""Writes files as torch.save does, without PyTorch: opcode by opcode, so that a test can write what torch never would.

And reads what should be refused: `outcome` measures what that takes.
"""

from __future__ import annotations

import io
import pickle
import struct
import tracemalloc
import zipfile
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minivit.io.safetensors import CheckpointError
from minivit.io.torch_file import read_torch_file

STORAGES = {
    "f8": "DoubleStorage",
    "f4": "FloatStorage",
    "f2": "HalfStorage",
    "c16": "ComplexDoubleStorage",
    "c8": "ComplexFloatStorage",
    "i8": "LongStorage",
    "i4": "IntStorage",
    "i2": "ShortStorage",
    "i1": "CharStorage",
    "u1": "ByteStorage",
    "b1": "BoolStorage",
}
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


@dataclass(eq=False)
class Global:
    """A name that the pickle requests."""

    module: str
    name: str


@dataclass(eq=False)
class Call:
    """An object that is made by calling a global."""

    function: Global
    args: tuple[Any, ...]


@dataclass(eq=False)
class Ops:
    """Opcodes as they are."""

    code: bytes


@dataclass(eq=False)
class Storage:
    """A row of numbers; `key`, `count` and `kind` are what the pickle says, whatever `data` is."""

    data: np.ndarray
    key: Any = None
    kind: Any = None
    count: Any = None
    device: str = "cpu"
    module: str = "torch"

    def __post_init__(self) -> None:
        self.kind = self.kind or STORAGES[self.data.dtype.str[1:]]
        self.count = len(self.data) if self.count is None else self.count


@dataclass(eq=False)
class Pickle:
    """Pickle protocol 2, with a memo, as `pickle` writes it; `legacy` says which persistent ids."""

    legacy: bool = False
    storages: dict[Any, Storage] = field(default_factory=dict)
    memo: dict[int, tuple[int, Any]] = field(default_factory=dict)

    def dump(self, value: Any) -> bytes:
        return b"\x80\x02" + self.emit(value) + b"."

    def emit(self, value: Any) -> bytes:
        if id(value) in self.memo:
            return b"j" + struct.pack("<I", self.memo[id(value)][0])
        code = self.code(value)
        if isinstance(value, (str, tuple, list, dict, Global, Call)):
            place = len(self.memo)
            self.memo[id(value)] = place, value  # kept alive, so that its id stays its own
            code += b"q" + bytes([place]) if place < 256 else b"r" + struct.pack("<I", place)
        return code

    def code(self, value: Any) -> bytes:
        if value is None or isinstance(value, bool):
            return {None: b"N", True: b"\x88", False: b"\x89"}[value]
        if isinstance(value, int):
            if 0 <= value < 256:
                return b"K" + bytes([value])
            raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            return b"\x8a" + bytes([len(raw)]) + raw
        if isinstance(value, float):
            return b"G" + struct.pack(">d", value)
        if isinstance(value, str):
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        if isinstance(value, tuple):
            return b"(" + b"".join(map(self.emit, value)) + b"t" if value else b")"
        if isinstance(value, list):
            return b"](" + b"".join(map(self.emit, value)) + b"e"
        if isinstance(value, dict):
            return b"}(" + b"".join(self.emit(key) + self.emit(item) for key, item in value.items()) + b"u"
        if isinstance(value, Global):
            return f"c{value.module}\n{value.name}\n".encode()
        if isinstance(value, Call):
            return self.emit(value.function) + self.emit(value.args) + b"R"
        if isinstance(value, Storage):
            return self.emit(self.identity(value)) + b"Q"
        assert isinstance(value, Ops)
        return value.code

    def identity(self, storage: Storage) -> tuple[Any, ...]:
        if storage.key is None:
            storage.key = str(len(self.storages))
        self.storages[storage.key] = storage
        kind = Global(storage.module, storage.kind) if isinstance(storage.kind, str) else storage.kind
        return ("storage", kind, storage.key, storage.device, storage.count, *([None] if self.legacy else []))


V2 = Global("torch._utils", "_rebuild_tensor_v2")
ORDERED = Global("collections", "OrderedDict")


def tensor(storage: Any, size: Any = None, stride: Any = None, offset: Any = 0, function: Global = V2) -> Call:
    """What torch.save writes for a tensor: a window on a storage; a whole array may stand for its storage."""
    if isinstance(storage, np.ndarray):
        size, storage = storage.shape, Storage(storage.reshape(-1))
    if stride is None:
        stride = tuple(int(np.prod(size[axis + 1 :])) for axis in range(len(size)))
    return Call(function, (storage, offset, size, stride, False, Call(ORDERED, ())))


def parameter(data: Any) -> Call:
    return Call(Global("torch._utils", "_rebuild_parameter"), (data, True, Call(ORDERED, ())))


def zipped(entries: dict[str, bytes], alignment: int = 64, **attributes: Any) -> bytes:
    """A zip archive whose entries are stored, and padded as PyTorch pads them; attributes go into the headers."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in entries.items():
            info = zipfile.ZipInfo(name)
            padding = -(buffer.tell() + 30 + len(name) + 4) % alignment
            info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
            for key, value in attributes.items():
                setattr(info, key, value)
            archive.writestr(info, data, attributes.get("compress_type", zipfile.ZIP_STORED))
    return buffer.getvalue()


def entries_of(value: Any, prefix: str = "archive", order: str | None = "little", **more: bytes) -> dict[str, bytes]:
    """The entries of the newer format: the pickle, and each storage."""
    pickled = Pickle()
    entries = {f"{prefix}/data.pkl": pickled.dump(value)}
    if order is not None:
        entries[f"{prefix}/byteorder"] = order.encode()
    for key, storage in pickled.storages.items():
        data = storage.data.astype(storage.data.dtype.newbyteorder(">" if order == "big" else "<"))
        entries[f"{prefix}/data/{key}"] = data.tobytes()
    return {**entries, f"{prefix}/version": b"3\n", **more}


def new_file(value: Any, prefix: str = "archive", order: str | None = "little") -> bytes:
    return zipped(entries_of(value, prefix, order))


def old_file(value: Any, keys: Any = None, magic: Any = MAGIC, protocol: Any = PROTOCOL, tail: bytes = b"") -> bytes:
    """The format of torch.save before 1.6: five pickles and the storages."""
    pickled = Pickle(legacy=True)
    data = b"".join(pickle.dumps(part, 2) for part in (magic, protocol, {"little_endian": True}))
    data += pickled.dump(value)
    data += pickle.dumps(sorted(pickled.storages) if keys is None else keys, 2)
    for key in sorted(pickled.storages):
        array = pickled.storages[key].data
        data += struct.pack("<q", len(array)) + array.astype(array.dtype.newbyteorder("<")).tobytes()
    return data + tail


def bare_file(value: Any) -> bytes:
    return Pickle().dump(value)


FORMATS = {"zip": new_file, "old": old_file}


SLACK = 300_000  # bytes beyond twice the file: names, messages, and a buffer for reading
_PLAIN = (set, frozenset, str, bytes, bytearray, int, float, complex, np.ndarray, np.generic, type(None))


def is_plain(value: Any) -> bool:
    """Whether it holds arrays and plain data, and nothing else."""
    if type(value) is dict:
        return all(map(is_plain, value.keys())) and all(map(is_plain, value.values()))
    return all(map(is_plain, value)) if type(value) in (list, tuple) else isinstance(value, _PLAIN)


def outcome(path: Any, data: bytes, slack: int = SLACK) -> Any:
    """What is read, or the message of the error; memory stays below twice the file."""
    path.write_bytes(data)
    tracemalloc.start()
    try:
        value = read_torch_file(path)
        assert is_plain(value)
        return value
    except CheckpointError as error:
        assert str(error).startswith(f"{path} ")
        return str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2 * len(data) + slack, f"{peak} bytes for a file of {len(data)}"
