"""Show what a file of weights holds, and which model that makes: source, class, arguments, types, SHA-256.

minivit inspect swin_t-704ceda3.pth
"""

from __future__ import annotations

import argparse
import hashlib
from collections import Counter
from pathlib import Path

from minivit.io.safetensors import CheckpointError
from minivit.io.weights import read_weights, shards_of
from minivit.pretrained.plan import plan_of
from minivit.pretrained.recognition import Recognized, recognize
from minivit.tables import aligned


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `minivit inspect`."""
    parser.add_argument("file", help="a file of weights, or a folder with one")
    parser.add_argument("--tensors", type=int, default=8, metavar="N", help="how many of the largest arrays to list")


def main(args: argparse.Namespace) -> None:
    """What a file holds, and which model that makes."""
    found = recognize(read_weights(args.file))
    arrays = found.weights.arrays
    arguments = _arguments(found)
    dtypes = Counter(str(array.dtype) for array in arrays.values())
    lines = [
        *(("file", text) for text in _files(found.weights.path)),
        ("source", found.source),
        ("class", found.model),
        ("arguments", arguments),
        ("arrays", f"{len(arrays)}: " + ", ".join(f"{count} of {dtype}" for dtype, count in dtypes.items())),
        ("parameters", f"{sum(array.size for array in found.arrays.values()):,}"),
        ("not learned", f"{len(found.buffers)} arrays"),
        ("unknown", f"{len(found.unknown)} names" + "".join(f", {_shown(name)}" for name in found.unknown[:5])),
    ]
    for label, text in lines:
        print(f"{label:<12}{text}")
    if args.tensors:
        largest = sorted(arrays.items(), key=lambda item: -item[1].size)[: args.tensors]
        rows = [(_shown(name), "x".join(map(str, a.shape)), str(a.dtype), f"{a.size:,}") for name, a in largest]
        print()
        print(*aligned([("largest arrays", "shape", "dtype", "numbers"), *rows], left=range(4)), sep="\n")


def _arguments(found: Recognized) -> str:
    """The arguments of the class as text, as far as the file tells them."""
    try:
        arguments = plan_of(found).arguments
    except CheckpointError as error:
        return f"none, the arrays make no such model: {error}"
    values = {
        name: tuple(value) if isinstance(value, list) else value for name, value in arguments.items()
    }  # JSON's lists
    return ", ".join(f"{name}={value!r}" for name, value in values.items())


def _files(path: Path) -> list[str]:
    """Path, size and SHA-256 of the file, or of an index and the shards that it names."""
    files = [path]
    if path.name.endswith(".index.json"):
        files += [path.parent / name for name in sorted(set(shards_of(path).values()))]
    return [f"{file} ({file.stat().st_size:,} bytes)\n{'':<12}SHA-256 {_sha256(file)}" for file in files]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def _shown(name: str) -> str:
    """A name from a file, fit for a terminal."""
    return name[:80] if name.isprintable() else ascii(name)[:80]
