"""Files in safetensors and .npz that are broken, lie about themselves or mean harm, each named for what is wrong.

Every entry of the tables writes one into a folder and returns its path; malformed_folders.py has the other formats.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from test_torch_file_hostile import calls_of
from torch_files import Ops, bare_file

from minivit import ViT, save

Build = Callable[[Path], Path]
VIT = {"img_size": 8, "patch_size": 4, "in_chans": 1, "num_classes": 3, "embed_dim": 4, "depth": 2, "num_heads": 1}
MODEL = ViT(**VIT, seed=3)
ARRAYS: dict[str, Any] = MODEL.state_dict()
CANARY = "the-file-was-run"  # what a file that is run leaves behind, in the folder of the test


def file(name: str, data: bytes | Callable[[], bytes]) -> Build:
    """A file with this content."""

    def build(folder: Path) -> Path:
        (folder / name).write_bytes(data() if callable(data) else data)
        return folder / name

    return build


# --- safetensors: 8 bytes with the header's length, the header in JSON, the numbers -----------------------------------

WHOLE = safetensors.numpy.save(dict(ARRAYS))
HEADER = 8 + struct.unpack("<Q", WHOLE[:8])[0]


def header(content: Any, numbers: bytes = b"", length: int | None = None) -> bytes:
    """A file with this header, as text or as what is written in JSON."""
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + numbers


def entry(**changes: Any) -> bytes:
    """A file of one array of two float32, with fields of its entry changed or left out (...)."""
    fields = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}
    return header({"a": {name: value for name, value in fields.items() if value is not ...}}, bytes(8))


def own(change: Callable[[dict[str, Any]], None]) -> Build:
    """A file of minivit's own whose header was changed."""

    def build(folder: Path) -> Path:
        path = folder / "model.safetensors"
        save(MODEL, path)
        data = path.read_bytes()
        end = 8 + struct.unpack("<Q", data[:8])[0]
        content = json.loads(data[8:end])
        change(content["__metadata__"])
        path.write_bytes(header(content, data[end:]))
        return path

    return build


_TWO = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
SAFETENSORS: dict[str, Build] = {
    **{
        f"cut off after {size} bytes": file("a.safetensors", WHOLE[:size])
        for size in (1, 7, 8, 9, 16, 100, HEADER - 1, HEADER, HEADER + 1, len(WHOLE) // 2, len(WHOLE) - 1)
    },
    **{
        f"a header of {length} bytes": file("a.safetensors", header({"a": _TWO}, bytes(8), length))
        for length in (0, 1, 3, 200, 1 << 31, 1 << 62, (1 << 64) - 1)
    },
    **{
        f"a header that is {what}": file("a.safetensors", header(text, bytes(8)))
        for what, text in {
            "no JSON": b"{hello}",
            "unfinished": b'{"a":',
            "followed by text": b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}} more',
            "not UTF-8": b'{"\xff\xfe":1}',
            "a list": b"[1]",
            "a number": b"1",
            "null": b"null",
            "nothing": b"{}",
            "one list 100,000 deep": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
            "one dict 100,000 deep": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
            "two of one name": b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
            b'"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
            "a number in place of an entry": b'{"a":1}',
        }.items()
    },
    **{
        f"offsets {offsets}": file("a.safetensors", entry(data_offsets=offsets))
        for offsets in ([0, 9], [8, 16], [8, 0], [-8, 0], [0, 7], [0, 1 << 63], [0], [0, 4, 8], [0.0, 8.0], "0,8", None)
    },
    **{
        f"dtype {dtype!r}": file("a.safetensors", entry(dtype=dtype))
        for dtype in ("F31", "", "f32", "O", 32, None, "C64")
    },
    **{
        f"shape {shape!r}": file("a.safetensors", entry(shape=shape))
        for shape in ([3], [-2], [1 << 62], [1 << 32, 1 << 32], [2.0], ["2"], "2", 2, None, [[2]], [0], [2] * 70)
    },
    "a shape of NaN": file(
        "a.safetensors", header(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}', bytes(8))
    ),
    "no dtype": file("a.safetensors", entry(dtype=...)),
    "no shape": file("a.safetensors", entry(shape=...)),
    "no offsets": file("a.safetensors", entry(data_offsets=...)),
    "two arrays in one place": file("a.safetensors", header({"a": _TWO, "b": _TWO}, bytes(8))),
    "arrays that overlap": file(
        "a.safetensors", header({"a": _TWO, "b": {**_TWO, "data_offsets": [4, 12]}}, bytes(12))
    ),
    "a hole between arrays": file(
        "a.safetensors", header({"a": _TWO, "b": {**_TWO, "data_offsets": [12, 20]}}, bytes(20))
    ),
    "bytes behind the last array": file("a.safetensors", WHOLE + bytes(4)),
    "bfloat16": file("a.safetensors", entry(dtype="BF16", shape=[4])),
    "metadata that is a list": file("a.safetensors", header({"__metadata__": ["a"], "a": _TWO}, bytes(8))),
    "metadata with numbers": file("a.safetensors", header({"__metadata__": {"a": 1}, "a": _TWO}, bytes(8))),
    "ours, another hash": own(lambda m: m.update(minivit_sha256="0" * 64)),
    "ours, no hash": own(lambda m: m.pop("minivit_sha256")),
    "ours, another configuration": own(
        lambda m: m.update(minivit_content=m["minivit_content"].replace('"depth": 2', '"depth": 3'))
    ),
    "ours, a configuration that is no JSON": own(lambda m: m.update(minivit_content="{")),
    "ours, of a format to come": own(lambda m: m.update(minivit_format="99")),
}

