"""Files in PyTorch's formats, files that are something else, folders, and arrays that make no model: all to be refused.

What test_torch_file_damage.py and test_torch_file_hostile.py have is taken over.
"""

from __future__ import annotations

import gzip
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from malformed_files import ARRAYS, CANARY, WHOLE, Build, entry, file, saved
from test_torch_file_damage import ARCHIVES, OLD, OTHERS
from test_torch_file_hostile import HOSTILE, STORES, TENSORS, calls_of
from torch_files import Ops, Storage, bare_file, new_file, old_file, tensor, zipped

# --- .pth and .bin ----------------------------------------------------------------------------------------------------

TENSOR_DICT = {name: tensor(array) for name, array in ARRAYS.items()}
NEW, OLDER = new_file(TENSOR_DICT), old_file(TENSOR_DICT)
_ROW = Storage(np.arange(6, dtype=np.float32))
PICKLES: dict[str, Build] = {
    **{f"pth, {what}": file("a.pth", new_file({"model": value})) for what, (value, _) in HOSTILE.items()},
    **{f"old pth, {what}": file("a.pth", old_file({"a": value})) for what, (value, _) in TENSORS.items()},
    **{
        f"bin, {what}": file(
            "pytorch_model.bin", new_file({"a": tensor(Storage(np.arange(6, dtype="f4"), **changes), (6,))})
        )
        for what, (changes, _) in STORES.items()
    },
    **{f"pth, {what} as an archive": file("a.pth", make) for what, (make, _) in ARCHIVES.items()},
    **{f"old pth, {what}": file("a.pth", make) for what, (make, _) in OLD.items()},
    **{
        f"pth that runs by {way}": file("a.pth", zipped({"archive/data.pkl": b"\x80\x02" + code + b"."}))
        for way, code in calls_of(f"touch {CANARY}").items()
    },
    **{
        f"old pth cut off after {size} bytes": file("a.pth", OLDER[:size])
        for size in (2, 10, 40, 200, len(OLDER) // 2, len(OLDER) - 300, len(OLDER) - 1)
    },
    **{
        f"pth cut off after {size} bytes": file("a.pth", NEW[:size])
        for size in (4, 60, 1000, len(NEW) // 2, len(NEW) - 22, len(NEW) - 1)
    },
    "pth whose tensors repeat one number": file(
        "a.pth", new_file(TENSOR_DICT | {"head.weight": tensor(_ROW, (1 << 20, 4), (0, 1))})
    ),
    "pth without arrays": file("a.pth", new_file({"epoch": 3, "lr": 0.1})),
    "pth of a list": file("a.pth", new_file([tensor(np.ones(3))])),
    "pth of text": file("a.pth", new_file("hello")),
    "pth of NumPy objects": file("a.pth", pickle.dumps({"a": np.array([{}, None], object)}, 4)),
    "pth of dates": file("a.pth", pickle.dumps({"a": np.array(["2026-01-01"], "M8[D]")}, 4)),
}

# --- files that are something else, and folders -----------------------------------------------------------------------


def folder_with(*names: str) -> Build:
    """A folder in which these are folders too."""

    def build(folder: Path) -> Path:
        (folder / "x").mkdir()
        for name in names:
            (folder / "x" / name).mkdir()
        return folder / "x"

    return build


def index(places: Any, **files: bytes) -> Build:
    """A folder with an index of shards, which may be text; two underscores in the name of a file stand for a dot."""

    def build(folder: Path) -> Path:
        for name, data in files.items():
            (folder / name.replace("__", ".")).write_bytes(data)
        text = places if isinstance(places, bytes) else json.dumps({"weight_map": places}).encode()
        (folder / "model.safetensors.index.json").write_bytes(text)
        return folder

    return build


def link(target: str) -> Build:
    def build(folder: Path) -> Path:
        os.symlink(target, folder / "a.pth")
        return folder / "a.pth"

    return build


SELF = "model.safetensors.index.json"
OTHER: dict[str, Build] = {
    **{f"a file that is {what}": file("a.pth", data) for what, (data, _) in OTHERS.items() if what != "safetensors"},
    "a web page called safetensors": file("model.safetensors", b"<!DOCTYPE html><html>Not found</html>"),
    "a pointer called npz": file("a.npz", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
    "weights in gzip": file("a.pth", lambda: gzip.compress(NEW)),
    "an image file": file("a.bin", b"\x89PNG\r\n\x1a\n" + bytes(100)),
    "a file of 1 MB of zeros": file("a.bin", bytes(1 << 20)),
    "nothing": lambda folder: folder / "missing.pth",
    "a folder called x.pth": lambda folder: folder_with()(folder).rename(folder / "x.pth"),
    "a folder without weights": folder_with("data"),
    "a folder in the place of weights": folder_with("model.safetensors", "a.pth"),
    "a link to nothing": link("missing"),
    "a link to itself": link("a.pth"),
    "an index without its shards": index({"a": "a.safetensors", "b": "b.safetensors"}),
    "an index that names more than there is": index(dict.fromkeys("ab", "a.safetensors"), a__safetensors=entry()),
    "an index of a broken shard": index(dict.fromkeys(ARRAYS, "a.safetensors"), a__safetensors=WHOLE[:-1]),
    "an index of a shard that runs": index({"a": "a.bin"}, a__bin=bare_file(Ops(calls_of(f"touch {CANARY}")["eval"]))),
    "an index of itself": index({"a": SELF}),
    **{
        f"an index that leads to {str(place)[:40]!r}": index({"a": place}, a__safetensors=entry())
        for place in (
            "../a", "/etc/hostname", "x/../a.safetensors", "..", ".", "", "a\0b", "a" * 5000, 3, None, ["x"], {}
        )
    },
    **{
        f"an index that is {text[:12]!r}": index(text)
        for text in (
            b"", b"{", b"[]", b"{}", b"3", b'{"weight_map": []}', b'{"weight_map": null}', b"\xff\xfe", b"[" * 100_000
        )
    },
}  # fmt: skip

# --- arrays that make no model ----------------------------------------------------------------------------------------


def with_arrays(**changes: Any) -> dict[str, Any]:
    """A model's arrays, some of them changed, left out (None) or added; two underscores stand for a dot."""
    named = {name.replace("__", "."): array for name, array in changes.items()}
    return {name: array for name, array in (ARRAYS | named).items() if array is not None}


def stored(arrays: dict[str, Any]) -> Build:
    return file("a.npz", lambda: saved(arrays))


_PATCHES, _FC1 = "patch_embed__proj__weight", "blocks__0__mlp__fc1__weight"
ODD = {"text": np.array(["a", "b", "c"]), "bytes": np.array([b"a", b"b", b"c"]), "complex": np.array([1j, 2, 3])}
ODD |= {"dates": np.zeros(3, "M8[s]"), "pairs": np.zeros(3, "f4,i4"), "bool": np.array([True, False, True])}
FITTING_NOTHING: dict[str, Build] = {
    **{f"a bias of {what}": stored(with_arrays(head__bias=array)) for what, array in ODD.items()},
    "names of no source": stored({f"resnet.layer{n}.conv": np.zeros(2) for n in range(5)}),
    "no name at all": stored({"": np.zeros(2)}),
    "half of a source's names": stored(dict(list(ARRAYS.items())[: len(ARRAYS) // 2])),
    "the other half": stored(dict(list(ARRAYS.items())[len(ARRAYS) // 2 :])),
    "every second name": stored(dict(list(ARRAYS.items())[::2])),
    "a name too many": stored(with_arrays(blocks__0__attn__extra=np.zeros(4))),
    "one block of two": stored({name: array for name, array in ARRAYS.items() if not name.startswith("blocks.0.")}),
    "a bias one too long": stored(with_arrays(norm__bias=np.zeros(5))),
    "a head and its bias of other classes": stored(with_arrays(head__bias=np.zeros(4))),
    "a bias without an axis": stored(with_arrays(norm__bias=np.zeros(()))),
    "patches without an axis": stored(with_arrays(**{_PATCHES: np.zeros(())})),
    "patches of two axes": stored(with_arrays(**{_PATCHES: np.zeros((4, 16))})),
    "patches of no pixels": stored(with_arrays(**{_PATCHES: np.zeros((4, 1, 0, 0))})),
    "positions of two axes": stored(with_arrays(pos_embed=np.zeros((5, 4)))),
    "positions of no square": stored(with_arrays(pos_embed=np.zeros((1, 4, 4)))),
    "an MLP without an axis": stored(with_arrays(**{_FC1: np.zeros(())})),
    "an MLP of 2 ** 57 units and no numbers": stored(with_arrays(**{_FC1: np.zeros((1 << 57, 0))})),
    "a head of 2 ** 57 classes and no numbers": stored(with_arrays(head__weight=np.zeros((1 << 57, 0)))),
    "a head of a million classes and no numbers": stored(with_arrays(head__weight=np.zeros((1 << 20, 0)))),
    "a block of number 3,000": stored(with_arrays(blocks__3000__norm1__bias=np.zeros(4))),
    "a block of a number of 5,000 digits": file(
        "a.safetensors", lambda: safetensors.numpy.save(with_arrays(**{"blocks__" + "9" * 5000: np.zeros(4)}))
    ),
}


def beside(config: Any) -> Build:
    """Weights that are whole, and a config.json that is not."""

    def build(folder: Path) -> Path:
        text = config if isinstance(config, bytes) else json.dumps(config).encode()
        (folder / "config.json").write_bytes(text)
        return file("model.safetensors", WHOLE)(folder)

    return build


# only `from_pretrained` reads config.json
CONFIGS: dict[str, Build] = {
    f"config.json that says {str(config)[:60]}": beside(config)
    for config in (
        *({"num_attention_heads": wrong} for wrong in ("two", -1, 3, 1 << 70, 1.5, [1], {"a": 1}, float("nan"))),
        *({"layer_norm_eps": wrong} for wrong in ("small", -1.0, 0, [1e-6], float("nan"), float("inf"), {})),
    )
}  # fmt: skip
# what cannot be read is taken as absent, which the documentation says
UNREADABLE_CONFIGS: dict[str, Build] = {
    f"config.json that is {text[:20]!r}": beside(text)
    for text in (b"", b"{", b"[1]", b"3", b"null", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000)
}
