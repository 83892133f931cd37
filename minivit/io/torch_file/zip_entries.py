"""The entries of a zip archive: read from the directory at its end, and compared with their headers.

PyTorch stores its entries uncompressed, so a compressed one is refused, and no entry can be larger than the file. NumPy
may deflate those of an .npz.
"""

from __future__ import annotations

import struct
from typing import BinaryIO, NamedTuple

from minivit.io.text import quoted
from minivit.io.torch_file.bounds import DAMAGED, REFUSED, Source, Unreadable, check

MAX_ENTRIES = 100_000  # PyTorch writes one for each storage; the largest published ViT has 1,500
MAX_PATH = 512  # bytes of an entry's name; PyTorch's are the file's name and `/data/123`

# the records of the format's description (PKWARE, APPNOTE.TXT): sections 4.3.7, 4.3.12, 4.3.14, 4.3.15 and 4.3.16
_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_CENTRAL = struct.Struct("<4sHHHHHHIIIHHHHHII")
_END64 = struct.Struct("<4sQHHIIQQQQ")
_LOCATOR64 = struct.Struct("<4sIQI")
_END = struct.Struct("<4sHHHHIIH")
_DEFLATE = 8  # the method
_FULL = 0xFFFFFFFF  # marks a field whose value is in a longer field


class Entry(NamedTuple):
    """A range of the file, and its checksum.

    Attributes:
        start: of its content.
        size: in bytes, unpacked.
        crc: its checksum.
        packed: its size in the file, if different.
        offset: of its header.
    """

    start: int
    size: int
    crc: int
    packed: int = 0
    offset: int = 0


class _Header(NamedTuple):
    """A line of the directory."""

    offset: int
    name: str
    flags: int
    method: int
    packed: int
    size: int
    crc: int


def find_entries(file: BinaryIO, size: int, *, deflated: bool = False) -> dict[str, Entry]:
    """The entries of the archive in a file of `size` bytes, by their names; no two overlap.

    Args:
        deflated: entries may be compressed; their sizes are then claims of the archive.
    """
    count, directory = _directory(file, size)
    end = directory.position
    headers = sorted((_header(directory, end, deflated) for _ in range(count)), key=lambda header: header.offset)
    check(directory.left == 0, f"has {directory.left} bytes more in its zip directory than its entries: {DAMAGED}")
    entries: dict[str, Entry] = {}
    for header, following in zip(headers, [*(header.offset for header in headers[1:]), end]):
        check(header.name not in entries, f"has two entries named {quoted(header.name)}: {DAMAGED}")
        start = _content(file, header, following)
        entries[header.name] = Entry(start, header.size, header.crc, header.packed, header.offset)
    return entries


def _directory(file: BinaryIO, size: int) -> tuple[int, Source]:
    """The number of entries, and the range of the directory."""
    first = max(0, size - _END.size - 0xFFFF)  # a comment of up to 65,535 bytes may follow
    tail = Source(file, first, size - first).take(size - first)
    position = tail.rfind(b"PK\5\6")
    while position >= 0 and not _ends_there(tail, position):
        position = tail.rfind(b"PK\5\6", 0, position)
    check(position >= 0, "begins as a zip archive but has no directory at its end: it is truncated, fetch it again")
    _, disk, first_disk, here, count, nbytes, offset, _ = _END.unpack_from(tail, position)
    end = first + position
    if 0xFFFF in (here, count) or _FULL in (nbytes, offset):
        disk, first_disk, here, count, nbytes, offset, end = _directory64(file, end)
    check((disk, first_disk) == (0, 0) and here == count, f"is one part of a zip archive in several: {DAMAGED}")
    check(count <= MAX_ENTRIES, f"claims {count} entries, expected at most {MAX_ENTRIES}: {DAMAGED}")
    fits = offset + nbytes <= end and count * _CENTRAL.size <= nbytes <= count * (_CENTRAL.size + 3 * 0xFFFF)
    check(fits, f"has a zip directory with an impossible position or size: {DAMAGED}")
    return count, Source(file, offset, nbytes)


def _ends_there(tail: bytes, position: int) -> bool:
    """Whether the record at this offset is complete, and its comment ends with the file."""
    start = position + _END.size
    return len(tail) >= start and start + _END.unpack_from(tail, position)[-1] == len(tail)


