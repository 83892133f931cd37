"""Reading takes no more than its budget: tiny files that claim gigabytes, pipes, and descriptions with a right hash.

What is read in a child process has 1 GiB of memory, and a time limit.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minivit
from minivit import CheckpointError
from minivit.data import DataError, read_idx
from minivit.data.labels import labels_beside, read_labels
from minivit.io.budget import MAX_DEPTH, MAX_TEXT, most_unpacked, parse_json, read_small
from minivit.io.safetensors import save_arrays
from minivit.io.weights import read_weights
from minivit.pretrained.preprocessing import preprocessing

resource = pytest.importorskip("resource")  # of POSIX
GIBIBYTE = 1 << 30
SMALL = {"img_size": 16, "patch_size": 8, "num_classes": 3, "embed_dim": 8, "depth": 1, "num_heads": 1}


def limited(code: str, *arguments: Any) -> str:
    """What a program prints that may take 1 GiB of memory and 30 s."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (GIBIBYTE, GIBIBYTE))

    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True, timeout=30, env=environment)
    assert done.returncode == 0, done.stderr[-500:]
    return done.stdout


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells the peak of a process")
def test_thin_images_take_little_memory(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for number, size in enumerate([(1, 60_000), (60_000, 1), (3, 1_000_000)]):
        image.new("L", size, 200).save(tmp_path / f"{number}.png")
    code = (
        "import re, sys; from minivit.data import Preprocess\n"
        "for path in sys.argv[1:]:\n"
        "    for squash in (False, True):\n"
        "        assert (Preprocess(224, 0.875, squash=squash).pixels(path) == 200).all()\n"
        "print(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1])"  # ru_maxrss has the parent's too
    )
    assert int(limited(code, *sorted(tmp_path.iterdir()))) < 500_000  # KiB


def overlapping(copies: int, inner: int) -> bytes:
    """A zip archive whose directory lists one deflated entry many times."""
    raw = b"\x93NUMPY\1\0" + struct.pack("<H", 118)
    raw += (f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({inner},), }}".ljust(117) + "\n").encode() + bytes(
        inner
    )
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed, crc = packer.compress(raw) + packer.flush(), zlib.crc32(raw)
    fields = (20, 0, 8, 0, 33, crc, len(packed), len(raw))
    data = struct.pack("<4sHHHHHIIIHH", b"PK\3\4", *fields, 5, 0) + b"a.npy" + packed
    directory = b""
    for number in range(copies):
        name = f"{number}.npy".encode()
        directory += struct.pack("<4sHHHHHHIIIHHHHHII", b"PK\1\2", 20, *fields, len(name), 0, 0, 0, 0, 0, 0) + name
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, copies, copies, len(directory), len(data), 0)
    return data + directory + end


def test_npz_entries_that_overlap_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(overlapping(50, 40_000))
    with pytest.raises(CheckpointError, match=r"a\.npz .*it is damaged"):
        read_weights(path)


def test_the_ratio_of_an_npz_holds_for_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, **{str(number): np.zeros(300_000, np.uint8) for number in range(10)})
    with pytest.raises(CheckpointError, match="unpacks to .* refused"):
        read_weights(path)
    mixed = {"zeros": np.zeros(300_000, np.uint8), "noise": np.random.default_rng(0).bytes(50_000)}
    np.savez_compressed(path, zeros=mixed["zeros"], noise=np.frombuffer(mixed["noise"], np.uint8))
    assert read_weights(path).arrays["zeros"].size == 300_000  # a head that starts at 0 is no bomb
    assert most_unpacked(path.stat().st_size) > 350_000


@pytest.mark.parametrize(
    "said",
    [
        {"depth": 10**9}, {"embed_dim": 10**7}, {"num_classes": 10**12}, {"img_size": 8 * 10**6}, {"mlp_ratio": 1e12},
        {"patch_size": 10**6, "img_size": 10**6}, {"resnet_layers": [1] * 60}, {"resnet_layers": [10**9]},
        {"representation_size": 10**12}, {"in_chans": 10**12}, {"pos_embed": "relative", "img_size": 8 * 2000},
    ],
)  # fmt: skip
def test_a_description_of_a_gigantic_model_is_refused(tmp_path: Path, said: dict[str, Any]) -> None:
    path = tmp_path / "a.safetensors"
    config = {**minivit.ViT(**SMALL).config, **said}
    save_arrays(path, {"a": np.zeros(2, np.float32)}, {"model": "ViT", "config": config})
    code = (
        "import sys, minivit\n"
        "try: minivit.from_pretrained(sys.argv[1])\n"
        "except minivit.CheckpointError as error: print(error)"
    )
    assert "a.safetensors" in limited(code, path)


