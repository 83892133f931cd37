"""Files of torch.save that are cut off, changed bit by bit, or put together wrongly: refused, or whole."""

from __future__ import annotations

import os
import pickle
import re
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from torch_files import (
    FORMATS,
    MAGIC,
    Call,
    Global,
    Ops,
    Pickle,
    Storage,
    bare_file,
    entries_of,
    is_plain,
    new_file,
    old_file,
    outcome,
    tensor,
    zipped,
)

from minivit.io.safetensors import CheckpointError
from minivit.io.torch_file import read_torch_file, reader as module

SPACE = Ops(Pickle().emit(Call(Global("argparse", "Namespace"), ())) + Pickle().emit({"lr": 0.5}) + b"b")
SMALL = {"w": tensor(np.array([[1.5, 2.5]], np.float32)), "n": [1, "a"], "o": SPACE}
READ = {"w": [[1.5, 2.5]], "n": [1, "a"], "o": {"lr": 0.5}}
WRITERS = {**FORMATS, "bare": lambda value: pickle.dumps({"w": np.array([[1.5, 2.5]], np.float32), "n": [1, "a"]}, 4)}
every_kind = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)


@pytest.fixture
def place(tmp_path):
    return tmp_path / "file.pt"


def refusal(path, data):
    """The message of the error, or None."""
    path.write_bytes(data)
    try:
        value = read_torch_file(path)
    except CheckpointError as error:
        assert str(error).startswith(f"{path} ")
        return str(error)
    assert is_plain(value)
    return None


def check_refused(path, data, message):
    got = outcome(path, data)
    assert isinstance(got, str) and re.search(message, got), got


@every_kind
def test_every_truncation_is_refused(place, write):
    data = write(SMALL)
    assert refusal(place, data) is None
    for size in range(len(data)):
        assert refusal(place, data[:size]), size


@every_kind
def test_trailing_bytes_are_refused(place, write):
    for tail in (b"\0", b"x", bytes(100), write(SMALL)[:-1]):
        assert refusal(place, write(SMALL) + tail)


@pytest.mark.parametrize("kind", ["old", "bare"])
def test_every_flipped_bit_of_a_file_without_checksums_is_refused_or_leaves_plain_data(place, kind):
    data = WRITERS[kind](SMALL)
    for position in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[position] ^= 1 << bit
            refusal(place, damaged)


