"""Files of torch.save are read without PyTorch: every dtype, layout and kind of plain data, in both formats."""

from __future__ import annotations

import argparse
import collections
import pickle
import struct
import sys
import types

import numpy as np
import pytest
from torch_files import (
    FORMATS,
    ORDERED,
    STORAGES,
    Call,
    Global,
    Ops,
    Pickle,
    Storage,
    bare_file,
    entries_of,
    new_file,
    old_file,
    parameter,
    tensor,
    zipped,
)

from minivit.io.torch_file import read_torch_file

BASE = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
formats = pytest.mark.parametrize("write", FORMATS.values(), ids=FORMATS)


@pytest.fixture
def read(tmp_path):
    """Reads bytes as a file."""

    def read_bytes(data):
        (tmp_path / "file.pt").write_bytes(data)
        return read_torch_file(tmp_path / "file.pt")

    return read_bytes


def same(got, expected):
    """Same type, same values, in native byte order, and read-only."""
    assert type(got) is np.ndarray and not got.flags.writeable and got.dtype.isnative
    assert (got.dtype, got.shape) == (expected.dtype.newbyteorder("="), expected.shape)
    return np.array_equal(got, expected, equal_nan=expected.dtype.kind in "fc")


# --- tensors ---


@formats
@pytest.mark.parametrize("code", STORAGES)
def test_every_dtype(read, write, code):
    array = np.array([0, 1, 2, 100], code) if code == "b1" else np.array([0, 1, 2, 100]).astype(code)
    if np.dtype(code).kind in "fc":
        array[:] = np.nan, -0.0, np.inf, 1.1
    assert same(read(write({"a": tensor(array)}))["a"], array)


@formats
def test_bfloat16_becomes_float32_exactly(read, write):
    halves = np.arange(1 << 16, dtype=np.uint16)
    got = read(write([tensor(Storage(halves, kind="BFloat16Storage"), (256, 256))]))[0]
    assert got.dtype == np.float32 and got.shape == (256, 256)
    assert np.array_equal(got.view(np.uint32).reshape(-1), halves.astype(np.uint32) << 16)


@pytest.mark.parametrize("code", [*STORAGES, "bf"])
def test_a_big_endian_file(read, code):
    array = np.array([0, 1, 2, 100], np.uint16 if code == "bf" else code)
    storage = Storage(array, kind="BFloat16Storage" if code == "bf" else None)
    got = read(new_file([tensor(storage, (2, 2))], order="big"))[0]
    expected = (array.astype(np.uint32) << 16).view(np.float32) if code == "bf" else array
    assert same(got, expected.reshape(2, 2))


def test_a_file_without_byte_order_is_little_endian(read):
    assert same(read(new_file([tensor(BASE)], order=None))[0], BASE)


@formats
@pytest.mark.parametrize("code", ["u2", "u4", "u8", "f4", "bf"])
def test_untyped_storages_take_the_dtype_of_their_tensor(read, write, code):
    names = {"u2": "uint16", "u4": "uint32", "u8": "uint64", "f4": "float32", "bf": "bfloat16"}
    array = np.array([0, 1, 2, 100], np.uint16 if code == "bf" else code)
    storage = Storage(array.view(np.uint8), kind="UntypedStorage", module="torch.storage")
    function, dtype = Global("torch._utils", "_rebuild_tensor_v3"), Global("torch", names[code])
    got = read(write([Call(function, (storage, 1, (3,), (1,), False, None, dtype))]))[0]
    expected = (array.astype(np.uint32) << 16).view(np.float32) if code == "bf" else array
    assert same(got, expected[1:])


