"""Files come back bit for bit or not at all: damage, foreign files, wrong models, and crashes while writing."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import minivit
from minivit import CheckpointError, nn
from minivit.io.safetensors import load_arrays, save_arrays

BASE = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
ARRAYS = {
    "plain": BASE,
    "transposed": BASE.transpose(2, 0, 1),
    "fortran": np.asfortranarray(BASE),
    "strided": BASE[:, ::2, 1::2],
    "reversed": BASE[::-1, :, ::-1],
    "broadcast": np.broadcast_to(np.float32(2.5), (3, 4)),
    "row": np.broadcast_to(BASE[0, 0], (5, 4)),
    "empty": np.zeros((0, 3), np.float32),
    "read-only": BASE.copy(),
    "special": np.array([np.nan, np.inf, -np.inf, -0.0, 1e-45], np.float32),
    "large": np.random.default_rng(0).standard_normal((300, 301)).T,
    "boolean": np.array([True, False, True]),
    **{
        kind: np.array([0, 1, 2, 100], kind)
        for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")
    },
}
ARRAYS["read-only"].flags.writeable = False


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("kind", ARRAYS)
def test_every_layout_and_dtype_comes_back_bit_for_bit(tmp_path, kind):
    array, before = ARRAYS[kind], ARRAYS[kind].copy()
    save_arrays(tmp_path / "file", {"one": array, "two": array}, {"note": kind})
    arrays, content = load_arrays(tmp_path / "file")
    assert sorted(arrays) == ["one", "two"] and content == {"note": kind}
    assert same_bits(arrays["one"], before) and same_bits(arrays["two"], before) and same_bits(array, before)


def test_a_single_number_comes_back_as_one(tmp_path):
    save_arrays(tmp_path / "file", {"one": np.array(3.5)}, {})
    assert same_bits(load_arrays(tmp_path / "file")[0]["one"], np.array(3.5))


def test_big_endian_arrays_come_back_with_their_values(tmp_path):
    save_arrays(tmp_path / "file", {"one": BASE.astype(">f4")}, {})
    assert np.array_equal(load_arrays(tmp_path / "file")[0]["one"], BASE)


def test_a_file_without_arrays(tmp_path):
    save_arrays(tmp_path / "file", {}, {"text": "ä\n", "numbers": [1, 2.5, None]})
    assert load_arrays(tmp_path / "file") == ({}, {"text": "ä\n", "numbers": [1, 2.5, None]})


def small_file(path):
    save_arrays(path, {"w": BASE[:, :, 0], "é": np.arange(3)}, {"model": "ViT", "config": {"depth": 1}})
    return path.read_bytes()


def loads_the_same_or_complains(path, expected):
    """Whether the file was refused; a silent change fails."""
    try:
        arrays, content = load_arrays(path)
    except CheckpointError as error:
        assert str(path) in str(error)
        return True
    assert content == expected[1] and arrays.keys() == expected[0].keys()
    assert all(same_bits(arrays[name], expected[0][name]) for name in arrays)
    return False


def test_no_flipped_bit_goes_unnoticed(tmp_path):
    data = small_file(tmp_path / "file")
    expected = load_arrays(tmp_path / "file")
    bits = np.random.default_rng(0).integers(8, size=(2, len(data)))
    refused = 0
    for place in range(len(data)):
        for bit in set(bits[:, place]):
            damaged = bytearray(data)
            damaged[place] ^= 1 << int(bit)
            (tmp_path / "file").write_bytes(damaged)
            refused += loads_the_same_or_complains(tmp_path / "file", expected)
    assert refused > len(data)


def test_no_truncation_goes_unnoticed(tmp_path):
    data = small_file(tmp_path / "file")
    expected = load_arrays(tmp_path / "file")
    for length in range(len(data)):
        (tmp_path / "file").write_bytes(data[:length])
        assert loads_the_same_or_complains(tmp_path / "file", expected)
    for tail in (b"\0", b"{}", data):
        (tmp_path / "file").write_bytes(data + tail)
        assert loads_the_same_or_complains(tmp_path / "file", expected)


def test_swapped_arrays_are_noticed(tmp_path):
    save_arrays(tmp_path / "file", {"a": np.zeros(2), "b": np.ones(2)}, {})
    with safetensors.safe_open(tmp_path / "file", "numpy") as file:
        metadata = file.metadata()
    safetensors.numpy.save_file({"a": np.ones(2), "b": np.zeros(2)}, tmp_path / "file", metadata)
    with pytest.raises(CheckpointError, match="damaged.*SHA-256.*Restore"):
        load_arrays(tmp_path / "file")


def test_a_newer_format_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("minivit.io.safetensors._FORMAT", "2")
    small_file(tmp_path / "file")
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="format 2.*reads 1.*install"):
        load_arrays(tmp_path / "file")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_foreign_files_load_without_a_hash(tmp_path, metadata):
    model, other = vit(), vit(seed=1)
    safetensors.numpy.save_file(model.state_dict(), tmp_path / "file", metadata)
    assert minivit.load(other, tmp_path / "file") is other
    assert np.array_equal(model.predict(IMAGES), other.predict(IMAGES))
    with pytest.raises(CheckpointError, match="ViT of timm.*no square: give img_size"):
        minivit.from_pretrained(tmp_path / "file")


SIZES = {"img_size": (8, 12), "patch_size": 4, "in_chans": 1, "num_classes": 3, "embed_dim": 8, "depth": 1}
IMAGES = np.random.default_rng(0).standard_normal((2, 1, 8, 12)).astype("float32")


def vit(**changes):
    return minivit.ViT(**{**SIZES, "num_heads": 2, **changes})


@pytest.mark.parametrize(
    "changes",
    [{}, {"dtype": "float64"}, {"distilled": True}, {"pos_embed": "relative"}, {"num_classes": 0}],
)
@pytest.mark.parametrize("kind", [str, Path])
def test_from_pretrained_rebuilds_the_model(tmp_path, changes, kind):
    model = vit(seed=3, **changes)
    path = kind(tmp_path / "new" / "folder" / "model.safetensors")  # missing folders are made
    minivit.save(model, path)
    loaded = minivit.from_pretrained(path)
    x = IMAGES.astype(model.config["dtype"])
    assert type(loaded) is minivit.ViT
    assert np.array_equal(loaded.predict(x), model.predict(x))
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in loaded.config.items()}
    assert fields == model.config
    assert all(same_bits(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())


def test_loading_casts_to_the_models_dtype(tmp_path):
    minivit.save(vit(dtype="float64", seed=3), tmp_path / "file")
    single = minivit.load(vit(), tmp_path / "file")
    assert np.array_equal(single.predict(IMAGES), vit(seed=3).predict(IMAGES))


@pytest.mark.parametrize(
    "changes, fragments",
    [
        ({"num_classes": 5}, ["head.weight", "(3, 8)", "(5, 8)"]),
        ({"depth": 2}, ["blocks.1.", "12 names", "depth=2 in the file, 1 in the model"]),
        ({"distilled": True}, ["dist_token"]),
        ({"num_classes": 0}, ["head.weight"]),
    ],
)
def test_a_wrong_model_is_refused_and_keeps_its_weights(tmp_path, changes, fragments):
    minivit.save(vit(**changes), tmp_path / "file")
    model = vit(seed=1)
    before = model.state_dict()
    with pytest.raises(CheckpointError) as error:
        minivit.load(model, tmp_path / "file")
    assert all(fragment in str(error.value) for fragment in [str(tmp_path / "file"), "ViT", *fragments]), error.value
    assert all(same_bits(before[name], value) for name, value in model.state_dict().items())


def test_any_layer_can_be_saved_but_only_models_are_rebuilt(tmp_path):
    layer, other = nn.Linear(2, 3, seed=0), nn.Linear(2, 3, seed=1)
    minivit.save(layer, tmp_path / "file")
    minivit.load(other, tmp_path / "file")
    assert np.array_equal(layer.weight.data, other.weight.data)
    with pytest.raises(CheckpointError, match="does not say which model"):
        minivit.from_pretrained(tmp_path / "file")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="nothing.*no such file"):
        minivit.from_pretrained(tmp_path / "nothing")


def test_a_folder_in_the_files_place_is_named(tmp_path):
    folder = tmp_path / "model.safetensors"
    folder.mkdir()
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        minivit.load(vit(), folder)
    with pytest.raises((CheckpointError, OSError), match=r"directory.*model\.safetensors|model\.safetensors.*folder"):
        minivit.save(vit(), folder)
    assert os.listdir(tmp_path) == ["model.safetensors"] and not os.listdir(folder)


@pytest.mark.parametrize("data", [b"", b"text", b"\xff" * 64, b"\x80\x03}q\x00.", b"\0" * 8, b"\2\0\0\0\0\0\0\0{}"])
def test_other_files_are_refused_or_empty(tmp_path, data):
    (tmp_path / "file").write_bytes(data)
    if data.endswith(b"{}"):  # the smallest valid file: no tensors
        assert load_arrays(tmp_path / "file") == ({}, {})
        return
    with pytest.raises(CheckpointError, match="file is not a complete safetensors file"):
        load_arrays(tmp_path / "file")


# --- a crash while writing ---


class Crash(BaseException):
    """Not an Exception, as KeyboardInterrupt and SystemExit are not."""


@pytest.mark.parametrize("where", ["replace", "fsync"])
@pytest.mark.parametrize("error", [OSError("disk full"), Crash()])
def test_a_crash_leaves_the_old_file_whole(tmp_path, monkeypatch, where, error):
    path = tmp_path / "file"
    minivit.save(vit(), path)
    before = path.read_bytes()

    def crash(*_, **__):
        raise error

    monkeypatch.setattr(os, where, crash)
    with pytest.raises(type(error)):
        minivit.save(vit(seed=1), path)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["file"]
    minivit.save(vit(seed=1), path)
    assert path.read_bytes() != before


def test_the_content_reaches_the_disk_before_the_name(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda handle: (calls.append(stat.S_ISDIR(os.fstat(handle).st_mode)), fsync(handle))
    )
    monkeypatch.setattr(os, "replace", lambda old, new: (calls.append("replace"), replace(old, new)))
    minivit.save(vit(), tmp_path / "file")
    assert calls == [False, "replace", True]  # file, name, folder


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")
def test_files_have_the_usual_permissions(tmp_path):
    (tmp_path / "usual").write_text("")
    minivit.save(vit(), tmp_path / "file")
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == stat.S_IMODE((tmp_path / "usual").stat().st_mode)


def test_a_reader_sees_the_old_file_or_the_new(tmp_path):
    path, stop, failures = tmp_path / "file", threading.Event(), []
    models = [vit(seed=seed).state_dict() for seed in (0, 1)]
    save_arrays(path, models[0], {"seed": 0})

    def read():
        while not stop.is_set():
            try:
                arrays, content = load_arrays(path)
                assert all(same_bits(arrays[name], models[content["seed"]][name]) for name in arrays)
            except Exception as error:  # pytest sees no exception of another thread
                failures.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(40):
        save_arrays(path, models[turn % 2], {"seed": turn % 2})
    stop.set()
    reader.join()
    assert not failures, failures[0]


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_quantized_weights_are_refused(tmp_path: Path, dtype: str) -> None:
    model = minivit.ViT(img_size=8, patch_size=4, num_classes=3, embed_dim=8, depth=1, num_heads=2)
    arrays = model.state_dict()
    arrays["head.weight"] = arrays["head.weight"].astype(dtype)
    save_arrays(tmp_path / "file", arrays, None)
    refusal = f"'head.weight' holds {dtype}, quantized weights without their scales"
    for read in (lambda path: minivit.from_pretrained(path, num_heads=2), lambda path: minivit.load(model, path)):
        with pytest.raises(CheckpointError, match=refusal):
            read(tmp_path / "file")