def test_no_flipped_bit_of_an_archive_goes_unnoticed(place):
    data = zipped(entries_of(SMALL), alignment=4)
    refused = 0
    for position in range(0, 8 * len(data), 3):  # two or three bits of every byte
        damaged = bytearray(data)
        damaged[position // 8] ^= 1 << position % 8
        place.write_bytes(damaged)
        try:
            got = read_torch_file(place)
        except CheckpointError:
            refused += 1
        else:
            assert {**got, "w": got["w"].tolist()} == READ, position
    assert refused > 0.7 * 8 / 3 * len(data)  # the rest are dates, attributes and padding


@given(data=st.data())
@settings(max_examples=300)
def test_any_bytes_spliced_into_a_file(tmp_path_factory, data):
    whole = data.draw(st.sampled_from([write(SMALL) for write in WRITERS.values()]))
    first, second = sorted(data.draw(st.tuples(*[st.integers(0, len(whole))] * 2)))
    opcodes = st.sampled_from([bytes([code]) for code in b"()]}aebcistuqhRQ\x81\x85\x86\x87\x93\x94\x8f\x90K\x01"])
    piece = data.draw(st.one_of(st.binary(max_size=40), st.lists(opcodes, max_size=20).map(b"".join)))
    refusal(tmp_path_factory.mktemp("splice") / "file.pt", whole[:first] + piece + whole[second:])


@given(
    code=st.lists(st.sampled_from([*b"()]}NaestuRQb01", 0x81, 0x85, 0x86, 0x87, 0x8F, 0x90, 0x91, 0x94]), max_size=60)
)
@settings(max_examples=500)
def test_any_opcodes_on_any_objects(tmp_path_factory, code):
    """A stack of one object of each kind, and then opcodes as they come."""
    kinds = [[1], {"a": 1}, (1,), 7, "a", 1.5, SPACE, Global("collections", "OrderedDict")]
    kinds += [Call(Global("numpy", "dtype"), ("f8", False, True)), Call(Global("builtins", "set"), ([1],))]
    objects = b"".join(Pickle().emit(kind) for kind in kinds)
    refusal(tmp_path_factory.mktemp("opcodes") / "file.pt", b"\x80\x02(" + objects + bytes(code) + b".")


# --- archives put together wrongly ---


def changed(entries=None, **fields):
    """A file's archive with fields of its end record set: count, size or offset of the directory, or the disk."""
    data = new_file(SMALL) if entries is None else zipped(entries)
    names = ["mark", "disk", "first", "here", "count", "size", "offset", "comment"]
    end = dict(zip(names, struct.unpack("<4s4H2IH", data[-22:])))
    return data[:-22] + struct.pack("<4s4H2IH", *{**end, **fields}.values())


def patched(form, at, value, entry="archive/data/0", central=True, local=False):
    """An archive with a field of an entry's header in the directory, or before the entry, set."""
    data = bytearray(new_file(SMALL))
    first = data.index(b"PK\1\2")
    if central:
        struct.pack_into(form, data, data.index(entry.encode(), first) - 46 + at, value)
    if local:
        struct.pack_into(form, data, data.index(entry.encode()) - 30 + at - 2, value)
    return bytes(data)


def with_entry(name, data=b"abc"):
    return zipped({**entries_of(SMALL), name: data})


def without(name):
    return zipped({key: data for key, data in entries_of(SMALL).items() if key != f"archive/{name}"})


def with_pickle(pickled):
    return zipped({**entries_of(SMALL), "archive/data.pkl": pickled})


def twice(name):
    entries = entries_of(SMALL)
    data = zipped({**entries, "archive/twin__": entries[name]} if len(name) == 14 else entries)
    return data.replace(b"archive/twin__", name.encode())


ARCHIVES = {
    "nothing but its first bytes": (lambda: b"PK\3\4", "no directory at its end"),
    "a path upwards": (lambda: with_entry("../evil"), r"entry named '\.\./evil': it was refused"),
    "a path upwards inside": (lambda: with_entry("archive/../../evil"), "it was refused"),
    "an absolute path": (lambda: with_entry("/etc/passwd"), "it was refused"),
    "a drive": (lambda: with_entry("C:/evil"), "it was refused"),
    "a backslash": (lambda: with_entry("archive\\evil"), "it was refused"),
    "a line end in a name": (lambda: with_entry("archive/e\nvil"), "it was refused"),
    "a dot": (lambda: with_entry("archive/./data/0"), "it was refused"),
    "an empty part": (lambda: with_entry("archive//data"), "it was refused"),
    "a name of 1,000 bytes": (lambda: with_entry("archive/" + "a" * 1000), "a name of 1008 bytes"),
    "a name that is no text": (lambda: with_entry("archive/xyz").replace(b"xyz", b"\xff\xfe\xfd"), "not text"),
    "two of one name": (lambda: twice("archive/data/0"), "two entries named 'archive/data/0'"),
    "two pickles": (lambda: with_entry("other/data.pkl"), "2 entries"),
    "no pickle": (lambda: without("data.pkl"), "0 entries"),
    "no storage": (lambda: without("data/0"), "lacks the entry data/0"),
    "a storage too short": (lambda: with_entry("archive/data/0", bytes(7)), "claims 8 bytes .* and has 7"),
    "a storage too long": (lambda: with_entry("archive/data/0", bytes(9)), "claims 8 bytes .* and has 9"),
    "TorchScript": (lambda: with_entry("archive/constants.pkl"), "TorchScript"),
    "compressed": (lambda: zipped(entries_of(SMALL), compress_type=zipfile.ZIP_DEFLATED), "compressed entry"),
    "a compressed bomb": (
        lambda: zipped({**entries_of(SMALL), "archive/data/1": bytes(10**8)}, compress_type=zipfile.ZIP_DEFLATED),
        "compressed entry",
    ),
    "encrypted": (lambda: patched("<H", 8, 1), "encrypted entry"),
    "another byte order": (lambda: with_entry("archive/byteorder", b"middle"), "unknown byte order, b'middle'"),
    "a long byte order": (lambda: with_entry("archive/byteorder", b"little" * 1000), "unknown byte order"),
    "bytes behind the pickle": (lambda: with_pickle(Pickle().dump(1) + b"x"), "1 bytes after the end of its pickle"),
    "an empty pickle": (lambda: with_pickle(b""), "claims 1 bytes"),
    "a pickle of protocol 0": (lambda: with_pickle(pickle.dumps([1], 0)), "pickle protocol 0 or 1"),
    "a wrong checksum": (lambda: patched("<I", 16, 12345), "differ from their checksum"),
    "a wrong checksum of the pickle": (
        lambda: patched("<I", 16, 12345, "archive/data.pkl"),
        "differ from their checksum",
    ),
    "a size of 4 GB": (lambda: patched("<I", 24, 4_000_000_000), "claims 4000000000 bytes for its entry"),
    "both sizes of 4 GB": (lambda: patched("<Q", 20, 0xF0000000F0000000), "claims 4026531840 bytes for its entry"),
    "both sizes too long": (lambda: patched("<Q", 20, 0x0000020000000200), "contradicts|overlap|more than there are"),
    "a size in 64 bits that is missing": (lambda: patched("<I", 24, 0xFFFFFFFF), "an entry without a size"),
    "another offset": (lambda: patched("<I", 42, 3), "bytes at byte 0, but|contradicts the zip"),
    "the offset of another": (lambda: patched("<I", 42, 0), "bytes at byte 0, but|contradicts the zip"),
    "an offset of 4 GB": (lambda: patched("<I", 42, 0xFFFFFFF0), "more than there are"),
    "another method before the entry": (
        lambda: patched("<H", 10, 8, central=False, local=True),
        "contradicts the zip",
    ),
    "another size before the entry": (lambda: patched("<I", 24, 5, central=False, local=True), "contradicts the zip"),
    "padding beyond the entry": (lambda: patched("<H", 30, 60000, central=False, local=True), "claims 60000 bytes"),
    "a count of 65,534": (lambda: changed(count=65534, here=65534), "an impossible position or size"),
    "a count of 1": (lambda: changed(count=1, here=1), "bytes more in its zip directory"),
    "a count of 0": (lambda: changed(count=0, here=0), "an impossible position or size"),
    "counts that differ": (lambda: changed(here=1), "zip archive in several"),
    "another disk": (lambda: changed(disk=1), "zip archive in several"),
    "a directory of 4 GB": (lambda: changed(size=0xFFFFFFF0), "an impossible position or size"),
    "a directory behind the end": (lambda: changed(offset=0xFFFFFFF0), "an impossible position or size"),
    "a directory elsewhere": (lambda: changed(offset=10), "makes no sense"),
    "a 64-bit directory that is missing": (lambda: changed(offset=0xFFFFFFFF), "an impossible position"),
    "a comment that is cut off": (lambda: changed(comment=10), "no directory at its end"),
}


@pytest.mark.parametrize(("make", "message"), ARCHIVES.values(), ids=ARCHIVES)
def test_archives_put_together_wrongly_are_refused(place, make, message):
    check_refused(place, make(), message)


def test_a_64_bit_directory_that_cannot_be_is_refused(place):
    data = changed(count=0xFFFF, here=0xFFFF)
    for locator in (b"", struct.pack("<4sIQI", b"PK\6\7", 0, 1 << 60, 1), struct.pack("<4sIQI", b"PK\6\7", 0, 0, 1)):
        check_refused(place, data[:-22] + locator + data[-22:], "an impossible position|an impossible position or size")
    end64 = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, 1 << 40, 1 << 40, 1 << 50, 0)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, len(data) - 22, 1)
    check_refused(place, data[:-22] + end64 + locator + data[-22:], "claims 1099511627776 entries")


