"""Files of weights in all their wrappings: folders, shards, .npz, and what is damaged, hostile or foreign among them.

Whatever is wrong is a CheckpointError that names the file. `test_torch_file.py` has PyTorch's own format.
"""

from __future__ import annotations

import io
import json
import pickle
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from torch_files import bare_file, new_file, old_file, tensor

from minivit import CheckpointError, ViT
from minivit.io.weights import Weights, read_weights
from minivit.pretrained import from_pretrained, load

VIT = {"img_size": 8, "patch_size": 4, "in_chans": 1, "num_classes": 3, "embed_dim": 4, "depth": 2, "num_heads": 1}
MODEL = ViT(**VIT, seed=3)
ARRAYS = MODEL.state_dict()


def equal(path: Any, expected: Any = ARRAYS) -> bool:
    arrays = read_weights(path).arrays
    return arrays.keys() == expected.keys() and all(np.array_equal(arrays[name], expected[name]) for name in expected)


def write(path: Path, arrays: Any = ARRAYS) -> Path:
    if path.name.endswith(".safetensors"):
        safetensors.numpy.save_file(dict(arrays), path)
    elif path.name.endswith(".npz"):
        np.savez(path, **arrays)
    else:
        path.write_bytes(new_file({name: tensor(array) for name, array in arrays.items()}))
    return path


def sharded(folder: Path, suffix: str = "safetensors", base: str = "model") -> dict[str, str]:
    """Two shards and their index; which array is where."""
    places: dict[str, str] = {}
    for number in (1, 2):
        file = f"{base}-0000{number}-of-00002.{suffix}"
        part = dict(list(ARRAYS.items())[number - 1 :: 2])
        write(folder / file, part)
        places |= dict.fromkeys(part, file)
    index(folder, places, f"{base}.{suffix}.index.json")
    return places


def index(folder: Path, places: Any, name: str = "model.safetensors.index.json") -> None:
    (folder / name).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))


# --- folders ---


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "swin.pth", "vit.npz", "any.safetensors"])
def test_a_folder_with_one_file(tmp_path: Path, name: str) -> None:
    write(tmp_path / name)
    (tmp_path / "README.md").write_text("nothing")
    assert equal(tmp_path) and equal(str(tmp_path)) and equal(tmp_path / name)
    assert read_weights(tmp_path).path == tmp_path / name
    assert np.array_equal(from_pretrained(tmp_path).state_dict()["head.weight"], ARRAYS["head.weight"])


@pytest.mark.parametrize(("suffix", "base"), [("safetensors", "model"), ("bin", "pytorch_model")])
def test_a_folder_of_shards(tmp_path: Path, suffix: str, base: str) -> None:
    sharded(tmp_path, suffix, base)
    assert equal(tmp_path) and equal(tmp_path / f"{base}.{suffix}.index.json")


def test_safetensors_are_preferred(tmp_path: Path) -> None:
    write(tmp_path / "pytorch_model.bin", {"old": np.zeros(1)})
    write(tmp_path / "model.safetensors")
    assert equal(tmp_path)


def test_config_json_beside_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "model.safetensors")
    assert read_weights(path).config == {}
    for coding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):  # editors write byte-order marks
        (tmp_path / "config.json").write_bytes('{"note": "café"}'.encode(coding))
        assert read_weights(path).config == {"note": "café"} and read_weights(path).config_fault is None
    for text in ("[1]", "{", "\xff", '{"note": "café"}'):
        (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
        found = read_weights(path)
        assert found.config == {} and "config.json" in str(found.config_fault)
    (tmp_path / "config.json").write_text('{"num_heads": 2}')
    assert from_pretrained(tmp_path).config["num_heads"] == 2


def test_a_deeply_nested_config_json_is_left_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("[" * 100_000)
    assert read_weights(path).config == {} and "nested more than 100 deep" in str(read_weights(path).config_fault)


@pytest.mark.parametrize("name", ["nothing", "nothing.npz", "nothing.safetensors.index.json"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=name):
        read_weights(tmp_path / name)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"is a folder without weights: expected one of model\.safetensors"):
        read_weights(tmp_path)


# --- an index of shards ---


@pytest.mark.parametrize("place", ["../secret", "/etc/passwd", "a/b", "..", ".", "", 3, None, ["x"], {"x": 1}])
def test_an_index_that_names_other_folders_is_refused(tmp_path: Path, place: Any) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    write(tmp_path / "secret", {"head.bias": np.zeros(3)})
    sharded(folder)
    for places in ({"head.bias": place}, {**dict.fromkeys(ARRAYS, "model-00001-of-00002.safetensors"), "x": place}):
        index(folder, places)
        with pytest.raises(CheckpointError, match=str(folder)):
            read_weights(folder)


def test_a_shard_or_an_array_that_is_missing(tmp_path: Path) -> None:
    places = sharded(tmp_path)
    index(tmp_path, {**places, "more": places["head.bias"]})
    with pytest.raises(CheckpointError, match=r"index\.json names 1 arrays that its shards lack, first 'more'"):
        read_weights(tmp_path)
    index(tmp_path, places)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors: no such file"):
        read_weights(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"weight_map": []}', '{"weight_map": null}', "\xff\xfe", "3"])
def test_an_index_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"index\.json is not an index of shards"):
        read_weights(tmp_path)