# --- .npz: a zip archive of .npy, each a header that is a Python literal, and the numbers -----------------------------


def npz(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return stream.getvalue()


def npy(array: Any, **changes: Any) -> bytes:
    """An entry whose header may say something else than what follows."""
    text = repr({"descr": array.dtype.str, "fortran_order": False, "shape": array.shape, **changes}).encode()
    return npy_of(text, array.tobytes())


def npy_of(text: bytes, numbers: bytes = b"", version: bytes = b"\1\0", length: int | None = None) -> bytes:
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(text) if length is None else length) + text + numbers


def in_npz(data: bytes | Callable[[], bytes], name: str = "a.npy") -> Build:
    return file("a.npz", lambda: npz({name: data() if callable(data) else data}))


def patched_npz(place: int, form: str, value: int) -> bytes:
    """A field of the first entry changed in the zip directory (section 4.3.12 of the format's description)."""
    data = bytearray(npz({"a.npy": npy(np.arange(3.0))}))
    struct.pack_into(form, data, data.index(b"PK\1\2") + place, value)
    return bytes(data)


def flipped(data: bytes, place: int) -> bytes:
    """One bit of the byte at this place changed."""
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def squeezed_and_flipped() -> bytes:
    """Compressed, with a bit changed near the end of the first entry."""
    data = saved(ARRAYS, np.savez_compressed)
    return flipped(data, data.index(b"PK\3\4", 4) - 3)


def saved(arrays: dict[str, Any], write: Any = np.savez) -> bytes:
    stream = io.BytesIO()
    write(stream, **arrays)
    return stream.getvalue()