# --- the older format ---

OLD = {
    "another magic number": (lambda: old_file(SMALL, magic=MAGIC + 1), "begins with the number 0x1950a86a20f9469cfc6d"),
    "another protocol": (lambda: old_file(SMALL, protocol=1000), "has protocol 1000, expected 1001"),
    "a protocol of text": (lambda: old_file(SMALL, protocol="1001"), "has protocol '1001'"),
    "no storages listed": (lambda: old_file(SMALL, keys=[]), "lists other storages"),
    "another storage listed": (lambda: old_file(SMALL, keys=["1"]), "lists other storages"),
    "a storage listed twice": (lambda: old_file(SMALL, keys=["0", "0"]), "lists other storages"),
    "storages listed by number": (lambda: old_file(SMALL, keys=[0]), "storages without names"),
    "storages not listed": (lambda: old_file(SMALL, keys={"0": 0}), "storages without names"),
    "a byte more": (lambda: old_file(SMALL, tail=b"x"), "1 bytes after its last storage"),
    "a storage of 2 ** 62": (
        lambda: old_file(SMALL)[:-16] + struct.pack("<q", 1 << 62),
        "has 4611686018427387904 items",
    ),
    "a storage of -1": (lambda: old_file(SMALL)[:-16] + struct.pack("<q", -1), "has -1 items"),
    "a storage cut off": (lambda: old_file(SMALL)[:-1], "claims 8 bytes .* but 7 are left"),
    "a view of a storage": (lambda: old_file(Ops(b"(X\7\0\0\0storageNNNNK\1tQ")), "as a storage"),
    "a module": (lambda: old_file(Ops(b"(X\6\0\0\0moduleNNNtQ")), "as a storage"),
    "a number as a storage": (lambda: old_file(Ops(b"K\1Q")), "names 1 as a storage"),
    "two sizes of one storage": (
        lambda: old_file([Storage(np.ones(2), key="0"), Storage(np.ones(3), key="0")]),
        "two dtypes or sizes",
    ),
    "two dtypes of one storage": (
        lambda: old_file([Storage(np.ones(2), key="0"), Storage(np.ones(2, np.int64), key="0")]),
        "two dtypes or sizes",
    ),
    "a storage without a file": (lambda: bare_file(Storage(np.ones(2))), "outside its pickle"),
    "two pickles": (lambda: pickle.dumps([1], 2) * 2, "bytes after the end of its pickle"),
}


