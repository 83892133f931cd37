"""Random damage to every kind of file that the library reads: only documented errors, no hang, no gigabytes.

    python tests/tools/fuzz_readers.py --seed 1 --count 20000

Files are made valid and changed at random, and their hashes and checksums are computed again, so that the readers
behind the checks see the change. The process may take 1 GiB of memory, and each execution 5 s. The exit code is 1 if
anything else than a documented error was raised. It needs POSIX.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gzip
import io
import json
import pickle
import resource
import signal
import sys
import tempfile
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import safetensors.numpy
from torch_files import new_file, old_file, tensor

import minivit
from minivit import CheckpointError, optim
from minivit.data import DataError, Preprocess, image_folder
from minivit.data.idx import idx_header, parse_idx
from minivit.data.labels import labels_beside, read_labels
from minivit.io.safetensors import load_arrays, save_arrays
from minivit.io.weights import read_weights
from minivit.pretrained.preprocessing import preprocessing
from minivit.train import CHECKPOINT, Run

MEMORY, SECONDS = 1 << 30, 5
SIZES: dict[str, Any] = {"img_size": 16, "patch_size": 8, "num_classes": 3, "embed_dim": 8, "depth": 1, "num_heads": 1}
SWIN: dict[str, Any] = {"img_size": 16, "embed_dim": 4, "depths": (2,), "num_heads": (1,), "window_size": 2}
MODELS = (minivit.ViT(**SIZES), minivit.Swin(**SWIN, num_classes=3), minivit.SwinV2(**SWIN, num_classes=3))
VALUES: list[Any] = [
    *(None, True, 0, -1, 1, 2, 3, 7, 10**6, 10**9, 10**19, 1.5, -0.5, 1e-9, 1e300, float("nan"), float("inf")),
    *("", "x", "ViT", "Swin", "\x1b[31m", "../..", [], {}, [1], [1, 2], [1, 2, 3], {"a": 1}, [[1]], [10**9] * 2),
]
Maker = Callable[[Path, Random], Callable[[], Any]]  # writes files into a folder; returns what reads them


class TooSlow(Exception):
    """An execution that took too long."""


def changed(value: Any, rng: Random) -> Any:
    """A copy of JSON with one to three of its parts replaced, removed or added."""
    value = copy.deepcopy(value)
    for _ in range(rng.randint(1, 3)):
        place = value
        while isinstance(place, dict | list) and place:
            key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
            if not isinstance(place[key], dict | list) or rng.random() < 0.3:
                break
            place = place[key]
        if not isinstance(place, dict | list) or not place:
            return copy.deepcopy(rng.choice(VALUES))
        key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
        if rng.random() < 0.2:
            del place[key]
        elif isinstance(place, dict) and rng.random() < 0.1:
            place[rng.choice(["", "x", "\x1b[31m", "dtype", "depths"])] = copy.deepcopy(rng.choice(VALUES))
        else:
            place[key] = copy.deepcopy(rng.choice(VALUES))
    return value


def damaged(data: bytes, rng: Random) -> bytes:
    """Bytes of which some are changed, cut off, repeated or put in."""
    made = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4, 16])):
        at, kind = rng.randrange(len(made) + 1), rng.randrange(6)
        if kind < 3 and at < len(made):
            made[at] = rng.choice([0, 1, 127, 128, 255, made[at] ^ 1 << rng.randrange(8)])
        elif kind == 3:
            del made[at : at + rng.choice([1, 4, 100])]
        elif kind == 4:
            made[at:at] = rng.choice([bytes(4), b"\xff" * 4, made[at : at + 50]])
        elif rng.random() < 0.2:
            del made[at:]
    return bytes(made)


def arrays_of(rng: Random) -> tuple[Any, dict[str, Any]]:
    """A model, and its arrays, some of which are of another shape, renamed or missing."""
    model = rng.choice(MODELS)
    arrays = dict(model.state_dict())
    for _ in range(rng.choice([0, 0, 1, 2])):
        name = rng.choice(list(arrays))
        array = arrays.pop(name)
        kind = rng.randrange(4)
        if kind == 0:
            arrays[rng.choice([name + "x", "blocks.9999.norm1.weight", "\x1b[31m", name.upper()])] = array
        elif kind == 1:
            shape = rng.choice([(), (0,), (1, 0, 1 << 40), (3,), (2, 2), (1, 1, 1, 1), (5, 4, 3, 2)])
            arrays[name] = np.zeros(shape, np.float32)
        elif kind == 2:
            arrays[name] = array.astype(rng.choice(["f8", "f2", "i4", "u1", "?"]))
    return model, arrays


def built(path: Path) -> None:
    """The model of a file, and how its images are prepared; a ValueError says that those of 2 channels are not."""
    model = minivit.from_pretrained(path, report=quiet)
    if model.config["in_chans"] in (1, 3):
        preprocessing(path, model)


def opened(path: Path, model: Any) -> Callable[[], Any]:
    """Everything that is done with a file of weights."""

    def read() -> None:
        for reader in (
            lambda: built(path),
            lambda: minivit.load(copy.deepcopy(model), path),
            lambda: labels_beside(read_weights(path).config, 3),
        ):
            with contextlib.suppress(CheckpointError):
                reader()

    return read


def quiet(line: str) -> None:
    """Where reports go."""
    assert all(part.isprintable() for part in line.splitlines()), ascii(line)


def own(folder: Path, rng: Random) -> Callable[[], Any]:
    model, arrays = arrays_of(rng)
    content = changed({"model": type(model).__name__, "config": model.config}, rng)
    save_arrays(folder / "a.safetensors", arrays, content if content is not None else {})
    return opened(folder / "a.safetensors", model)


def foreign(folder: Path, rng: Random) -> Callable[[], Any]:
    model, arrays = arrays_of(rng)
    data = safetensors.numpy.save(arrays)
    if rng.random() < 0.7:
        size = 8 + int.from_bytes(data[:8], "little")
        header = json.dumps(changed(json.loads(data[8:size]), rng)).encode() if rng.random() < 0.5 else data[8:size]
        data = len(header).to_bytes(8, "little") + header + data[size:]
        data = damaged(data, rng) if rng.random() < 0.5 else data
    (folder / "a.safetensors").write_bytes(data)
    return opened(folder / "a.safetensors", model)


def beside(folder: Path, rng: Random) -> Callable[[], Any]:
    """config.json and preprocessor_config.json."""
    model = rng.choice(MODELS)
    minivit.export(model, folder / "model.safetensors", rng.choice(["timm", "huggingface", "torchvision"]))
    config = {
        "architecture": "vit_tiny_patch16_224", "model_type": "vit", "num_attention_heads": 1, "image_size": 16,
        "hidden_act": "gelu", "layer_norm_eps": 1e-6, "window_size": 2, "model_args": {"act_layer": "gelu"},
        "id2label": {"0": "a", "1": "b", "2": "c"}, "depths": [2], "pretrained_window_sizes": [0],
        "pretrained_cfg": {"input_size": [3, 16, 16], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 0.9,
                           "interpolation": "bicubic", "crop_mode": "center", "label_names": ["a", "b", "c"]},
    }  # fmt: skip
    kept = {name: config[name] for name in config if rng.random() < 0.6}
    (folder / "config.json").write_text(json.dumps(changed(kept, rng)))
    if rng.random() < 0.6:
        said = {
            "size": {"height": 16, "width": 16}, "crop_size": 16, "do_center_crop": True, "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3, "resample": 3, "rescale_factor": 0.004, "image_processor_type": "ViT",
        }  # fmt: skip
        text = json.dumps(changed(said, rng)).encode()
        (folder / "preprocessor_config.json").write_bytes(damaged(text, rng) if rng.random() < 0.2 else text)
    return opened(folder / "model.safetensors", model)


def archived(folder: Path, rng: Random) -> Callable[[], Any]:
    """.npz, whose entries' checksums are right."""
    model, arrays = arrays_of(rng)
    with zipfile.ZipFile(folder / "a.npz", "w", rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as archive:
        for name, array in arrays.items():
            stream = io.BytesIO()
            np.save(stream, array)
            raw = stream.getvalue()
            archive.writestr(f"{name}.npy", damaged(raw, rng) if rng.random() < 0.1 else raw)
    if rng.random() < 0.4:
        (folder / "a.npz").write_bytes(damaged((folder / "a.npz").read_bytes(), rng))
    return opened(folder / "a.npz", model)


def pickled(folder: Path, rng: Random) -> Callable[[], Any]:
    """.pth in both of PyTorch's formats, and plain pickles; the checksums of the zip's entries are right."""
    model, arrays = arrays_of(rng)
    arrays = {name: array for name, array in arrays.items() if array.size}
    if rng.random() < 0.2:
        data = damaged(pickle.dumps(arrays, rng.choice([2, 3, 4])), rng)
    elif rng.random() < 0.5:
        data = damaged(old_file({name: tensor(array) for name, array in arrays.items()}), rng)
    else:
        whole, stream = new_file({name: tensor(array) for name, array in arrays.items()}), io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(whole)) as source, zipfile.ZipFile(stream, "w") as target:
            for name in source.namelist():
                raw = source.read(name)
                target.writestr(name, damaged(raw, rng) if raw and name.endswith("pkl") else raw)
        data = stream.getvalue() if rng.random() < 0.8 else damaged(stream.getvalue(), rng)
    (folder / "a.pth").write_bytes(data)
    return opened(folder / "a.pth", model)