NPZ_WHOLE = saved(ARRAYS)
_THREE = np.arange(3.0)
NPZ: dict[str, Build] = {
    **{
        f"npz cut off after {size} bytes": file("a.npz", NPZ_WHOLE[:size])
        for size in (1, 4, 30, 100, 200, 500, len(NPZ_WHOLE) // 2, len(NPZ_WHOLE) - 100, len(NPZ_WHOLE) - 22, -1)
    },
    **{
        f"npz with a flipped bit in {name}": file("a.npz", flipped(NPZ_WHOLE, NPZ_WHOLE.index(ARRAYS[name].tobytes())))
        for name in ("cls_token", "pos_embed", "head.weight", "blocks.1.mlp.fc2.weight")
    },
    "npz, compressed, with a flipped bit": file("a.npz", squeezed_and_flipped),
    **{
        f"npz whose header claims {str(changes)[:70]}": in_npz(npy(_THREE, **changes))
        for changes in (
            {"shape": (4,)}, {"shape": (2,)}, {"shape": (1 << 60,)}, {"shape": (0, 1 << 80)}, {"shape": (-3,)},
            {"shape": (-1, -3)}, {"shape": 3}, {"shape": [3]}, {"shape": (3.0,)}, {"shape": (float("inf"),)},
            {"descr": "<f4"}, {"descr": "|O"}, {"descr": [("x", "<f8"), ("y", "|O")]}, {"descr": "|V0"},
            {"descr": "|U0"}, {"descr": "nonsense"}, {"descr": 8}, {"descr": None}, {"descr": "<f8," * 5000 + "<f8"},
            {"fortran_order": "yes"}, {"fortran_order": 1}, {"fortran_order": None}, {"more": 1},
        )
    },
    "npz whose header is code": in_npz(npy_of(f"__import__('os').system('touch {CANARY}')".encode(), bytes(24))),
    "npz whose header is deep": in_npz(npy_of(b"(" * 5000 + b")" * 5000)),
    "npz whose header is no dict": in_npz(npy_of(b"[1, 2, 3]", bytes(24))),
    "npz whose header is cut off": in_npz(npy_of(b"{'descr': '<f8', ", bytes(24))),
    "npz whose header is beyond the entry": in_npz(npy_of(b"{}", length=0xFFFF)),
    "npz whose header is not text": in_npz(npy_of(b"\xff\xfe\0", bytes(24))),
    "npz of version 9": in_npz(npy_of(b"{}", version=b"\x09\0")),
    "npz of an empty entry": in_npz(b""),
    "npz of text": in_npz(b"hello"),
    "npz of objects": file("a.npz", lambda: saved({"a": np.array([{"a": 1}, None], object)})),
    "npz of a pickle": in_npz(lambda: bare_file([Ops(calls_of(f"touch {CANARY}")["reduce"])])),
    "npz bomb": file("a.npz", lambda: npz({"a.npy": npy(np.zeros(1 << 22, "u1"))}, zipfile.ZIP_DEFLATED)),
    "npz bomb in bzip2": file("a.npz", lambda: npz({"a.npy": npy(np.zeros(1 << 22, "u1"))}, zipfile.ZIP_BZIP2)),
    "npz of 300 bombs": file(
        "a.npz", lambda: npz({f"{n}.npy": npy(np.zeros(1 << 14, "u1")) for n in range(300)}, zipfile.ZIP_DEFLATED)
    ),
    **{
        f"npz with the name {name[:40]!r}": in_npz(npy(_THREE), name)
        for name in (
            f"../{CANARY}.npy", f"/tmp/{CANARY}.npy", "C:\\a.npy", "a/../../b.npy", ".npy", "a" * 2000 + ".npy"
        )
    },
    "npz with another method": file("a.npz", patched_npz(10, "<H", 99)),
    "npz that is encrypted": file("a.npz", patched_npz(8, "<H", 1)),
    "npz with a size of 4 GB": file("a.npz", patched_npz(24, "<I", 4_000_000_000)),
    "npz with both sizes of 4 GB": file("a.npz", patched_npz(20, "<Q", 0xF0000000F0000000)),
    "npz with an offset behind the end": file("a.npz", patched_npz(42, "<I", 0x7FFFFFFF)),
    "npz with another checksum": file("a.npz", patched_npz(16, "<I", 12345)),
    "npz without entries": file("a.npz", npz({})),
    "npz with a file that is no array": file("a.npz", npz({"a.npy": npy(_THREE), "README": b"hello"})),
    "a lone npy": file("a.npy", npy(_THREE)),
}  # fmt: skip