@formats
def test_offsets_and_strides(read, write):
    row = Storage(BASE.reshape(-1))
    windows = {
        "whole": ((2, 3, 4), (12, 4, 1), 0),
        "transposed": ((4, 3, 2), (1, 4, 12), 0),
        "every second": ((2, 3, 2), (12, 4, 2), 1),
        "expanded": ((5, 4), (0, 1), 8),
        "expanded beyond the storage": ((9, 4), (0, 1), 8),
        "overlapping": ((6, 3), (2, 1), 3),
        "scalar": ((), (), 23),
        "one, with a stride beyond the storage": ((1, 2), (1 << 60, 1), 22),
        "empty": ((0, 3), (3, 1), 0),
        "empty, behind the end": ((2, 0), (1, 1), 24),
        "32 dimensions": ((1,) * 32, (1,) * 32, 5),
    }
    got = read(write({name: tensor(row, *window) for name, window in windows.items()}))
    assert got.keys() == windows.keys()
    for name, (size, stride, offset) in windows.items():
        flat = BASE.reshape(-1)[offset:] if 0 not in size else np.zeros(1, np.float32)
        bytes_apart = [0 if dim < 2 else step * 4 for dim, step in zip(size, stride)]
        assert same(got[name], np.lib.stride_tricks.as_strided(flat, size, bytes_apart)), name


@formats
def test_tensors_over_one_storage_share_it_and_a_tensor_under_two_names_is_one_array(read, write):
    row = Storage(BASE.reshape(-1))
    first = tensor(row, (24,))
    got = read(write({"a": first, "b": tensor(row, (4,), offset=20), "c": [first]}))
    assert got["a"] is got["c"][0] and np.shares_memory(got["a"], got["b"])
    assert same(got["b"], BASE[1, 2])


@formats
def test_parameters_devices_and_older_functions(read, write):
    kinds = {
        "v1": Call(Global("torch._utils", "_rebuild_tensor"), (Storage(BASE.reshape(-1)), 0, (2, 12), (12, 1))),
        "parameter": parameter(tensor(BASE)),
        "with state": Call(
            Global("torch._utils", "_rebuild_parameter_with_state"), (tensor(BASE), True, Call(ORDERED, ()), {"a": 1})
        ),
        "on a GPU": tensor(Storage(BASE.reshape(-1), device="cuda:0", module="torch.cuda"), (2, 3, 4)),
        "storage": Storage(BASE.reshape(-1)),
        "bytes": Storage(np.arange(3, dtype=np.uint8), kind="UntypedStorage"),
    }
    got = read(write(kinds))
    assert same(got["v1"], BASE.reshape(2, 12)) and same(got["storage"], BASE.reshape(-1))
    assert all(same(got[name], BASE) for name in ("parameter", "with state", "on a GPU"))
    assert same(got["bytes"], np.arange(3, dtype=np.uint8))


@formats
def test_storages_that_are_empty(read, write):
    assert same(read(write([tensor(np.zeros((0, 5)))]))[0], np.zeros((0, 5)))


def test_the_array_outlives_the_file(tmp_path):
    (tmp_path / "file.pt").write_bytes(new_file([tensor(BASE)]))
    (array,) = read_torch_file(str(tmp_path / "file.pt"))
    (tmp_path / "file.pt").write_bytes(bytes(2000))
    (tmp_path / "file.pt").unlink()
    assert same(array, BASE)


# --- the archive ---


@pytest.mark.parametrize("prefix", ["archive", "vit base 16", "a.b-c_d", "модель", "data.pkl", "data"])
@pytest.mark.parametrize("alignment", [1, 64, 4096])
def test_any_prefix_and_any_padding(read, prefix, alignment):
    assert same(read(zipped(entries_of([tensor(BASE)], prefix), alignment))[0], BASE)


def test_a_checksum_of_zero_is_none(read):
    """torch.serialization.set_crc32_options(False) leaves them out."""
    entries = entries_of([tensor(BASE)])
    data = bytearray(zipped(entries))
    place = data.index(b"PK\1\2")
    while place >= 0:
        data[place + 16 : place + 20] = bytes(4)
        place = data.find(b"PK\1\2", place + 1)
    assert same(read(data)[0], BASE)