def sharded(folder: Path, rng: Random) -> Callable[[], Any]:
    model, arrays = arrays_of(rng)
    safetensors.numpy.save_file(arrays, folder / "s.safetensors")
    index = changed({"weight_map": dict.fromkeys(arrays, "s.safetensors")}, rng)
    text = json.dumps(index).encode()
    (folder / "model.safetensors.index.json").write_bytes(damaged(text, rng) if rng.random() < 0.3 else text)
    return opened(folder, model)


def resumed(folder: Path, rng: Random) -> Callable[[], Any]:
    model = minivit.ViT(**SIZES)
    parts = {"model": model, "optimizer": optim.AdamW(model.parameters(), lr=0.1)}
    Run(folder, {"seed": 0}, parts, quiet=True)
    arrays, content = load_arrays(folder / CHECKPOINT)
    if rng.random() < 0.3:
        arrays.pop(rng.choice(list(arrays)))
    save_arrays(folder / CHECKPOINT, arrays, changed(content, rng) or {})

    def read() -> None:
        with contextlib.suppress(CheckpointError):
            Run(folder, {"seed": 0}, parts, quiet=True, resume=True)

    return read


def labeled(folder: Path, rng: Random) -> Callable[[], Any]:
    path = folder / rng.choice(["a.json", "a.txt"])
    text = json.dumps(changed(rng.choice([["a", "b"], {"0": "a", "1": "b"}, {"a": 0, "b": 1}]), rng)).encode()
    path.write_bytes(damaged(text, rng) if rng.random() < 0.5 else text)

    def read() -> None:
        with contextlib.suppress(DataError):
            assert all(label.isprintable() for label in read_labels(path, 2))

    return read