@pytest.mark.parametrize(("make", "message"), OLD.values(), ids=OLD)
def test_older_files_put_together_wrongly_are_refused(place, make, message):
    check_refused(place, make(), message)


# --- no such file ---

OTHERS = {
    "empty": (b"", "begins with nothing"),
    "a web page": (b"<!DOCTYPE html>", "it is a web page"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "gzip": (b"\x1f\x8b\x08\0", "decompress it first"),
    "HDF5": (b"\x89HDF\r\n\x1a\n", "HDF5"),
    "safetensors": (struct.pack("<Q", 2) + b'{"', "minivit.load"),
    "text": (b"hello", "begins with 68 65 6c 6c 6f: check where it came from"),
    "protocol 0": (pickle.dumps([1], 0), "no PyTorch file"),
    "an empty archive": (zipped({}), "no PyTorch file"),
}


@pytest.mark.parametrize(("data", "message"), OTHERS.values(), ids=OTHERS)
def test_other_files_are_named_for_what_they_are(place, data, message):
    check_refused(place, data, message)


def test_files_that_cannot_be_opened(tmp_path):
    names = {"absent": "is missing", ".": "is a folder"}
    if hasattr(os, "mkfifo"):  # opening one would wait for a writer
        os.mkfifo(tmp_path / "pipe")
        names["pipe"] = "is missing or no file"
    for name, message in names.items():
        with pytest.raises(CheckpointError, match=message):
            read_torch_file(tmp_path / name)


def test_errors_of_the_machine_name_the_file(place, monkeypatch):
    place.write_bytes(new_file(SMALL))
    for error, message in (
        (OSError("bad sector"), "file.pt cannot be read .bad sector"),
        (MemoryError(), "more memory"),
    ):

        def fail(*_, error=error):
            raise error

        monkeypatch.setattr(module, "find_entries", fail)
        with pytest.raises(CheckpointError, match=message):
            read_torch_file(place)


def test_a_file_that_shrinks_while_it_is_read_is_refused(place, monkeypatch):
    place.write_bytes(new_file([tensor(np.ones(100_000))]))
    find_entries = module.find_entries

    def find_and_shrink(file, size):
        entries = find_entries(file, size)
        os.truncate(place, 100_000)
        return entries

    monkeypatch.setattr(module, "find_entries", find_and_shrink)
    with pytest.raises(CheckpointError, match="before its claimed size"):
        read_torch_file(place)