def test_a_gigantic_swin_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    model = minivit.SwinV2(img_size=32, embed_dim=8, depths=(2,), num_heads=(2,), window_size=4, num_classes=2)
    for said in ({"depths": [2, 10**9], "num_heads": [1, 1]}, {"window_size": 3000, "img_size": 12_000}):
        save_arrays(path, model.state_dict(), {"model": "SwinV2", "config": {**model.config, **said}})
        with pytest.raises(CheckpointError, match="cannot make|its description needs"):
            minivit.from_pretrained(path)


@pytest.mark.parametrize(
    "model",
    [
        minivit.ViT(**SMALL),
        minivit.Swin(img_size=16, patch_size=4, embed_dim=4, depths=(2,), num_heads=(1,), window_size=2, num_classes=2),
    ],
    ids=lambda model: type(model).__name__,
)
def test_a_description_without_a_size_is_refused_and_without_a_newer_option_has_its_default(
    tmp_path: Path, model: Any
) -> None:
    path = tmp_path / "a.safetensors"
    sizes = {"img_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "num_heads"}
    sizes = sizes - {"depth"} | {"depths", "window_size"} if "depths" in model.config else sizes
    assert sizes <= set(model.config)
    for lacking in model.config:
        config = {name: value for name, value in model.config.items() if name != lacking}
        save_arrays(path, model.state_dict(), {"model": type(model).__name__, "config": config})
        if lacking in sizes:
            with pytest.raises(CheckpointError, match=f"does not say '{lacking}': save it again"):
                minivit.from_pretrained(path)
        else:
            assert minivit.from_pretrained(path).config[lacking] == model.config[lacking]
        minivit.load(model, path)  # the arrays fit, and nothing else is asked of the file


def test_zeros_behind_a_gzip_member_take_no_time(tmp_path: Path) -> None:
    packer = zlib.compressobj(wbits=31)
    path = tmp_path / "a.gz"
    path.write_bytes(packer.compress(b"\0\0\x08\1\0\0\0\3abc") + packer.flush())
    with open(path, "ab") as file:
        file.truncate(256 << 20)
    code = (
        "import sys; from minivit.data import DataError, read_idx\n"
        "try: read_idx(sys.argv[1])\n"
        "except DataError as error: print(error)"
    )
    assert "zero bytes after it" in limited(code, path)
    os.truncate(path, 100_000)
    assert read_idx(path).tolist() == [97, 98, 99]


def test_text_has_a_largest_size_and_depth(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes(b"")
    os.truncate(path, MAX_TEXT + 1)
    with pytest.raises(ValueError, match="no file of its kind has more"):
        read_small(path)
    with pytest.raises(DataError, match=r"labels\.txt"):
        read_labels(path, 2)
    for depth in (MAX_DEPTH + 2, 100_000):
        with pytest.raises(ValueError, match="nested more than 100 deep"):
            parse_json("[" * depth + "]" * depth)
    assert parse_json("[" * MAX_DEPTH + "]" * MAX_DEPTH)


def test_a_pipe_is_refused_and_blocks_no_reader(tmp_path: Path) -> None:
    for name in ("a.pth", "a.safetensors", "labels.txt", "a.idx", "a.png", "config.json"):
        os.mkfifo(tmp_path / name)
    code = (
        "import sys, minivit; from minivit import data; from minivit.data.labels import read_labels\n"
        "from minivit.pretrained import read_torch_file\n"
        "def labels(path): read_labels(path, 2)\n"
        "readers = dict(pth=[minivit.from_pretrained, read_torch_file], safetensors=[minivit.from_pretrained],\n"
        "               txt=[labels], idx=[data.read_idx], png=[data.read_image])\n"
        "for name in ('a.pth', 'a.safetensors', 'labels.txt', 'a.idx', 'a.png'):\n"
        "    for reader in readers[name.split('.')[1]]:\n"
        "        try: reader(sys.argv[1] + '/' + name)\n"
        "        except (minivit.CheckpointError, data.DataError) as error:\n"
        "            print(name in str(error) and ('regular file' in str(error) or 'no file' in str(error)))"
    )
    assert limited(code, tmp_path).split() == ["True"] * 6
    (tmp_path / "b.safetensors").write_bytes(b"")
    save_arrays(tmp_path / "b.safetensors", {"a": np.zeros(2)}, None)
    assert "a pipe or a device" in str(read_weights(tmp_path / "b.safetensors").config_fault)


HOSTILE: list[Any] = [
    [], 3, "text", {"model": []}, {"model": {}}, {"model": "ViT"}, {"model": "ViT", "config": []},
    {"model": "ViT", "config": {"depth": "x"}}, {"model": "ViT", "config": {"dtype": {}}},
    {"model": ["ViT"], "config": {}}, {"model": "ViT", "config": {"\x1b[31m": 1}}, {"model": "\x1b[31m"},
    {"model": "ViT", "config": {"norm_eps": float("inf")}}, {"model": "ViT", "config": {"class_token": 7}},
    {"model": "ViT", "config": {"img_size": [1, 2, 3]}}, {"model": "Swin", "config": {"depths": {}}},
    {"model": "Swin", "config": {"depths": [[2]]}}, {"model": "SwinV2", "config": {"pretrained_window_sizes": "x"}},
]  # fmt: skip


@pytest.mark.parametrize("content", HOSTILE)
def test_a_right_hash_is_no_signature(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "a.safetensors"
    model = minivit.ViT(**SMALL)
    save_arrays(path, model.state_dict(), content)
    with pytest.raises(CheckpointError, match=r"a\.safetensors") as refused:
        minivit.from_pretrained(path)
    assert str(refused.value).isprintable()
    try:
        minivit.load(model, path)  # its arrays fit whatever it says of itself
    except CheckpointError as error:
        assert str(error).isprintable()


def test_a_description_nested_too_deep_is_refused(tmp_path: Path) -> None:
    deep: Any = []
    for _ in range(500):
        deep = [deep]
    save_arrays(tmp_path / "a.safetensors", {"a": np.zeros(2)}, {"model": "ViT", "config": {"img_size": deep}})
    with pytest.raises(CheckpointError, match="deep"):
        minivit.from_pretrained(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "said", [[], {"size": 10**6}, {"size": [1, 2, 3]}, {"image_mean": [1e999] * 3}, {"resample": []}, {"size": 1e400}]
)
def test_a_hostile_preprocessor_config_is_refused(tmp_path: Path, said: Any) -> None:
    model = minivit.ViT(**SMALL, dynamic_img_size=True)
    minivit.save(model, tmp_path / "a.safetensors")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json has no usable preprocessing"):
        preprocessing(tmp_path / "a.safetensors", model)


def test_labels_cannot_steer_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("\x1b[2Jcat\n猫 \u202egod\n", encoding="utf-8")
    assert read_labels(path, 2) == [r"\x1b[2Jcat", r"猫 \u202egod"]
    assert labels_beside({"id2label": {"0": "\x1b]0;x\x07", "1": "b"}}, 2) == [r"\x1b]0;x\x07", "b"]


def test_a_shards_name_is_one_in_its_folder(tmp_path: Path) -> None:
    for name in ("..", ".", "a/b", "a\\b", "C:x", "\x1b[31m"):
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(CheckpointError, match="outside its folder"):
            read_weights(tmp_path)


def test_plain_npz_files_are_read_as_before(tmp_path: Path) -> None:
    arrays = {"a/b": np.arange(6.0).reshape(2, 3), "é": np.zeros(3, np.int32)}
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **arrays)
        got = read_weights(tmp_path / "a.npz").arrays
        assert got.keys() == arrays.keys() and all(np.array_equal(got[name], arrays[name]) for name in arrays)
    assert zipfile.is_zipfile(tmp_path / "a.npz")