def test_an_index_may_not_name_itself(tmp_path: Path) -> None:
    index(tmp_path, {"a": "model.safetensors.index.json"})
    with pytest.raises(CheckpointError, match=r"index\.json"):
        read_weights(tmp_path)


# --- .npz ---


def npz(path: Path, entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


def npy(array: Any, **changes: Any) -> bytes:
    """An .npy entry whose header may say something else than what follows."""
    header = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape, **changes}
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue() + array.tobytes()


@pytest.mark.parametrize("compressed", [False, True])
def test_every_dtype_and_order(tmp_path: Path, compressed: bool) -> None:
    base = np.arange(24).reshape(2, 3, 4)
    arrays = {kind: base.astype(kind) for kind in ("f2", "f4", "f8", "i1", "i8", "u2", ">f4", "?")}
    arrays |= {"a/b": base.T, "fortran": np.asfortranarray(base), "single": np.array(2.5), "empty": np.zeros((0, 3))}
    (np.savez_compressed if compressed else np.savez)(tmp_path / "file.npz", **arrays)
    got = read_weights(tmp_path / "file.npz").arrays
    assert got.keys() == arrays.keys()
    for name, array in arrays.items():
        assert got[name].dtype == array.dtype and np.array_equal(got[name], array), name


def test_bfloat16_is_widened(tmp_path: Path) -> None:
    values = np.array([[1.0, -2.5], [3.140625, np.inf]], np.float32)  # all of them are bfloat16 numbers
    upper = (values.view(np.uint32) >> 16).astype(np.uint16).view("V2")
    np.savez(tmp_path / "file.npz", x=upper, y=np.asfortranarray(upper))
    got = read_weights(tmp_path / "file.npz").arrays
    for name in "xy":
        assert got[name].dtype == np.float32 and np.array_equal(got[name], values), name


@pytest.mark.parametrize("compressed", [False, True])
def test_no_damage_to_an_npz_goes_unnoticed(tmp_path: Path, compressed: bool) -> None:
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b/c": np.arange(4, dtype="f4")}
    path = tmp_path / "file.npz"
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    data, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    for place in range(len(data)):
        path.write_bytes(data[:place])
        with pytest.raises(CheckpointError, match="file"):
            read_weights(path)
        damaged = bytearray(data)
        damaged[place] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        try:
            assert equal(path, arrays), place
        except CheckpointError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > len(data) // 2


def test_an_entry_that_unpacks_to_far_more_is_refused(tmp_path: Path) -> None:
    path = npz(tmp_path / "bomb.npz", {"a.npy": npy(np.zeros(1 << 24, np.uint8))}, zipfile.ZIP_DEFLATED)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=r"bomb\.npz is \d+ bytes long and unpacks to 16777\d\d\d: it was"):
        read_weights(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": (4,)}, {"shape": (1 << 60,)}, {"shape": (-3,)}, {"shape": (-1, -3)}, {"shape": (2,)},
        {"descr": "<f4"}, {"descr": "|O"}, {"descr": [("x", "<f8"), ("y", "|O")]}, {"descr": "|V0"}, {"descr": "|U0"},
    ],
)  # fmt: skip
def test_a_header_that_lies_is_refused(tmp_path: Path, changes: Any) -> None:
    path = npz(tmp_path / "file.npz", {"x.npy": npy(np.arange(3.0), **changes)})
    with pytest.raises(CheckpointError, match=r"file\.npz"):
        read_weights(path)