def test_an_archive_with_64_bit_sizes(read):
    """The directory's end record says to look into a longer one, as it must in files of 4 GB."""
    data = new_file([tensor(BASE)])
    end = struct.unpack("<4s4H2IH", data[-22:])
    count, size, offset = end[4:7]
    directory = data[offset : offset + size]
    first = 46 + len("archive/data.pkl")  # where the extra field of the first entry begins
    fields = struct.unpack_from("<HHIII", directory, 12)
    extra_size = struct.unpack_from("<H", directory, 30)[0]
    extra = struct.pack("<HHQQ", 1, 16, fields[-1], fields[-1])
    changed = bytearray(directory[: first + extra_size] + extra + directory[first + extra_size :])
    changed[20:28] = b"\xff" * 8
    changed[30:32] = struct.pack("<H", extra_size + len(extra))
    end64 = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(changed), offset)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, offset + len(changed), 1)
    short = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 2**32 - 1, 2**32 - 1, 0)
    assert same(read(data[:offset] + bytes(changed) + end64 + locator + short)[0], BASE)


def test_a_comment_and_folders_are_ignored(read):
    data = zipped({"archive/": b"", **entries_of([tensor(BASE)])})
    assert same(read(data[:-2] + struct.pack("<H", 9) + b"a comment")[0], BASE)


# --- plain data ---