def _directory64(file: BinaryIO, end: int) -> tuple[int, int, int, int, int, int, int]:
    """The same for an archive of 4 GB or more, and the end of its directory."""
    check(end >= _LOCATOR64.size, f"has a zip directory with an impossible position or size: {DAMAGED}")
    mark, _, position, _ = _LOCATOR64.unpack(Source(file, end - _LOCATOR64.size, _LOCATOR64.size).take(_LOCATOR64.size))
    possible = mark == b"PK\6\7" and position + _END64.size <= end
    check(possible, f"has a zip directory with an impossible position: {DAMAGED}")
    mark, *_, disk, first_disk, here, count, nbytes, offset = _END64.unpack(
        Source(file, position, _END64.size).take(_END64.size)
    )
    check(mark == b"PK\6\6", f"has a zip directory with an impossible position: {DAMAGED}")
    return disk, first_disk, here, count, nbytes, offset, position


def _header(directory: Source, end: int, deflated: bool) -> _Header:
    """The next line of the directory."""
    mark, _, _, flags, method, _, _, crc, packed, nbytes, length, more, comment, *_, offset = _CENTRAL.unpack(
        directory.take(_CENTRAL.size)
    )
    check(mark == b"PK\1\2", f"has a zip directory that makes no sense: {DAMAGED}")
    check(length <= MAX_PATH, f"has an entry with a name of {length} bytes: {DAMAGED}")
    name = _checked(directory.take(length))
    extra = directory.take(more)
    directory.take(comment)
    if _FULL in (packed, nbytes, offset):
        nbytes, packed, offset = _sizes64(extra, nbytes, packed, offset)
    check(not flags & 0x2041, f"has an encrypted entry, {quoted(name)}: save it without a password")
    if method and not (deflated and method == _DEFLATE):
        usual = "NumPy deflates them at most" if deflated else "PyTorch does not compress them"
        raise Unreadable(
            f"has a compressed entry, {quoted(name)}, and {usual}: it was unpacked and packed again, or is not one of "
            "theirs. Fetch it again"
        )
    claimed = packed if method else max(packed, nbytes)
    fits = (method or packed == nbytes) and offset + _LOCAL.size + length + claimed <= end
    check(fits, f"claims {claimed} bytes for its entry {quoted(name)}, more than there are: {DAMAGED}")
    return _Header(offset, name, flags, method, packed, nbytes, crc)


def _sizes64(extra: bytes, *fields: int) -> list[int]:
    """The fields that did not fit into 32 bits, from the extra field of kind 1."""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        found, extra = extra[4 : 4 + length], extra[4 + length :]
        if kind == 1:
            wanted = sum(field == _FULL for field in fields)
            check(len(found) >= 8 * wanted, f"has an entry without a size: {DAMAGED}")
            values = iter(struct.unpack_from(f"<{wanted}Q", found))
            return [next(values) if field == _FULL else field for field in fields]
    raise Unreadable(f"has an entry without a size: {DAMAGED}")


def _checked(raw: bytes) -> str:
    """The name of an entry, which must stay within the archive's folder."""
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        raise Unreadable(f"has an entry whose name is not text: {DAMAGED}") from None
    parts = name.removesuffix("/").split("/")
    good = name.isprintable() and not any(part in ("", ".", "..") for part in parts)
    check(good and "\\" not in name and parts[0][1:] != ":", f"has an entry named {quoted(name)}: {REFUSED}")
    return name


def _content(file: BinaryIO, entry: _Header, following: int) -> int:
    """The start of an entry's content; its header must agree with the directory."""
    header = Source(file, entry.offset, following - entry.offset)
    mark, _, flags, method, _, _, _, packed, nbytes, length, more = _LOCAL.unpack(header.take(_LOCAL.size))
    same = mark == b"PK\3\4" and (flags, method) == (entry.flags, entry.method)
    same = same and header.take(length) == entry.name.encode()
    if not flags & 8:  # otherwise the sizes follow the content
        same = same and (packed, nbytes) in ((entry.packed, entry.size), (_FULL, _FULL))
    name = quoted(entry.name)
    check(same, f"has a header of its entry {name} that contradicts the zip directory: {DAMAGED}")
    header.take(more)
    check(header.left >= entry.packed, f"has entries that overlap, {name} among them: {DAMAGED}")
    return header.position
