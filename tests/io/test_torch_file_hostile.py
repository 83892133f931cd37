"""Pickles that ask for more than data, or for more memory or time than a file is worth: refused, and nothing is run."""

from __future__ import annotations

import pickle
import pickletools
import re
import struct
import time

import numpy as np
import pytest
from torch_files import (
    FORMATS,
    SLACK,
    Call,
    Global,
    Ops,
    Pickle,
    Storage,
    bare_file,
    entries_of,
    outcome,
    tensor,
    zipped,
)

from minivit.io.torch_file import read_torch_file, reader
from minivit.io.torch_file.globals import is_key
from minivit.io.torch_file.unpickler import _HANDLERS, _REFUSED, MAX_OPCODES

ROW = Storage(np.arange(6, dtype=np.float32))
WRITERS = {**FORMATS, "bare": bare_file}
BOMB = b"]q\0" + b"".join(b"](h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1]) for i in range(60))
# --- pickles that ask for more than data; every one stands in each of the three kinds of file ---


def ask(module, name):
    return f"c{module}\n{name}\n".encode()


def window(size=(2, 3), stride=(3, 1), offset=0, storage=ROW):
    return tensor(storage, size, stride, offset)


def named(function, *args, of="torch._utils"):
    return Call(Global(of, function), args)


def state_of(made, state):
    return Ops(Pickle().emit(made) + Pickle().emit(state) + b"b")


NUMPY = named("_reconstruct", Global("numpy", "ndarray"), (0,), b"b" and "b", of="numpy.core.multiarray")
F8 = named("dtype", "f8", False, True, of="numpy")
HOSTILE = {
    # (what is saved, what the message says)
    "eval": (named("eval", "1", of="builtins"), "names builtins.eval, which is neither a tensor nor plain data"),
    "eval of Python 2": (named("eval", "1", of="__builtin__"), "names builtins.eval"),
    "exec": (named("exec", "1", of="builtins"), "names builtins.exec.*nothing in it was run"),
    "getattr": (named("getattr", 1, "real", of="builtins"), "names builtins.getattr"),
    "import": (named("__import__", "os", of="builtins"), "names builtins.__import__"),
    "load_from_bytes": (named("_load_from_bytes", "", of="torch.storage"), "names torch.storage._load_from_bytes"),
    "a module": (Global("torch.nn.modules.linear", "Linear"), "names torch.nn.modules.linear.Linear"),
    "an attribute of what is admitted": (Global("collections", "OrderedDict.__init__"), "names collections.Ord"),
    "a name out of Unicode": (Ops(b"cos\nsyst\xc3\xa9m\n"), r"names os.syst\\xe9m"),
    "a name that is no text": (Ops(b"cos\n\xff\n"), "makes no sense"),
    "a name without an end": (Ops(b"c" + b"o" * 400), "no end of line"),
    "stack global": (Ops(b"X\x05\0\0\0posixX\6\0\0\0system\x93"), "names posix.system"),
    "stack global of numbers": (Ops(b"K\1K\2\x93"), "names 2 as a class"),
    "a class of two lines": (Ops(b"(ios\nsystem\n"), "names os.system"),
    "an admitted class of two lines": (Ops(b"(icollections\nOrderedDict\n"), "instance of collections.OrderedDict"),
    "an instance off the stack": (Ops(b"(" + ask("collections", "OrderedDict") + b"o"), "uses an instance of a class"),
    "extension 1": (Ops(b"\x82\x01"), "uses an extension code"),
    "extension 2": (Ops(b"\x83\x01\0"), "uses an extension code"),
    "extension 4": (Ops(b"\x84\x01\0\0\0"), "uses an extension code"),
    "persistent text": (Ops(b"P123\n"), "uses an object outside the file"),
    "next buffer": (Ops(b"\x97"), "uses a buffer outside the file"),
    "keyword arguments": (Ops(ask("argparse", "Namespace") + b")}\x92"), "uses a class with keyword"),
    "call of a number": (Ops(b"K\1)R"), "calls 1, which is not a function"),
    "call of a dtype": (named("float32", of="torch"), "calls torch.float32, which is not a function"),
    "call of a storage class": (named("FloatStorage", 3, of="torch"), "calls torch.FloatStorage"),
    "call without a tuple": (Ops(ask("builtins", "set") + b"]R"), "damaged"),
    "call with many arguments": (named("OrderedDict", *range(17), of="collections"), "damaged"),
    "call with too many arguments": (named("OrderedDict", 1, 2, of="collections"), "TypeError"),
    "new instance of a function": (Ops(ask("torch._utils", "_rebuild_tensor_v2") + b")\x81"), "makes an instance of"),
    "new instance with arguments": (Ops(ask("argparse", "Namespace") + b"K\1\x85\x81"), "makes an instance of"),
    "new instance of a number": (Ops(b"K\1)\x81"), "makes an instance of 1"),
    "attributes of a list": (state_of([], {"a": 1}), "sets attributes of a list"),
    "attributes of a class": (state_of(Global("argparse", "Namespace"), {"__init__": 1}), "sets attributes of a Named"),
    "attributes that are no dict": (state_of(named("Namespace", of="argparse"), [1]), "Namespace that makes no sense"),
    "attributes named by numbers": (state_of(named("Namespace", of="argparse"), {1: 1}), "Namespace that makes no"),
    # containers
    "list in itself": (Ops(b"]q\0h\0a"), "nested more than"),
    "dict in itself": (Ops(b"}q\0X\1\0\0\0ah\0s"), "nested more than"),
    "tuple in itself": (Ops(b"]q\0h\0\x85a"), "nested more than"),
    "namespace in itself": (Ops(ask("argparse", "Namespace") + b")Rq\0}X\1\0\0\0ah\0sb"), "nested more than"),
    "lists 1,000 deep": (Ops(b"]" * 1000 + b"a" * 999), "nested more than 100 deep"),
    "tuples 1,000 deep": (Ops(b")" + b"\x85" * 1000), "nested more than"),
    "deep twice over": (
        Ops(b"](" + b"]" + b"\x85" * 90 + b"q\0" + b"h\0" + b"\x85" * 90 + b"e"),
        "nested more than",
    ),
    "2 ** 60 lists": (Ops(BOMB), "more than 10000000 items"),
    "2 ** 60 tuples": (Ops(b")" + b"q\0h\0\x86" * 60), "more than 10000000 items|nested more than"),
    "a key of 2 ** 60 tuples": (Ops(b"})" + b"q\0h\0\x86" * 60 + b"K\1s"), "as a key of a dict"),
    "a key that is a list": (Ops(b"}]K\1s"), "has a list as a key"),
    "a key that is a tensor": (Ops(b"}" + Pickle().emit(named("set", [NUMPY], of="builtins")) + b"K\1s"), "in a set"),
    "integers of one hash": (
        Ops(Pickle().emit({i * (2**61 - 1): i for i in range(1, 9)})),
        "4611686018427387902 as a key",
    ),
    "complex numbers": (named("set", [named("complex", 1.0, 2.0, of="builtins")], of="builtins"), "a complex as a key"),
    "tuples of large integers": (named("set", [(1 << 20, 3)], of="builtins"), "a tuple as a key"),
    "a set of dicts": (Ops(b"\x8f(}\x90"), "has a dict as a key"),
    "a frozen set of lists": (Ops(b"(]\x91"), "has a list as a key"),
    "an ordered dict with a list": (named("OrderedDict", [[[1], 2]], of="collections"), "has a list as a key"),
    "a set of a word": (named("set", "ab", of="builtins"), "holds a set that makes no sense"),
    "a frozen set of a word": (named("frozenset", "ab", of="builtins"), "holds a (frozen)?set that makes no sense"),
    "an ordered dict of a word": (named("OrderedDict", "ab", of="collections"), "holds a dict that makes no sense"),
    "an ordered dict of threes": (named("OrderedDict", [[1, 2, 3]], of="collections"), "holds a dict that makes no"),
    "an ordered dict of keys alone": (named("OrderedDict", [["a"]], of="collections"), "damaged"),
    "copies of copies": (
        Ops(b"](" + b"K\1" * 2000 + b"eq\0(" + (ask("builtins", "set") + b"h\0\x85R") * 100 + b"t"),
        "copies of copies",
    ),
    "copies of text": (
        Ops(b"X\x10\x27\0\0" + b"a" * 10000 + b"q\0(" + (ask("_codecs", "encode") + b"h\0\x85R") * 100 + b"t"),
        "copies of copies",
    ),
    "a key without a value": (Ops(b"}(K\1u"), "key without a value"),
    "append to a dict": (Ops(b"}K\1a"), "adds to a dict as if it were a list"),
    "items to a list": (Ops(b"](K\1K\2u"), "adds to a list as if it were a dict"),
    "add to a list": (Ops(b"](K\1\x90"), "adds to a list as if it were a set"),
    "items to a tensor": (Ops(Pickle().emit(NUMPY) + b"K\1a"), "adds to a NumpyArray"),
    # numbers and text
    "text of 2 ** 60 bytes": (Ops(b"\x8d" + struct.pack("<Q", 1 << 60)), "more than 67108864 bytes of text"),
    "text of 60 MB": (Ops(b"X" + struct.pack("<I", 60_000_000)), "claims 60000000 bytes"),
    "bytes of 2 ** 60": (Ops(b"\x8e" + struct.pack("<Q", 1 << 60)), "claims 1152921504606846976 bytes"),
    "bytes of 4 GB": (Ops(b"B\xff\xff\xff\xff"), "claims 4294967295 bytes"),
    "a byte array of 2 ** 63": (Ops(b"\x96" + struct.pack("<Q", 1 << 63)), "claims 9223372036854775808 bytes"),
    "text of -1 bytes": (Ops(b"T\xff\xff\xff\xff"), "claims -1 bytes"),
    "text that is no UTF-8": (Ops(b"X\1\0\0\0\xff"), "makes no sense"),
    "an integer of 2 GB": (Ops(b"\x8b\xff\xff\xff\x7f"), "integer of 2147483647 bytes"),
    "an integer of -1 bytes": (Ops(b"\x8b\xff\xff\xff\xff"), "integer of -1 bytes"),
    "an integer of 5,000 digits": (Ops(b"I" + b"9" * 5000 + b"\n"), "no end of line"),
    "an integer that is code": (Ops(b"I__import__('os')\n"), "text that is not an integer"),
    "a memo at 2 ** 32 - 1, never filled": (Ops(b"j\xff\xff\xff\xff"), "makes no sense"),
    "more ends than beginnings": (Ops(b"t"), "makes no sense"),
    "a mark without an end": (Ops(b"(K\1"), "makes no sense|unfinished"),
    "nothing on the stack": (Ops(b"0"), "pickle protocol 0 or 1"),
    "a short tuple of nothing": (Ops(b"\x87"), "tuple before it has begun"),
    "opcode ff": (Ops(b"\xff"), "ff is no opcode"),
    "protocol 9": (Ops(b"\x80\x09K\1"), "has pickle protocol 9"),
    # NumPy
    "a dtype of objects": (named("dtype", "O8", False, True, of="numpy"), "dtype 'O8', and only numbers"),
    "a structured dtype": (named("dtype", "V8", False, True, of="numpy"), "dtype 'V8', and only numbers"),
    "a dtype of no name": (named("dtype", [("a", "f8")], of="numpy"), "damaged"),
    "a dtype with another order": (state_of(F8, (3, "?", None)), "NumPy dtype that makes no sense"),
    "an array without content": (NUMPY, "NumPy array without content"),
    "an array of another class": (named("_reconstruct", 1, (0,), "b", of="numpy.core.multiarray"), "damaged"),
    "an array of a number": (state_of(NUMPY, (1, (1,), 8, False, "x" * 8)), "NumPy array that makes no sense"),
    "an array of few bytes": (
        state_of(NUMPY, (1, (10**6,), F8, False, "x" * 8)),
        "8 bytes for a NumPy array of 8000000",
    ),
    "an array of a list": (state_of(NUMPY, (1, (1,), F8, False, [1.0])), "NumPy array that makes no sense"),
    "an array of 2 ** 80": (state_of(NUMPY, (1, (0, 1 << 80), F8, False, "")), "too large for any computer"),
    "a scalar of few bytes": (named("scalar", F8, "x", of="numpy.core.multiarray"), "1 bytes for a NumPy array of 8"),
    "a buffer in no order": (named("_frombuffer", "", F8, (0,), "X", of="numpy.core.numeric"), "damaged"),
}
TENSORS = {
    "beyond the storage": (window((2, 4), (3, 1)), "reaches item 6 of the storage .*, which has 6"),
    "offset beyond": (window(offset=1), "reaches item 6"),
    "stride of 2 ** 70": (window((2, 1), (1 << 70, 1)), "reaches item 1180591620717411303424"),
    "negative stride": (window(stride=(-3, 1), offset=3), "strides or offset make no sense"),
    "negative offset": (window(offset=-1), "strides or offset make no sense"),
    "offset of True": (window(offset=True), "strides or offset"),
    "negative size": (window((-2, 3)), "a dimension of -2"),
    "size of NaN": (window((float("nan"), 3)), "a dimension of nan"),
    "size of 1.0": (window((1.0, 3)), "a dimension of 1.0"),
    "size of text": (window(("2", 3)), "a dimension of '2'"),
    "size in a list": (window([2, 3]), "shape that makes no sense"),
    "fewer strides than sizes": (window(stride=(1,)), "strides or offset"),
    "33 dimensions": (window((1,) * 33, (1,) * 33), "shape that makes no sense"),
    "repeated 2 ** 40 times": (window((1 << 40,), (0,)), "1099511627776 items that repeats the 6"),
    "empty, of 2 ** 80": (window((0, 1 << 80), (1, 1)), "too large for any computer"),
    "over a number": (window(storage=5), "tensor over 5"),
    "over a tensor": (window(storage=window()), "tensor over a Tensor"),
    "parameter of a number": (named("_rebuild_parameter", 5, True, None), "parameter of 5"),
    "no arguments": (named("_rebuild_tensor_v2"), "TypeError"),
    "conjugate": (named("_rebuild_tensor_v2", ROW, 0, (1,), (1,), False, None, {"conj": True}), "resolve_conj"),
    "without dtype": (named("_rebuild_tensor_v3", ROW, 0, (1,), (1,), False, None, "float32"), "without a dtype"),
    "float8": (
        named("_rebuild_tensor_v3", ROW, 0, (1,), (1,), False, None, Global("torch", "float8_e5m2")),
        "names torch.float8_e5m2",
    ),
    "another dtype": (
        named("_rebuild_tensor_v3", ROW, 0, (1,), (1,), False, None, Global("torch", "int32")),
        "both float32 and int32",
    ),
    "size of text as torch.Size": (named("Size", "ab", of="torch"), "shape that makes no sense"),
    "device of numbers": (named("device", 1, of="torch"), "names a device"),
}
STORES = {
    "no class": ({"kind": 5}, "no dtype, name or size"),
    "a quantized class": ({"kind": "QInt8Storage"}, "names torch.QInt8Storage"),
    "a dtype for a class": ({"kind": "float32"}, "no dtype, name or size"),
    "a key of numbers": ({"key": 3}, "no dtype, name or size"),
    "a count of NaN": ({"count": float("nan")}, "no dtype, name or size"),
    "a count of -1": ({"count": -1}, "no dtype, name or size"),
    "a count of 2 ** 62": ({"count": 1 << 62}, "claims 1844.* bytes|has 6 items .*expected 4611"),
    "a count too small": ({"count": 5}, "claims 20 bytes .* has 24|has 6 items .* expected 5|reaches item"),
}


@pytest.fixture
def place(tmp_path):
    return tmp_path / "file.pt"


def check_refused(place, data, message, slack=SLACK):
    got = outcome(place, data, slack)
    assert isinstance(got, str) and re.search(message, got), got


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize(("value", "message"), HOSTILE.values(), ids=HOSTILE)
def test_what_is_no_data_is_refused(place, write, value, message):
    check_refused(place, write([value]), message)


@pytest.mark.parametrize("write", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize(("value", "message"), TENSORS.values(), ids=TENSORS)
def test_tensors_beyond_their_storage_are_refused(place, write, value, message):
    check_refused(place, write([value]), message)


@pytest.mark.parametrize("write", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize(("changes", "message"), STORES.values(), ids=STORES)
def test_storages_that_are_not_what_they_claim_are_refused(place, write, changes, message):
    check_refused(place, write([tensor(Storage(np.arange(6, dtype=np.float32), **changes), (6,))]), message)


# --- nothing is run, and little is taken ---


def calls_of(command):
    """Every way in which a pickle can have a function called."""
    text = b"X" + struct.pack("<I", len(command)) + command.encode()
    code = f"__import__('os').system({command!r})"
    return {
        "eval": Pickle().emit(named("eval", code, of="builtins")),
        "reduce": b"cos\nsystem\n" + text + b"\x85R",
        "posix": b"cposix\nsystem\n" + text + b"\x85R",
        "stack global": b"X\2\0\0\0osX\6\0\0\0system\x93" + text + b"\x85R",
        "inst": b"(" + text + b"ios\nsystem\n",
        "obj": b"(cos\nsystem\n" + text + b"o",
        "new object": b"csubprocess\nPopen\n" + text + b"\x85\x81",
        "build": b"cargparse\nNamespace\n)R}X\x0c\0\0\0__setstate__cos\nsystem\nsb" + text + b"b",
        "append": b"cargparse\nNamespace\n)R}X\6\0\0\0appendcos\nsystem\nsb" + text + b"a",
        "factory": b"ccollections\ndefaultdict\ncos\nsystem\n\x85R" + text + b"K\1s",
        "device": b"ctorch\ndevice\ncos\nsystem\n\x85R",
        "rebuild": b"ccopy_reg\n_reconstructor\ncos\nsystem\nc__builtin__\nobject\n" + text + b"\x87R",
    }


@pytest.mark.parametrize("way", calls_of(""))
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_no_command_is_run(tmp_path, write, way):
    trace = tmp_path / "trace"
    data = write([Ops(calls_of(f"touch {trace}")[way])])
    check_refused(tmp_path / "file.pt", data, "nothing in it was run")
    assert not trace.exists()


def test_the_command_would_run_in_pickle(tmp_path):
    """Otherwise the test above would prove nothing."""
    pickle.loads(bare_file([Ops(calls_of(f"touch {tmp_path / 'trace'}")["reduce"])]))
    assert (tmp_path / "trace").exists()


def test_every_opcode_of_pickle_is_known_or_refused_by_name():
    known = {*_HANDLERS, *_REFUSED, b"."}
    assert known == {opcode.code.encode("latin-1") for opcode in pickletools.opcodes}
    assert not set(_HANDLERS) & set(_REFUSED)


def test_a_far_index_of_the_memo_takes_no_memory(place):
    """pickle.Unpickler's memo is an array, which one opcode can make 32 GB long."""
    assert outcome(place, bare_file([Ops(b"K\1r\xff\xff\xff\xffK\2r\xfe\xff\xff\xff")])) == [1, 2]


@pytest.mark.parametrize("code", [b"]", b"\x8f", b"(", b"K\1"], ids=repr)
def test_a_flood_of_opcodes_ends(place, code):
    """Each is a byte or two in the file and up to 250 in memory, so their number is bounded for any size of file."""
    data = zipped({"archive/data.pkl": b"\x80\x02" + code * (2 * MAX_OPCODES) + b"."})
    start = time.perf_counter()
    check_refused(place, data, f"more than {MAX_OPCODES} steps", slack=260 * MAX_OPCODES)
    assert time.perf_counter() - start < 60


@pytest.mark.parametrize("size", [1 << 16, 1 << 20])
def test_long_bytes_are_not_copied(place, size):
    raw = np.arange(size, dtype=np.uint8)
    got = outcome(place, pickle.dumps(raw, 4))
    assert np.array_equal(got, raw)


def test_storages_that_are_not_requested_are_not_read(place):
    entries = entries_of({"a": tensor(np.ones(3))})
    entries["archive/data/more"] = bytes(4_000_000)
    place.write_bytes(zipped(entries))
    got = outcome(place, zipped(entries), slack=300_000 - 8_000_000)
    assert got["a"].tolist() == [1.0, 1.0, 1.0]


def test_the_message_says_what_to_do(place):
    place.write_bytes(bare_file(named("system", "ls", of="os")))
    with pytest.raises(ValueError) as error:
        read_torch_file(place)
    assert str(error.value) == (
        f"{place} names os.system, which is neither a tensor nor plain data: the file was refused, and nothing in "
        "it was run. If you trust it, load it with PyTorch and save only its tensors: "
        "torch.save(model.state_dict(), path)"
    )


@pytest.mark.parametrize(("most", "good"), [(9, True), (8, False)])
def test_items_are_counted_wherever_they_occur(tmp_path, monkeypatch, most, good):
    """A list of two lists of three: 9 items, though the file holds the inner list once."""
    monkeypatch.setattr(reader, "MAX_ITEMS", most)
    place = tmp_path / "lists.pt"
    place.write_bytes(zipped({"archive/data.pkl": b"\x80\x02](](K\1K\2K\3eq\0h\0e."}))
    if good:
        assert read_torch_file(place) == [[1, 2, 3], [1, 2, 3]]
    else:
        with pytest.raises(ValueError, match="would hold more than 8 items"):
            read_torch_file(place)


@pytest.mark.parametrize(
    ("key", "good"),
    [
        ("a", True),
        (b"a", True),
        (None, True),
        (1.5, True),
        (True, True),
        ((1 << 61) - 1, True),
        (1 - (1 << 61), True),
        (1 << 61, False),
        (-(1 << 61), False),
        ((1, "a", (1 << 16) - 1, 4), True),
        ((1, 2, 3, 4, 5), False),
        ((1 << 16,), False),
        ((-(1 << 16),), False),
        ((1.5,), False),
        ((True,), False),
        (((),), False),
        (1j, False),
        (np.float32(2), True),
        (np.complex64(2), False),
        ([], False),
    ],
)
def test_what_may_be_a_key(key, good):
    """Text and common numbers, whose hashes differ, and short tuples of text and small integers."""
    assert is_key(key) is good
