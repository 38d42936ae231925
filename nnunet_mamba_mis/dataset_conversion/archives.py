"""Unpack downloads, refusing beforehand anything that would write elsewhere or fill the disk."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Sequence
from pathlib import Path

from nnunet_mamba_mis.dataset_conversion.archive_formats import (
    MAX_FILES,
    READABLE,
    UNREADABLE,
    Archive,
    Member,
    ending,
    is_archive,
    opened,
    parts_of,
    readable_size,
    too_large,
)
from nnunet_mamba_mis.dataset_conversion.tree import Tree
from nnunet_mamba_mis.utils.errors import UserError

_MAX_BYTES = 200 * 2**30
# largest number of unpacked bytes per packed byte. Images hardly compress, but masks do, so contents of at most
# _RATIO_COUNTS_FROM bytes may exceed this ratio. Deflate reaches at most 1032.
_MAX_RATIO = 100
_RATIO_COUNTS_FROM = 2**30
# left free for other programs
_RESERVE = 256 * 2**20

# suffixes of tables that some datasets need
_TABLES = frozenset({"", ".csv", ".tab"})


def archives_among(sources: Sequence[Path]) -> list[Path]:
    """Return the sources to unpack; the others are folders or text files.

    Raises:
        UserError: A source is neither a folder nor a readable archive.
    """
    archives = []
    for source in sources:
        if not source.exists():
            raise UserError(
                f"{source} does not exist: give the folder that the dataset was unpacked to, or its archives, with -i"
            )
        if source.is_dir():
            continue
        if not source.is_file():
            raise UserError(f"{source} is neither a folder nor an archive")
        if unreadable := ending(source, UNREADABLE):
            raise UserError(f"{source}: {unreadable} archives are not supported. Unpack it and give the folder")
        if source.suffix.lower() not in _TABLES or is_archive(source):
            archives.append(source)
    return archives


def unpack(archives: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """Unpack each archive into its own folder, named after it, and return these folders.

    All archives are checked before the first is unpacked. Archives inside an archive are unpacked too, one level deep.

    Args:
        archives: Zip or tar files, compressed or not.
        folder: Parent of the new folders; must exist.

    Raises:
        UserError: An archive is damaged, a member is a link or device or leads elsewhere, or the disk is too small.
        OSError: A file cannot be written.
    """
    limits = {archive: _Limits(archive) for archive in archives}
    total = 0
    for archive in archives:
        total += limits[archive].take(archive)
        _check_room(archive, total, folder)
    unpacked = {}
    for i, archive in enumerate(archives):
        # the number separates archives of the same name; a layout may require a folder of the archive's name
        unpacked[archive] = folder / str(i) / _folder_name(archive)
        unpacked[archive].mkdir(parents=True)
        _unpack_one(archive, unpacked[archive], limits[archive])
        try:
            _unpack_inner(unpacked[archive], limits[archive])
        except UserError as error:
            raise UserError(str(error).replace(str(unpacked[archive]), str(archive))) from None
    return unpacked


class _Limits:
    """Limits for the content of an archive, including the archives inside it.

    Args:
        archive: The archive.
    """

    def __init__(self, archive: Path) -> None:
        self.most = min(max(_RATIO_COUNTS_FROM, _MAX_RATIO * archive.stat().st_size), _MAX_BYTES)
        self._bytes = self._files = 0

    def take(self, archive: Path) -> int:
        """Return the number of bytes that an archive claims to contain, and count them against the limits.

        Raises:
            UserError: The archive is damaged, or contains too much or something that must not be unpacked.
        """
        before = self._bytes
        with opened(archive, self.most - before) as file:
            for member in file.members():
                if member.refused:
                    raise UserError(f"{archive}: its member {member.shown} {member.refused}. Nothing was converted")
                self._bytes += member.size
                self._files += 1
                if self._bytes > self.most:
                    raise too_large(archive, self._bytes)
                if self._files > MAX_FILES:
                    raise UserError(f"{archive} contains more than {MAX_FILES} files, unlike any known dataset")
            # count headers, and padding at the end, too
            self._bytes = max(self._bytes, before + file.position)
        return self._bytes - before


def _check_room(archive: Path, needed: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free - _RESERVE
    if needed > free:
        raise UserError(
            f"{archive} needs {readable_size(needed)} when unpacked, but {folder.parent} has only "
            f"{readable_size(free)} free"
        )


def _folder_name(archive: Path) -> str:
    return archive.name.split(".")[0]


def _unpack_inner(folder: Path, limits: _Limits) -> None:
    # Dataverse packs all archives of a dataset into one. An archive beside images is a foreign file, and an archive
    # beside a folder of the same name is already unpacked
    tree = Tree([folder])
    inner = [
        path
        for at, paths in tree.items()
        if not tree.images(at)
        for path in paths
        if ending(path, READABLE) and not path.with_name(_folder_name(path)).exists()
    ]
    for archive in inner:
        _check_room(archive, limits.take(archive), folder)
        target = archive.with_name(_folder_name(archive))
        target.mkdir(exist_ok=True)
        _unpack_one(archive, target, limits)
        archive.unlink()


def _unpack_one(archive: Path, folder: Path, limits: _Limits) -> None:
    with opened(archive, limits.most) as file:
        for member in file.members():
            path = folder.joinpath(*parts_of(member.name))
            try:
                _write(file, member, path)
            except (FileExistsError, NotADirectoryError):
                raise UserError(f"{archive} contains {member.shown} twice: download it again") from None
            except (OSError, UnicodeEncodeError) as error:
                if isinstance(error, OSError) and error.errno != errno.ENAMETOOLONG:
                    raise
                raise UserError(f"{archive}: the disk cannot store a file named {member.shown}") from None


def _write(archive: Archive, member: Member, path: Path) -> None:
    if member.is_folder:
        path.mkdir(parents=True, exist_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as copy:
        for block in archive.blocks(member):
            copy.write(block)
