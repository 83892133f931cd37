"""IDX files: round trips, and every way of damaging one must end in DataError or the same array."""

from __future__ import annotations

import gzip
import hashlib
import os
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp

from minivit.data import DataError, idx as idx_module, read_idx, read_labeled, write_idx
from minivit.data.idx import content_sha256, parse_idx

DTYPES = ["uint8", "int8", "int16", "int32", "float32", "float64"]
SMALL = np.arange(2 * 3 * 4, dtype=np.int16).reshape(2, 3, 4) - 5
IMAGES = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)
LABELS = np.array([0, 9, 3], np.uint8)

arrays = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=1, max_dims=8, min_side=0, max_side=3))
)


def encoded(array: np.ndarray) -> bytes:
    """The format written out by hand, independently of write_idx."""
    codes = dict(zip(DTYPES, (8, 9, 11, 12, 13, 14), strict=True))
    header = bytes([0, 0, codes[array.dtype.name], array.ndim])
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + sizes + array.astype(array.dtype.newbyteorder(">")).tobytes()


def read_or_refuse(data: bytes) -> np.ndarray | None:
    """The array, or None if the reader refused with its one error."""
    try:
        return parse_idx(data, "file")
    except DataError as error:
        named = str(error).startswith("file: ")
    assert named
    return None


@given(array=arrays, zipped=st.booleans(), order=st.sampled_from("<>"))
@settings(max_examples=100, deadline=None)
def test_round_trip(tmp_path_factory, array, zipped, order):
    path = tmp_path_factory.mktemp("idx") / ("a.gz" if zipped else "a")
    write_idx(path, array.astype(array.dtype.newbyteorder(order)))
    raw = path.read_bytes()
    assert (gzip.decompress(raw) if zipped else raw) == encoded(array)
    back = read_idx(path)
    assert back.dtype == array.dtype
    assert back.dtype.isnative
    assert back.shape == array.shape
    assert back.flags.writeable
    assert back.tobytes() == array.tobytes()
    assert content_sha256(array) == hashlib.sha256(encoded(array)).hexdigest()


def test_writes_arrays_that_are_not_contiguous(tmp_path):
    write_idx(tmp_path / "a", SMALL.transpose(2, 0, 1)[::2])
    assert np.array_equal(read_idx(tmp_path / "a"), SMALL.transpose(2, 0, 1)[::2])


def test_gzip_is_known_by_its_magic_and_not_by_its_name(tmp_path):
    (tmp_path / "plain.gz").write_bytes(encoded(SMALL))
    (tmp_path / "zipped").write_bytes(gzip.compress(encoded(SMALL), mtime=0))
    assert np.array_equal(read_idx(tmp_path / "plain.gz"), SMALL)
    assert np.array_equal(read_idx(str(tmp_path / "zipped")), SMALL)


def test_same_array_gives_the_same_gzip_file(tmp_path, monkeypatch):
    write_idx(tmp_path / "a.gz", SMALL)
    monkeypatch.setattr("time.time", lambda: 1e9)
    write_idx(tmp_path / "b.gz", SMALL)
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a"
    write_idx(path, SMALL)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_idx(path, IMAGES)
    assert os.listdir(tmp_path) == ["a"]
    assert np.array_equal(read_idx(path), SMALL)


@pytest.mark.parametrize("array", [SMALL, IMAGES, LABELS, np.array([1.5, -2.0])], ids=str)
def test_every_truncation_and_every_trailing_byte_is_refused(array):
    raw = encoded(array)
    for data in (raw, gzip.compress(raw, mtime=0)):
        for size in range(len(data)):
            assert read_or_refuse(data[:size]) is None, size
    for tail in (b"\0", b"x", b"\0" * 100, raw):
        assert read_or_refuse(raw + tail) is None
        assert read_or_refuse(gzip.compress(raw + tail, mtime=0)) is None
        assert read_or_refuse(gzip.compress(raw, mtime=0) + gzip.compress(tail, mtime=0)) is None
    assert read_or_refuse(gzip.compress(raw, mtime=0) + b"x") is None


def test_every_bit_flip_in_the_header_is_refused_or_harmless():
    raw = encoded(SMALL)
    for position in range(4 + 4 * SMALL.ndim):
        for bit in range(8):
            data = bytearray(raw)
            data[position] ^= 1 << bit
            assert read_or_refuse(bytes(data)) is None or (position, SMALL.dtype.itemsize) == (2, 2)


def test_every_bit_flip_in_a_gzip_file_is_refused_or_harmless():
    data = gzip.compress(encoded(SMALL), mtime=0)
    for position in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[position] ^= 1 << bit
            array = read_or_refuse(bytes(damaged))
            assert array is None or np.array_equal(array, SMALL)


@given(st.binary(max_size=60), st.sampled_from([b"", b"\0\0", b"\0\0\x08\x01", b"\x1f\x8b\x08\0"]))
@settings(max_examples=300, deadline=None)
def test_arbitrary_bytes_raise_nothing_but_data_error(data, start):
    read_or_refuse(start + data)


def test_gzip_in_several_members_is_one_file_and_zero_padding_is_ignored():
    raw = encoded(SMALL)
    data = gzip.compress(raw[:7], mtime=0) + gzip.compress(raw[7:], mtime=0) + b"\0" * 16
    assert np.array_equal(parse_idx(data, "file"), SMALL)