@pytest.mark.parametrize("changes", [{"shape": (4,)}, {"shape": (1 << 60,)}, {"shape": (2,)}, {"descr": "|O"}])
def test_a_header_of_another_size_is_refused_before_memory_is_taken(tmp_path: Path, changes: Any) -> None:
    path = npz(tmp_path / "file.npz", {"x.npy": npy(np.arange(3.0), **changes)})
    with pytest.raises(CheckpointError, match=r"file\.npz: the entry 'x\.npy' claims .* which do not fit its size"):
        read_weights(path)


def test_weights_without_a_description_have_an_empty_one(tmp_path: Path) -> None:
    assert Weights(tmp_path, {}) == Weights(tmp_path, {}, {}, {}, None, "")


class Bomb:
    """Runs when it is unpickled."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path(BOMB),)


BOMB = ""


def test_pickled_objects_are_refused_and_nothing_runs(tmp_path: Path) -> None:
    global BOMB
    BOMB = str(tmp_path / "ran")
    np.savez(tmp_path / "file.npz", x=np.array([Bomb()], object))
    with pytest.raises(CheckpointError, match="file"):
        read_weights(tmp_path / "file.npz")
    for name, data in {"model.pth": pickle.dumps(Bomb()), "model.npz": pickle.dumps({"a": Bomb()})}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(CheckpointError, match=name):
            read_weights(tmp_path / name)
    npz(tmp_path / "other.npz", {"x.npy": pickle.dumps(Bomb())})
    with pytest.raises(CheckpointError, match="other"):
        read_weights(tmp_path / "other.npz")
    assert not Path(BOMB).exists()


@pytest.mark.parametrize("array", [np.array(["a", "b", "c"]), np.array([1j, 2, 3]), np.zeros(3, "f4,i4")])
def test_arrays_that_hold_no_numbers_fit_nothing_and_change_nothing(tmp_path: Path, array: Any) -> None:
    arrays = {**ARRAYS, "norm.bias": np.ones(4, np.float32), "head.bias": array}
    np.savez(tmp_path / "file.npz", **arrays)
    model = ViT(**VIT, seed=4)
    before = model.state_dict()
    with pytest.raises(CheckpointError, match="file"):
        load(model, tmp_path / "file.npz")
    assert all(np.array_equal(before[name], value) for name, value in model.state_dict().items())


# --- what a program saved around its arrays ---


@pytest.mark.parametrize("key", ["model", "state_dict", "model_ema", "state_dict_ema", "net", "params"])
@pytest.mark.parametrize("save", [new_file, old_file])
def test_the_dict_of_arrays_is_found(tmp_path: Path, key: str, save: Any) -> None:
    path = tmp_path / "file.pth"
    path.write_bytes(save({"epoch": 3, key: {name: tensor(array) for name, array in ARRAYS.items()}, "best": 0.5}))
    assert equal(path)


def test_a_tensor_beside_the_model_is_not_the_model(tmp_path: Path) -> None:
    tensors = {name: tensor(array) for name, array in ARRAYS.items()}
    (tmp_path / "file.pth").write_bytes(new_file({"epoch": tensor(np.array([3.0])), "model": tensors}))
    assert equal(tmp_path / "file.pth")


def test_what_is_averaged_over_training_is_preferred(tmp_path: Path) -> None:
    tensors = {name: tensor(array) for name, array in ARRAYS.items()}
    (tmp_path / "file.pth").write_bytes(new_file({"model": {"old": tensor(np.zeros(1))}, "model_ema": tensors}))
    assert equal(tmp_path / "file.pth")


@pytest.mark.parametrize("value", [{"lr": 0.1, "epoch": 3}, {}, [1, 2], "text", None, {"model": {"a": 1}}])
@pytest.mark.parametrize("save", [new_file, bare_file])
def test_a_file_without_arrays(tmp_path: Path, value: Any, save: Any) -> None:
    (tmp_path / "file.pth").write_bytes(save(value))
    with pytest.raises(CheckpointError, match=r"file\.pth"):
        read_weights(tmp_path / "file.pth")