PLAIN = {
    "none": None,
    "true": True,
    "int": [0, 255, 256, 65536, -1, 2**31, -(2**31), 2**100, -(2**100)],
    "float": [1.5, float("inf")],
    "text": ["", "Wörter 🎉", "x" * 300],
    "bytes": [b"", b"abc\xff", b"y" * 300],
    "bytearray": bytearray(b"z" * 300),
    "complex": 1 - 2j,
    "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), ((1,), [2])],
    "set": {1, "a", (2, 3)},
    "frozenset": frozenset([4, 5]),
    ("a", 1): {1: 2, 2.5: 3, None: 4, b"b": 5, False: 6},
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_data_of_every_protocol(read, protocol):
    data = pickle.dumps(PLAIN, protocol)
    assert read(data) == PLAIN
    assert read(zipped({"a/data.pkl": data})) == PLAIN
    assert read(old_file(Ops(data[2:-1] if protocol < 4 else data[11:-1]))) == PLAIN


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_containers_come_as_plain_dicts(read, protocol):
    ordered = collections.OrderedDict([("a", 1), ("b", 2)])
    ordered._metadata = {"version": 1}
    counts, lists = collections.Counter("aab"), collections.defaultdict(list, {1: [2]})
    options = argparse.Namespace(lr=0.1, nested=argparse.Namespace(a=[1]), dtype=int)
    got = read(pickle.dumps([ordered, counts, lists, options], protocol))
    assert got == [
        {"a": 1, "b": 2},
        {"a": 2, "b": 1},
        {1: [2]},
        {"lr": 0.1, "nested": {"a": [1]}, "dtype": "builtins.int"},
    ]
    assert list(got[0]) == ["a", "b"] and [type(part) for part in got] == [dict] * 4
    assert type(got[3]["nested"]) is dict


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_yacs_configuration_comes_as_a_plain_dict(read, protocol, monkeypatch):
    module = types.ModuleType("yacs.config")
    module.CfgNode = type("CfgNode", (dict,), {"__module__": "yacs.config"})
    monkeypatch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
    monkeypatch.setitem(sys.modules, "yacs.config", module)
    node, inner = module.CfgNode(), module.CfgNode({"DEPTHS": [2, 2, 6, 2], "APE": False})
    node["MODEL"] = inner
    node.__dict__.update(__immutable__=True, __deprecated_keys__=set(), __renamed_keys__={})
    data = pickle.dumps({"config": node}, protocol)
    monkeypatch.undo()
    got = read(data)
    assert got == {"config": {"MODEL": {"DEPTHS": [2, 2, 6, 2], "APE": False}}}
    assert type(got["config"]) is dict and type(got["config"]["MODEL"]) is dict
    assert "yacs" not in sys.modules


def test_objects_that_copyreg_rebuilds(read):
    rebuild = Global("copy_reg", "_reconstructor")
    node = Call(rebuild, (Global("yacs.config", "CfgNode"), Global("__builtin__", "dict"), {"a": 1}))
    space = Call(rebuild, (Global("argparse", "Namespace"), Global("__builtin__", "object"), None))
    built = Ops(Pickle().emit(space) + Pickle().emit({"lr": 1}) + b"b")
    assert read(bare_file([node, built])) == [{"a": 1}, {"lr": 1}]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
def test_numpy_numbers_and_arrays(read, protocol, core):
    values = {
        **{
            code: np.array([0, 1, 100]).astype(code)
            for code in ("?", "i1", "<i2", ">i4", "u8", "f2", ">f4", "f8", "c16")
        },
        "fortran": np.asfortranarray(BASE),
        "empty": np.zeros((0, 2)),
        "no dimensions": np.array(2.5),
    }
    numbers = [np.float64(1.5), np.float32(2.5), np.int64(-3), np.bool_(True), np.uint8(7)]
    data = pickle.dumps([values, numbers], protocol)
    written = "numpy._core" if b"numpy._core" in data else "numpy.core"
    if written != core and protocol < 4:  # the length of the name stands before it in protocols 4 and 5
        data = data.replace(written.encode() + b".", core.encode() + b".")
    got, scalars = read(data)
    assert all(same(got[name], values[name]) for name in values)
    assert [(type(number), number) for number in scalars] == [(type(number), number) for number in numbers]


def test_names_of_torch_come_as_text(read):
    device = Global("torch", "device")
    value = [
        Global("torch", "float32"),
        Global("torch", "bfloat16"),
        Call(device, ("cpu",)),
        Call(device, ("cuda", 1)),
        Call(Global("torch", "Size"), ((2, 3),)),
        Call(Global("torch", "Size"), ([],)),
    ]
    assert read(new_file(value)) == ["torch.float32", "torch.bfloat16", "cpu", "cuda:1", (2, 3), ()]


def test_what_python_2_wrote(read):
    text, raw = Ops(b"U\x03abc"), Ops(b"T\x02\0\0\0\xff\x80")
    number, yes = Ops(b"I1234567890123\n"), Ops(b"I01\n")
    pairs = Call(ORDERED, ([["a", 1], ["b", 2]],))
    assert read(bare_file([text, raw, number, yes, pairs])) == [
        "abc",
        b"\xff\x80",
        1234567890123,
        True,
        {"a": 1, "b": 2},
    ]
    dtype = Ops(
        Pickle().emit(Call(Global("numpy", "dtype"), ("f8", 0, 1)))[:-2]
        + b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    )
    scalar = Global("numpy.core.multiarray", "scalar")
    for number in (1.5, struct.unpack("<d", "é2345é".encode())[0]):  # the second happens to be UTF-8
        raw = struct.pack("<d", number)
        assert read(bare_file([Call(scalar, (dtype, Ops(b"U\x08" + raw)))])) == [number]


def test_a_whole_checkpoint(read):
    """Names, optimizer and options as DeiT, MAE and Swin save them."""
    state = {f"blocks.{i}.{name}": tensor(np.full((2, 3), i, np.float32)) for i in range(100) for name in "wb"}
    moments = {index: {"step": 7, "exp_avg": tensor(BASE)} for index in range(3)}
    checkpoint = {
        "model": Call(ORDERED, ([list(pair) for pair in state.items()],)),
        "optimizer": {"state": moments, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999), "params": [0, 1, 2]}]},
        "epoch": 299,
    }
    for write in FORMATS.values():
        got = read(write(checkpoint))
        assert list(got["model"]) == list(state) and same(got["model"]["blocks.7.b"], np.full((2, 3), 7, np.float32))
        assert same(got["optimizer"]["state"][2]["exp_avg"], BASE) and got["epoch"] == 299
        assert got["optimizer"]["param_groups"] == checkpoint["optimizer"]["param_groups"]