def bomb(shape: tuple[int, ...], inflated: int) -> bytes:
    """A gzip file whose header claims `shape` (uint8) and which inflates to `inflated` zeros."""
    press = zlib.compressobj(9, zlib.DEFLATED, 31)
    parts = [press.compress(struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape))]
    parts += [press.compress(bytes(1 << 20)) for _ in range(inflated >> 20)]
    return b"".join([*parts, press.flush()])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (bomb((10,), 64 << 20), "more bytes follow"),
        (bomb((1 << 29,), 1 << 20), "no gzip file of"),
        (bomb((1 << 24,), 1 << 20), "no gzip file of"),
        (bomb((1 << 31,), 1 << 20), "at most 1073741824 bytes"),
        (encoded(LABELS)[:4] + b"\x3f\xff\xff\xff" + bytes(9), "9 bytes follow"),
    ],
    ids=["more than claimed", "impossible ratio", "impossible, small", "beyond cap", "plain"],
)
def test_bombs_and_boasts_are_refused_in_little_memory(data, message):
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=message):
            parse_idx(data, "file")
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_a_zero_dimension_does_not_hide_absurd_ones():
    with pytest.raises(DataError, match="at most"):
        parse_idx(struct.pack(">HBB4I", 0, 8, 4, 0, *[2**32 - 1] * 3), "file")


def test_the_cap_is_the_callers_to_choose(tmp_path):
    write_idx(tmp_path / "a", SMALL)
    assert read_idx(tmp_path / "a", max_bytes=SMALL.nbytes).shape == SMALL.shape
    with pytest.raises(DataError, match=r"a: header claims shape \(2, 3, 4\).*max_bytes"):
        read_idx(tmp_path / "a", max_bytes=SMALL.nbytes - 1)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"begins with bytes \(none\), expected 00 00"),
        (b"\x89PNG", "begins with bytes 89 50 4e 47"),
        (b"<!DOCTYPE html>", "not an IDX file"),
        (b"\0\x01\x08\x01", "begins with bytes 00 01 08 01"),
        (b"\x01\0\x08\x01", "begins with bytes 01 00 08 01"),
        (b"\0\0\x0a\x01", "begins with bytes 00 00 0a 01"),
        (b"\0\0\x08\0", "claims 0 dimensions, expected 1 to 8"),
        (b"\0\0\x08\x09" + bytes(36), "claims 9 dimensions"),
        (b"\0\0\x08\x02" + bytes(7), "ends after 11 bytes, expected a header of 12"),
        (encoded(LABELS)[:-1], r"shape \(3,\), expected 3 bytes of data after it, but 2 bytes"),
        (encoded(LABELS) + b"x", "but 4 bytes follow it"),
        (gzip.compress(encoded(LABELS)[:-1], mtime=0), "but 2 bytes follow it"),
        (gzip.compress(encoded(LABELS), mtime=0)[:-3], "damaged gzip stream"),
        (gzip.compress(encoded(LABELS), mtime=0)[:-8] + bytes(8), "damaged gzip stream .*CRC"),
    ],
)
def test_messages_say_what_was_found_and_expected(data, message):
    with pytest.raises(DataError, match=f"(?s)^file: .*{message}"):
        parse_idx(data, "file")


def test_a_plain_file_that_grows_while_it_is_read_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(encoded(LABELS) + b"late")
    size = len(encoded(LABELS))
    monkeypatch.setattr(idx_module.os, "fstat", lambda _: type("", (), {"st_size": size}))
    with pytest.raises(DataError, match="more bytes follow"):
        read_idx(path)


@pytest.mark.parametrize("name", ["absent", "."])
def test_a_file_that_cannot_be_opened_is_named(tmp_path, name):
    with pytest.raises(DataError, match="cannot be read"):
        read_idx(tmp_path / name)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(3, bool), "no type code for bool: convert to one of uint8, int8"),
        (np.zeros(3, np.int64), "no type code for int64"),
        (np.uint8(3)[()], r"shape \(\) does not fit"),
        (np.zeros((1,) * 9, np.uint8), "does not fit an IDX header"),
        (np.broadcast_to(np.uint8(0), (1 << 32,)), "each below"),
    ],
    ids=["bool", "int64", "scalar", "9 dimensions", "2**32"],
)
def test_what_idx_cannot_hold_is_not_written(tmp_path, array, message):
    with pytest.raises(DataError, match=message):
        write_idx(tmp_path / "a", np.asanyarray(array))
    assert not os.listdir(tmp_path)


def test_labeled_pair(tmp_path):
    write_idx(tmp_path / "images", IMAGES)
    write_idx(tmp_path / "labels", LABELS)
    images, labels = read_labeled(tmp_path / "images", tmp_path / "labels")
    assert images.dtype == np.uint8
    assert labels.dtype == np.int64
    assert np.array_equal(images, IMAGES)
    assert labels.tolist() == [0, 9, 3]


@pytest.mark.parametrize(
    ("images", "labels", "num_classes", "message"),
    [
        (LABELS, IMAGES, 10, "images: found 1 dimensions of uint8, expected 3.*swapped"),
        (IMAGES, IMAGES, 10, "labels: found 3 dimensions of uint8, expected 1"),
        (IMAGES.astype("i4"), LABELS, 10, "images: found 3 dimensions of int32"),
        (IMAGES, LABELS.astype("i1"), 10, "labels: found 1 dimensions of int8"),
        (IMAGES[:2], LABELS, 10, "images holds 2 images but .*labels holds 3 labels"),
        (IMAGES, LABELS, 9, "labels: label 9 at index 1, expected 0 to 8"),
        (IMAGES, LABELS, 3, "labels: label 9 at index 1, expected 0 to 2"),
    ],
)
def test_pairs_that_do_not_fit_are_refused(tmp_path, images, labels, num_classes, message):
    write_idx(tmp_path / "images", images)
    write_idx(tmp_path / "labels", labels)
    with pytest.raises(DataError, match=message):
        read_labeled(tmp_path / "images", tmp_path / "labels", num_classes)
