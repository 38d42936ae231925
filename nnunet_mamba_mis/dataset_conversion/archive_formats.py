"""Read untrusted zip and tar files within limits, verifying checksums and end markers."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol, TypeVar

from nnunet_mamba_mis.utils.errors import UserError

# file name endings
READABLE = (".zip", ".tar", ".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz")
UNREADABLE = (".rar", ".7z", ".tar.zst", ".tzst", ".tar.lzma", ".tlz", ".tar.lz", ".tar.lz4", ".tar.z", ".taz")

MAX_FILES = 500_000
_BLOCK = 2**20

# bytes of all headers of a tar member: long names, extended attributes, maps of sparse files
_MAX_HEADERS = 2**20
# bytes of a zip's directory: several times what MAX_FILES entries need
_MAX_DIRECTORY = 2**27
_LONGEST_NAME = 4096
_SHOWN = 200

_COMPRESSIONS: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
}
_ZIP = (b"PK\3\4", b"PK\5\6")
_ZIP_ENTRY = b"PK\1\2"
# a zip ends with the number of its entries, the size of its directory, and a comment
_ZIP_END_MARK = b"PK\5\6"
_ZIP_END = struct.Struct("<10xHL4xH")
_LONGEST_COMMENT = 2**16 - 1
# in a large archive, this end follows a record that holds both numbers in 64 bits, and the record's locator
_ZIP64_END_MARKS = (b"PK\6\6", b"PK\6\7")
_ZIP64_END = struct.Struct("<4s28xQQ8x4s16x")

_Step = TypeVar("_Step")


@dataclass(frozen=True)
class Member:
    """A file or folder in an archive.

    Args:
        name: Its path in the archive.
        size: Number of bytes it claims to contain.
        refused: Why it must not be unpacked; "" if it may be.
        is_folder: Whether it is a folder.
        source: The archive library's own object for it.
    """

    name: str
    size: int
    refused: str
    is_folder: bool
    source: Any

    @property
    def shown(self) -> str:
        """The name as shown in messages."""
        return repr(self.name if len(self.name) <= _SHOWN else f"{self.name[:_SHOWN]}…")


class _Reader(Protocol):
    @property
    def position(self) -> int: ...

    def members(self) -> Iterator[Member]: ...

    def open(self, member: Member) -> IO[bytes]: ...


class Archive:
    """An open archive.

    Args:
        path: The archive's file.
        reader: Reader for its format.
    """

    def __init__(self, path: Path, reader: _Reader) -> None:
        self._path = path
        self._reader = reader

    @property
    def position(self) -> int:
        """Number of bytes decompressed to find the members."""
        return self._reader.position

    def members(self) -> Iterator[Member]:
        """Yield all members; if the archive is incomplete, an error is raised instead of ending early.

        Raises:
            UserError: The archive is damaged.
        """
        return _naming_archive(self._path, self._reader.members())

    def blocks(self, member: Member) -> Iterator[bytes]:
        """Yield the content of a file in blocks.

        Raises:
            UserError: The file is damaged, or its size differs from the claimed size.
        """
        return _naming_archive(self._path, self._blocks(member))

    def _blocks(self, member: Member) -> Iterator[bytes]:
        left = member.size
        with self._reader.open(member) as file:
            while block := file.read(_BLOCK):
                left -= len(block)
                if left < 0:
                    break
                yield block
        if left:
            more = "smaller" if left > 0 else "larger"
            raise UserError(f"{self._path}: its member {member.shown} is {more} than it claims; download it again")


def ending(path: Path, endings: Sequence[str]) -> str:
    """Return the one of `endings` that a file's name has, ignoring case; "" if it has none."""
    return next((end for end in endings if path.name.lower().endswith(end)), "")


def is_archive(path: Path) -> bool:
    """Return whether a file begins like a supported archive.

    Raises:
        UserError: The file cannot be read.
    """
    with _errors_name_archive(path):
        return _begins_as_archive(_start(path))


def too_large(archive: Path, size: int) -> UserError:
    """Return the error for an archive that claims to contain at least this many bytes."""
    return UserError(
        f"{archive} ({readable_size(archive.stat().st_size)}) claims to contain {readable_size(size)} or more, unlike "
        "any known dataset. If you trust it, unpack it yourself and give the folder"
    )