def indexed(folder: Path, rng: Random) -> Callable[[], Any]:
    """idx, and idx.gz whose checksum is right."""
    array = np.zeros((3, 4, 4), rng.choice([np.uint8, np.int16, np.float32]))
    data = damaged(idx_header(array) + array.tobytes(), rng)
    if rng.random() < 0.6:
        data = gzip.compress(data) + bytes(rng.choice([0, 0, 8]))
        data = damaged(data, rng) if rng.random() < 0.4 else data

    def read() -> None:
        with contextlib.suppress(DataError):
            parse_idx(data, "a")

    return read


def pictured(folder: Path, rng: Random) -> Callable[[], Any]:
    from PIL import Image

    mode = rng.choice(["L", "RGB", "RGBA", "LA", "P", "1", "I;16"])
    size = rng.choice([(9, 7), (1, 300), (300, 1), (1, 1)])
    stream, path = io.BytesIO(), folder / "a.png"
    image, kind = Image.new(mode, size), rng.choice(["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "TGA", "ICO"])
    exif = b"Exif\0\0" + damaged(b"II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0", rng)
    options = {"exif": exif} if kind in ("PNG", "JPEG", "WEBP") and rng.random() < 0.5 else {}
    try:
        image.save(stream, kind, **options)
    except (OSError, ValueError, KeyError):  # this format has no such mode
        image.convert("L").save(stream := io.BytesIO(), "PNG")
    path.write_bytes(damaged(stream.getvalue(), rng) if rng.random() < 0.8 else stream.getvalue())

    def read() -> None:
        for source in (path, None):
            with contextlib.suppress(DataError), contextlib.ExitStack() as stack:
                try:
                    source = source or stack.enter_context(Image.open(path))
                except Exception:
                    return  # Pillow's own business
                Preprocess(8, 0.9, squash=rng.random() < 0.5)(source)

    return read


def foldered(folder: Path, rng: Random) -> Callable[[], Any]:
    for _ in range(rng.randint(0, 6)):
        place = folder.joinpath(
            *rng.choices(["train", "val", "a", "b", "\x1b[31m", "cafe\u0301", ".x"], k=rng.randint(1, 3))
        )
        with contextlib.suppress(OSError):
            place.mkdir(parents=True, exist_ok=True)
            kind, name = rng.randrange(4), place / rng.choice(["1.png", "2.JPG", "3.heic", "4"])
            if kind == 0:
                name.symlink_to(rng.choice(["missing", str(name), str(folder)]))
            elif not name.is_symlink():  # nothing is written through a link
                name.write_bytes(b"")

    def read() -> None:
        with contextlib.suppress(DataError):
            image_folder(folder, report=quiet)
        with contextlib.suppress(ValueError):
            minivit.data.split_folder(folder, 1, report=quiet)

    return read


MAKERS: tuple[Maker, ...] = (
    own, foreign, beside, archived, pickled, sharded, resumed, labeled, indexed, pictured, foldered
)  # fmt: skip


def once(maker: Maker, seed: int, number: int) -> str | None:
    """The fault of one execution, None if all is well."""

    def stop(*_: Any) -> None:
        raise TooSlow

    with tempfile.TemporaryDirectory() as folder:
        read = maker(Path(folder), Random(f"{seed} {number}"))
        signal.signal(signal.SIGALRM, stop)
        signal.alarm(SECONDS)
        try:
            read()
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            frames = traceback.extract_tb(error.__traceback__)[-3:]
            place = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))
            return f"{type(error).__name__}: {ascii(str(error))[:120]} at {place}"
        finally:
            signal.alarm(0)
    return None


def run(seed: int, count: int) -> Counter[str]:
    """Faults by what and where they are, each with the number of its first execution."""
    found: dict[str, int] = {}
    faults: Counter[str] = Counter()
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for number in range(count):
            maker = MAKERS[number % len(MAKERS)]
            fault = once(maker, seed, number)
            if fault:
                first = found.setdefault(f"{maker.__name__}: {fault}", number)
                faults[f"{maker.__name__}: {fault} (first: {first})"] += 1
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000)
    args = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    faults = run(args.seed, args.count)
    for fault, times in faults.most_common():
        print(f"{times:6d}  {fault}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"{args.count:,} executions, {sum(faults.values())} faults of {len(faults)} kinds, {peak // 1024} MiB at most"
    )
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
