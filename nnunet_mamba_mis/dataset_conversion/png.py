"""Chunks of a PNG: those with pixels must be intact, others may be damaged."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from nnunet_mamba_mis.dataset_conversion.decoding import BadFileError

_SIGNATURE = 8

# ancillary chunks that affect the picture: transparency, orientation, further frames
_MEANINGFUL = {b"tRNS", b"eXIf", b"acTL"}


def check(data: bytes) -> None:
    """Raise BadFileError if a chunk that pixels depend on is missing, truncated or has a wrong checksum."""
    names = []
    for name, chunk in _chunks(data):
        names.append(name)
        if _pixels_depend_on(name) and not _is_intact(chunk):
            raise BadFileError(f"is truncated or damaged (its chunk {name.decode('latin-1')!r} has a wrong checksum)")
    if names[:1] != [b"IHDR"] or b"IDAT" not in names:
        raise BadFileError("is truncated or damaged (a chunk is missing)")


def without_metadata(data: bytes) -> bytes:
    """Return a PNG without text and other chunks that do not affect the picture, and without damaged eXIf and acTL."""
    kept = [
        chunk
        for name, chunk in _chunks(data)
        if _is_critical(name) or (name in _MEANINGFUL and (name == b"tRNS" or _is_intact(chunk)))
    ]
    return b"".join([data[:_SIGNATURE], *kept])


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the name and bytes of each chunk, including length and checksum, up to the end chunk."""
    position, name = _SIGNATURE, b""
    while position + 8 <= len(data) and name != b"IEND":
        length, name = struct.unpack_from(">I4s", data, position)
        yield name, data[position : position + length + 12]
        position += length + 12


def _is_critical(name: bytes) -> bool:
    # critical chunks start with an upper-case letter, whose bit 5 is 0
    return not name[0] & 0x20


def _pixels_depend_on(name: bytes) -> bool:
    # a PNG that only lacks its end chunk has all its pixels
    return (_is_critical(name) and name != b"IEND") or name == b"tRNS"


def _is_intact(chunk: bytes) -> bool:
    (length,) = struct.unpack_from(">I", chunk)
    return len(chunk) == length + 12 and zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