def readable_size(number: float) -> str:
    """Return a number of bytes with a unit."""
    for unit in ("B", "kB", "MB"):
        if abs(number) < 1000:
            return f"{number:.0f} {unit}"
        number /= 1000
    return f"{number:.1f} GB"


@contextmanager
def opened(path: Path, most: int) -> Iterator[Archive]:
    """Open a zip or tar file, compressed or not.

    Args:
        path: The file.
        most: Largest number of bytes that a tar file may contain, decompressed.

    Raises:
        UserError: The file is not an archive, or is damaged.
    """
    with ExitStack() as stack:
        with _errors_name_archive(path):
            start = _start(path)
            if not _begins_as_archive(start) or (start.startswith(_ZIP) and not zipfile.is_zipfile(path)):
                raise UserError(f"{path} is neither a folder nor a zip or tar archive, or it is truncated")
            reader: _Reader
            if start.startswith(_ZIP):
                reader = _Zip(path, stack)
            else:
                file = stack.enter_context(_decompressor(start)(path))
                reader = _Tar(_Stream(file, most, path))
        yield Archive(path, reader)


@contextmanager
def _errors_name_archive(path: Path) -> Iterator[None]:
    """Turn any exception of an archive library into a one-line error that names the archive."""
    try:
        yield
    except UserError:
        raise
    except NotImplementedError as error:
        raise UserError(f"{path} has an unsupported format ({error}). Unpack it and give the folder") from None
    # on bad data these libraries raise almost anything: struct.error, RecursionError, OSError without a number …
    except Exception as error:
        if isinstance(error, OSError) and error.errno:
            raise UserError(f"{path} cannot be read: {error.strerror}") from None
        why = " ".join(str(error).split())[:_SHOWN] or type(error).__name__
        raise UserError(f"{path} is truncated or damaged ({why}): download it again") from None


def _naming_archive(path: Path, steps: Iterator[_Step]) -> Iterator[_Step]:
    """Yield the steps of reading an archive; name the archive in errors of these steps, but not in the caller's."""
    while True:
        with _errors_name_archive(path):
            try:
                step = next(steps)
            except StopIteration:
                return
        yield step


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(tarfile.BLOCKSIZE)


