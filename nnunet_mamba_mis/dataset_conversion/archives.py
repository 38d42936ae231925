"""Unpack downloads: what could write elsewhere or fill the disk is refused before anything is unpacked."""

from __future__ import annotations

import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

from nnunet_mamba_mis.utils.errors import UserError

_MAX_FILES = 500_000
_MAX_BYTES = 200 * 2**30
# Images hardly compress further, masks do, so small archives may; deflate reaches 1032 at most.
_MAX_RATIO = 100
_RATIO_COUNTS_FROM = 2**30
# left free for all else that writes to the disk
_RESERVE = 256 * 2**20

_BLOCK = 2**20

# files that some sets are to be downloaded with
_TABLES = frozenset({"", ".csv", ".tab"})

# what zipfile and tarfile raise on damaged archives
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError, ValueError)


@dataclass(frozen=True)
class _Member:
    """A file in an archive.

    Args:
        name: Its path there.
        size: How many bytes it claims to hold.
        refused: Why it must not be unpacked, if it must not.
        is_folder: It is a folder.
        source: What the archive's library knows it as.
    """

    name: str
    size: int
    refused: str
    is_folder: bool
    source: Any


_OpenMember = Callable[[_Member], IO[bytes]]


def archives_among(sources: Sequence[Path]) -> list[Path]:
    """Return the sources that are to be unpacked; the others are folders, or files of text.

    Raises:
        UserError: A source is neither a folder nor an archive that can be read.
    """
    archives = []
    for source in sources:
        if not source.exists():
            raise UserError(
                f"{source} does not exist: -i takes the folder the dataset was unpacked to, or its archives"
            )
        if source.is_dir():
            continue
        if not source.is_file():
            raise UserError(f"{source} is neither a folder nor an archive")
        if source.suffix.lower() in (".rar", ".7z"):
            raise UserError(f"{source}: {source.suffix} archives cannot be read here. Unpack it and give the folder")
        if source.suffix.lower() not in _TABLES or zipfile.is_zipfile(source) or tarfile.is_tarfile(source):
            archives.append(source)
    return archives


def unpack(archives: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """Unpack archives, each into a folder of its own named like it, and return these folders.

    All are checked before the first is unpacked.

    Args:
        archives: Zip or tar files, compressed or not.
        folder: Where to make the folders; it must exist.

    Raises:
        UserError: An archive is damaged, a member is a link, a device or leads elsewhere, or there is no room.
        OSError: A file cannot be written.
    """
    total = 0
    for archive in archives:
        total += _checked_size(archive)
        free = shutil.disk_usage(folder).free - _RESERVE
        if total > free:
            raise UserError(
                f"{archive} needs {_readable(total)} unpacked, but {folder.parent} has {_readable(free)} free"
            )
    unpacked = {}
    for i, archive in enumerate(archives):
        # the number keeps apart two archives of one name; the name may be that of a dataset's folder
        unpacked[archive] = folder / str(i) / archive.name.split(".")[0]
        unpacked[archive].mkdir(parents=True)
        _unpack_one(archive, unpacked[archive])
    return unpacked


def _checked_size(archive: Path) -> int:
    """Return how many bytes an archive claims to hold, if it may be unpacked."""
    total = 0
    with _opened(archive) as (members, _):
        for number, member in enumerate(members, start=1):
            if member.refused:
                raise UserError(f"{archive}: its member {member.name!r} {member.refused}. Nothing was unpacked")
            total += member.size
            limit = max(_RATIO_COUNTS_FROM, _MAX_RATIO * archive.stat().st_size)
            if total > min(limit, _MAX_BYTES):
                raise UserError(
                    f"{archive} ({_readable(archive.stat().st_size)}) claims to hold {_readable(total)} or more, which "
                    "no dataset does. If you trust it, unpack it yourself and give the folder"
                )
            if number > _MAX_FILES:
                raise UserError(f"{archive} holds more than {_MAX_FILES} files, which no dataset does")
    return total


def _unpack_one(archive: Path, folder: Path) -> None:
    with _opened(archive) as (members, open_member):
        for member in members:
            path = folder.joinpath(*_parts(member.name))
            try:
                if member.is_folder:
                    path.mkdir(parents=True, exist_ok=True)
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                with open_member(member) as file, path.open("xb") as copy:
                    _copy(file, copy, member, archive)
            except FileExistsError:
                raise UserError(f"{archive} holds {member.name!r} twice: download it again") from None


def _copy(file: IO[bytes], copy: IO[bytes], member: _Member, archive: Path) -> None:
    left = member.size
    while block := file.read(_BLOCK):
        left -= len(block)
        # the archive may lie about sizes
        if left < 0:
            raise UserError(
                f"{archive}: its member {member.name!r} is larger than it claims. Do not trust this archive"
            )
        copy.write(block)


@contextmanager
def _opened(archive: Path) -> Iterator[tuple[Iterator[_Member], _OpenMember]]:
    """Give the members of an archive and what opens one."""
    with ExitStack() as stack:
        try:
            if zipfile.is_zipfile(archive):
                zip_file = stack.enter_context(zipfile.ZipFile(archive))
                yield map(_zip_member, zip_file.infolist()), lambda member: zip_file.open(member.source)
            else:
                tar_file = stack.enter_context(tarfile.open(archive))
                yield map(_tar_member, tar_file), partial(_tar_open, tar_file)
        except _DAMAGED as error:
            if isinstance(error, tarfile.ReadError) and "could not be opened" in str(error):
                raise UserError(f"{archive} is neither a folder nor a zip or tar archive, or it is truncated") from None
            raise UserError(f"{archive} is truncated or damaged ({error}): download it again") from None


def _zip_member(info: zipfile.ZipInfo) -> _Member:
    mode = info.external_attr >> 16
    refused = _refusal(info.filename)
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        refused = "is a link" if stat.S_ISLNK(mode) else "is a device"
    elif info.flag_bits & 0x1:
        refused = "is encrypted"
    return _Member(info.filename, info.file_size, refused, info.is_dir(), info)


def _tar_member(info: tarfile.TarInfo) -> _Member:
    refused = _refusal(info.name)
    if info.issym() or info.islnk():
        refused = "is a link"
    elif not (info.isfile() or info.isdir()):
        refused = "is a device"
    return _Member(info.name, info.size, refused, info.isdir(), info)


def _tar_open(tar_file: tarfile.TarFile, member: _Member) -> IO[bytes]:
    file = tar_file.extractfile(member.source)
    assert file is not None, "members that are no files are refused before"
    return file


def _refusal(name: str) -> str:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if name.startswith(("/", "\\")) or name[1:2] == ":":
        return "has an absolute path"
    if ".." in parts:
        return "leads out of the archive with .."
    return "" if "\0" not in name else "has no valid name"


def _parts(name: str) -> tuple[str, ...]:
    return PurePosixPath(name.replace("\\", "/")).parts


def _readable(number: float) -> str:
    for unit in ("B", "KB", "MB"):
        if abs(number) < 1024:
            return f"{number:.0f} {unit}"
        number /= 1024
    return f"{number:.1f} GB"