def _begins_as_archive(start: bytes) -> bool:
    if start.startswith((*_ZIP, *_COMPRESSIONS)):
        return True
    try:
        tarfile.TarInfo.frombuf(start, tarfile.ENCODING, "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _decompressor(start: bytes) -> Callable[[Path], Any]:
    for magic, decompress in _COMPRESSIONS.items():
        if start.startswith(magic):
            return decompress
    return lambda path: path.open("rb")


class _Zip:
    """A zip file whose directory lists all of its entries.

    Args:
        path: The file.
        stack: Exit stack that closes the file.
    """

    position = 0

    def __init__(self, path: Path, stack: ExitStack) -> None:
        with path.open("rb") as file:
            entries, modulus = _count_entries(file)
        self._file = stack.enter_context(zipfile.ZipFile(path))
        listed = self._file.infolist()
        # a damaged length can hide entries in the comment of the previous entry
        if len(listed) % modulus != entries:
            raise zipfile.BadZipFile(f"its directory lists {len(listed)} of {entries} members")
        if listed and min(info.header_offset for info in listed) != 0:
            raise zipfile.BadZipFile("it does not begin with a member")

    def members(self) -> Iterator[Member]:
        return map(_zip_member, self._file.infolist())

    def open(self, member: Member) -> IO[bytes]:
        # the returned file verifies the checksum at the end of the member
        return self._file.open(member.source)


def _count_entries(file: IO[bytes]) -> tuple[int, int]:
    """Return the number of entries that a zip's end record claims, and the modulus of that count."""
    size = file.seek(0, os.SEEK_END)
    start = file.seek(max(0, size - _LONGEST_COMMENT - _ZIP_END.size - _ZIP64_END.size))
    tail = file.read()
    at = tail.rindex(_ZIP_END_MARK)
    entries, length, _ = _ZIP_END.unpack_from(tail, at)
    modulus = 2**16
    if at >= _ZIP64_END.size:
        record, large_entries, large_length, locator = _ZIP64_END.unpack_from(tail, at - _ZIP64_END.size)
        if (record, locator) == _ZIP64_END_MARKS:
            at -= _ZIP64_END.size
            entries, length, modulus = large_entries, large_length, 2**64
    file.seek(max(0, start + at - length))
    # limited, because zipfile creates an object for each entry
    if length > _MAX_DIRECTORY or file.read(length).count(_ZIP_ENTRY) > MAX_FILES:
        raise zipfile.BadZipFile("its directory is larger than that of any known dataset")
    return entries, modulus


def _zip_member(info: zipfile.ZipInfo) -> Member:
    mode = info.external_attr >> 16
    refused = _refusal(info.filename)
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        refused = "is a link" if stat.S_ISLNK(mode) else "is a device"
    elif info.flag_bits & 0x1:
        refused = "is encrypted"
    elif info.is_dir() and info.file_size:
        refused = "is a folder but has content"
    return Member(info.filename, info.file_size, refused, info.is_dir(), info)


class _Tar:
    """A tar file, which is complete only if nothing but zeros follows its members.

    Args:
        stream: The decompressed file.
    """

    def __init__(self, stream: _Stream) -> None:
        self._stream = stream
        # the constructor reads the first header
        with stream.within(_MAX_HEADERS):
            self._file = tarfile.TarFile(fileobj=stream)  # type: ignore[arg-type]

    @property
    def position(self) -> int:
        return self._stream.tell()

    def members(self) -> Iterator[Member]:
        end = 0
        while info := self._next():
            # without this check, a negative size would cause an endless loop
            if info.size < 0 or self._file.offset <= end:
                raise tarfile.ReadError("a header leads backwards")
            end = self._file.offset
            yield _tar_member(info)
        # tarfile also treats a damaged header as the end
        if len(self._stream.last) < tarfile.BLOCKSIZE:
            raise tarfile.ReadError(f"it ends abruptly after byte {end}")
        if self._stream.last != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"bad header at byte {end}")
        if self._stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("its end marker is missing")
        # reading to the end verifies the checksum of a compressed file
        while block := self._stream.read(_BLOCK):
            if block.count(0) != len(block):
                raise tarfile.ReadError("data follows its end marker")

    def _next(self) -> tarfile.TarInfo | None:
        with self._stream.within(_MAX_HEADERS):
            info = self._file.next()
        # these would grow with every member, and are not needed here
        self._file.members = []  # type: ignore[attr-defined]
        self._file.pax_headers = {}
        return info

    def open(self, member: Member) -> IO[bytes]:
        file = self._file.extractfile(member.source)
        assert file is not None, "links and devices were refused, and folders are not opened"
        return file


class _Stream:
    """A decompressed file that refuses to be read beyond a limit.

    Args:
        file: The file.
        most: Number of bytes that may be read.
        path: The archive's path, for messages.
    """

    def __init__(self, file: IO[bytes], most: int, path: Path) -> None:
        self._file = file
        self._most = most
        self._path = path
        self._left: int | None = None
        self.last = b""

    @contextmanager
    def within(self, number: int) -> Iterator[None]:
        """Limit the number of bytes that may be read within the `with` block."""
        self._left = number
        yield
        self._left = None

    def read(self, size: int = -1) -> bytes:
        if self._left is not None:
            self._left -= size
            if size < 0 or self._left < 0:
                raise tarfile.ReadError("the headers of a member are larger than in any known dataset")
        self.last = self._file.read(size)
        self._check(self._file.tell())
        return self.last

    def seek(self, position: int) -> int:
        self._check(position)
        return self._file.seek(position)

    def tell(self) -> int:
        return self._file.tell()

    def _check(self, position: int) -> None:
        if position > self._most:
            raise too_large(self._path, position)


def _tar_member(info: tarfile.TarInfo) -> Member:
    refused = _refusal(info.name)
    if info.issym() or info.islnk():
        refused = "is a link"
    elif not (info.isfile() or info.isdir()):
        refused = "is a device"
    return Member(info.name, info.size, refused, info.isdir(), info)


def parts_of(name: str) -> tuple[str, ...]:
    """Return the parts of a member's path."""
    return PurePosixPath(name.replace("\\", "/")).parts


def _refusal(name: str) -> str:
    if name.startswith(("/", "\\")) or name[1:2] == ":":
        return "has an absolute path"
    if ".." in parts_of(name):
        return "leads out of the archive with .."
    if len(name) > _LONGEST_NAME:
        return f"has a name of {len(name)} characters"
    return "" if "\0" not in name else "has an invalid name"
