"""Downloaded archives are unpacked, or refused before they can do harm, with a message that names them."""

from __future__ import annotations

import gzip
import io
import json
import random
import re
import shutil
import stat
import struct
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from nnunet_mamba_mis.dataset_conversion import DATASETS
from nnunet_mamba_mis.dataset_conversion.archives import unpack
from nnunet_mamba_mis.dataset_conversion.convert import convert_dataset
from nnunet_mamba_mis.utils.errors import UserError
from support.convert_trees import contents, ham10000, names, write_pair

KVASIR_SEG = DATASETS["kvasir-seg"]


def zipped(folder: Path, archive: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(folder.rglob("*")):
            file.write(path, Path(prefix) / path.relative_to(folder))
        file.writestr("__MACOSX/Kvasir-SEG/images/._cju0.jpg", b"\0\5\x16\7")
    return archive


def tarred(folder: Path, archive: Path, mode: str = "w:gz") -> Path:
    # in the format of GNU tar, which has no extended headers
    with tarfile.open(archive, mode, format=tarfile.GNU_FORMAT) as file:
        file.add(folder, arcname=".")
    return archive


@pytest.mark.parametrize("suffix", ["zip", "tar", "tar.gz", "tgz"])
def test_an_archive_and_its_folder_give_the_same_dataset(
    suffix: str, kvasir: Path, tmp_path: Path, raw: Path, run
) -> None:
    archive = tmp_path / f"source.{suffix}"
    if suffix == "zip":
        zipped(kvasir, archive)
    else:
        tarred(kvasir, archive, "w" if suffix == "tar" else "w:gz")

    unpacked = convert_dataset(KVASIR_SEG, [kvasir], 1, name="A", processes=1).folder
    result = run("kvasir-seg", "-i", archive, "-d", 2, "--name", "A", "-np", 1)

    assert result.status == 0, result.stderr
    assert names(raw) == ["Dataset001_A", "Dataset002_A"]
    expected, got = contents(unpacked), contents(raw / "Dataset002_A")
    report = json.loads(got.pop("conversion_report.json"))
    del expected["conversion_report.json"]
    assert got == expected
    assert report["cases"][0]["image"]["file"] == f"source.{suffix}/Kvasir-SEG/Kvasir-SEG/images/cju0.jpg"


def test_a_dataset_may_come_in_archives_with_and_without_a_top_folder(tmp_path: Path, raw: Path) -> None:
    archives = []
    for kind, folder in (
        ("Input", "ISIC2018_Task1-2_Training_Input"),
        ("Truth", "ISIC2018_Task1_Training_GroundTruth"),
    ):
        for i in range(3):
            image, mask = (
                tmp_path / "Input" / f"ISIC_000000{i}.jpg",
                tmp_path / "Truth" / f"ISIC_000000{i}_segmentation.png",
            )
            write_pair(image, mask, i)
        archives.append(zipped(tmp_path / kind, tmp_path / f"{folder}.zip", folder if kind == "Truth" else ""))

    folder = convert_dataset(DATASETS["isic2018"], archives, 1, processes=1).folder

    assert len(names(folder / "imagesTr")) == 3
    assert names(raw) == ["Dataset001_ISIC2018"]


def _zip_with(archive: Path, member: str, mode: int = stat.S_IFREG) -> None:
    with zipfile.ZipFile(archive, "a") as file:
        info = zipfile.ZipInfo(member)
        info.external_attr = (mode | 0o644) << 16
        file.writestr(info, "/etc/passwd")


def _tar_with(archive: Path, member: str, kind: bytes) -> None:
    with tarfile.open(archive, "a") as file:
        info = tarfile.TarInfo(member)
        info.type = kind
        if kind == tarfile.REGTYPE:
            info.size = 3
        else:
            info.linkname = "/etc/passwd"
        file.addfile(info, io.BytesIO(b"abc"))


@pytest.mark.parametrize(
    ("suffix", "member", "kind", "reason"),
    [
        ("zip", "../../evil.jpg", stat.S_IFREG, "leads out of the archive with .."),
        ("zip", "images/../../evil.jpg", stat.S_IFREG, "leads out of the archive with .."),
        ("zip", "..\\evil.jpg", stat.S_IFREG, "leads out of the archive with .."),
        ("zip", "/tmp/evil.jpg", stat.S_IFREG, "has an absolute path"),
        ("zip", "C:\\evil.jpg", stat.S_IFREG, "has an absolute path"),
        ("zip", "images/evil.jpg", stat.S_IFLNK, "is a link"),
        ("zip", "images/evil.jpg", stat.S_IFCHR, "is a device"),
        ("tar", "../evil.jpg", tarfile.REGTYPE, "leads out of the archive with .."),
        ("tar", "/tmp/evil.jpg", tarfile.REGTYPE, "has an absolute path"),
        ("tar", "images/evil.jpg", tarfile.SYMTYPE, "is a link"),
        ("tar", "images/evil.jpg", tarfile.LNKTYPE, "is a link"),
        ("tar", "images/evil.jpg", tarfile.CHRTYPE, "is a device"),
        ("tar", "images/evil.jpg", tarfile.FIFOTYPE, "is a device"),
    ],
)
def test_an_unsafe_member_is_named(
    suffix: str, member: str, kind, reason: str, kvasir: Path, tmp_path: Path, raw: Path, error_of
) -> None:
    archive = tmp_path / "in" / f"kvasir.{suffix}"
    archive.parent.mkdir()
    if suffix == "zip":
        _zip_with(zipped(kvasir, archive), member, kind)
    else:
        _tar_with(tarred(kvasir, archive, "w"), member, kind)
    before = names(tmp_path)

    message = error_of("kvasir-seg", "-i", archive, "-d", 1, "--skip-bad")

    assert f"{archive}: its member {member!r} {reason}" in message
    assert names(raw) == [] and names(tmp_path) == before and not Path("/tmp/evil.jpg").exists()


def with_sizes(data: bytes, size: int) -> bytes:
    """Return a zip in which every member claims to have this size."""
    for signature, offset in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        parts = data.split(signature)
        # the offset includes the signature
        at = offset - len(signature)
        parts[1:] = [part[:at] + struct.pack("<I", size) + part[at + 4 :] for part in parts[1:]]
        data = signature.join(parts)
    return data


def test_a_small_archive_that_claims_10_gb_is_refused(tmp_path: Path, raw: Path, error_of) -> None:
    archive = tmp_path / "bomb.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for i in range(3):
            file.writestr(f"images/{i}.jpg", bytes(10**6))
    archive.write_bytes(with_sizes(archive.read_bytes(), 4 * 10**9))
    assert archive.stat().st_size < 5000
    tar = tmp_path / "bomb.tar.gz"
    info = tarfile.TarInfo("images/a.jpg")
    info.size = 10 * 2**30
    tar.write_bytes(gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)))

    for bomb in (archive, tar):
        message = error_of("kvasir-seg", "-i", bomb, "-d", 1)
        assert str(bomb) in message and re.search(r"\d+\.\d GB", message)
    assert names(raw) == []


def test_an_archive_with_wrong_sizes_is_refused(kvasir: Path, tmp_path: Path, raw: Path, error_of) -> None:
    archive = tmp_path / "liar.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("images/a.jpg", bytes(10**7))
    archive.write_bytes(with_sizes(archive.read_bytes(), 10))

    message = error_of("kvasir-seg", "-i", archive, "-d", 1)

    assert str(archive) in message
    assert names(raw) == []


@pytest.mark.parametrize("suffix", ["zip", "tar.gz"])
def test_a_truncated_archive_is_named(suffix: str, kvasir: Path, tmp_path: Path, raw: Path, error_of) -> None:
    archive = tmp_path / f"kvasir.{suffix}"
    zipped(kvasir, archive) if suffix == "zip" else tarred(kvasir, archive)
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])

    message = error_of("kvasir-seg", "-i", archive, "-d", 1)

    assert str(archive) in message
    assert names(raw) == []


UNREADABLE = ["rar", "7z", "7Z", "tar.zst", "tar.lzma", "tar.Z"]


@pytest.mark.parametrize("suffix", UNREADABLE)
def test_unsupported_archives_must_be_unpacked_by_hand(suffix: str, tmp_path: Path, raw: Path, error_of) -> None:
    archive = tmp_path / f"PH2Dataset.{suffix}"
    archive.write_bytes(b"whatever")
    message = error_of("ph2", "-i", archive, "-d", 1)
    assert str(archive) in message and "Unpack it" in message and f" .{suffix.lower()} " in message


@pytest.mark.parametrize("dataset", ["kvasir-seg", "folder"])
@pytest.mark.parametrize("suffix", UNREADABLE)
def test_unsupported_archives_in_an_archive_are_named(
    suffix: str, dataset: str, tmp_path: Path, raw: Path, error_of
) -> None:
    archive = tmp_path / "all.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(f"data/k.{suffix}", b"whatever")
    message = error_of(dataset, "-i", archive, "-d", 1, *(["--stems", "{}:{}_mask"] if dataset == "folder" else []))
    assert f"{archive}/data/k.{suffix}" in message and "Unpack" in message


def test_a_tar_that_ends_abruptly_is_not_reported_as_a_bad_header(
    kvasir: Path, tmp_path: Path, raw: Path, error_of
) -> None:
    archive = tarred(kvasir, tmp_path / "kvasir.tar", "w")
    data = archive.read_bytes().rstrip(b"\0")
    end = len(data) + -len(data) % 512
    for rest in (0, 100):
        archive.write_bytes(data.ljust(end + rest, b"\0"))
        message = error_of("kvasir-seg", "-i", archive, "-d", 1)
        assert "ends abruptly" in message and "header" not in message


def test_archives_in_the_source_folder_are_pointed_out(kvasir: Path, tmp_path: Path, raw: Path, error_of) -> None:
    (tmp_path / "downloads").mkdir()
    archive = zipped(kvasir, tmp_path / "downloads" / "kvasir-seg.zip")

    message = error_of("kvasir-seg", "-i", tmp_path / "downloads", "-d", 1)

    assert "-i" in message and str(archive) in message


def test_messages_name_the_archive_not_where_it_was_unpacked(kvasir: Path, tmp_path: Path, raw: Path, error_of) -> None:
    (kvasir / "Kvasir-SEG" / "Kvasir-SEG" / "images" / "cju1.jpg").write_bytes(b"")
    archive = zipped(kvasir, tmp_path / "kvasir.zip")

    message = error_of("kvasir-seg", "-i", archive, "-d", 1)

    assert f"{archive}/Kvasir-SEG/Kvasir-SEG/images/cju1.jpg" in message
    assert names(raw) == []


def test_lack_of_disk_space_is_reported_before_unpacking(
    kvasir: Path, tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch, error_of
) -> None:
    monkeypatch.setenv("nnUNet_raw", str(small_disk))
    archive = zipped(kvasir, tmp_path / "kvasir.zip")

    assert str(archive) in error_of("kvasir-seg", "-i", archive, "-d", 1)
    assert names(small_disk) == []


FORMATS = ["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"]


def archived(folder: Path, archive: Path) -> Path:
    """Write an archive of the format that its suffix names."""
    if archive.suffix == ".zip":
        return zipped(folder, archive)
    return tarred(folder, archive, f"w:{archive.suffix[1:]}" if archive.suffix != ".tar" else "w")


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_changed_byte_and_truncation_is_detected(suffix: str, tmp_path: Path) -> None:
    for i in range(3):
        write_pair(tmp_path / "source" / "images" / f"c{i}.png", tmp_path / "source" / "masks" / f"c{i}.png", i, (4, 4))
    archive = archived(tmp_path / "source", tmp_path / f"a.{suffix}")
    data = archive.read_bytes()
    places = range(len(data))
    if suffix == "tar":
        # tar has checksums only for headers
        with tarfile.open(archive) as file:
            places = [place for member in file for place in range(member.offset, member.offset + 512)]
    change = random.Random(0)
    damaged = [data[: change.randrange(len(data))] for _ in range(30)]
    for place in change.choices(places, k=80):
        value = data[place] ^ change.choice([1, 0x80, data[place], change.randrange(1, 256)])
        damaged.append(data[:place] + bytes([value]) + data[place + 1 :])

    def unpacked(content: bytes) -> dict[str, bytes] | None:
        archive.write_bytes(content)
        shutil.rmtree(tmp_path / "to", ignore_errors=True)
        (tmp_path / "to").mkdir()
        try:
            return contents(unpack([archive], tmp_path / "to")[archive])
        except UserError as error:
            assert str(archive) in str(error) and "\n" not in str(error)
            return None

    whole = unpacked(data)
    outcomes = list(map(unpacked, damaged))
    assert whole and all(outcome in (None, whole) for outcome in outcomes)
    assert outcomes.count(None) > len(outcomes) / 3


def _header_changed(data: bytes) -> bytes:
    at = data.index(b"masks/cju3.jpg")
    return data[:at] + b"d" + data[at + 1 :]


def _cut_at_header(data: bytes) -> bytes:
    return data[: data.index(b"./Kvasir-SEG/Kvasir-SEG/masks/cju3.jpg") // 512 * 512]


def _hidden_entry(data: bytes) -> bytes:
    """Extend an entry's comment in a zip's central directory so that it hides the next entry."""
    first, second, third = (at.start() for at in list(re.finditer(b"PK\1\2", data))[3:6])
    return data[: first + 32] + struct.pack("<H", third - second) + data[first + 34 :]


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [
        ("tar", _header_changed),
        ("tar", _cut_at_header),
        ("tar", lambda data: data.rstrip(b"\0") + bytes(-len(data.rstrip(b"\0")) % 512)),
        ("tar", lambda data: data + data),
        ("tar.gz", lambda data: data[:-8] + bytes([data[-8] ^ 1]) + data[-7:]),
        ("tar.gz", lambda data: data[:-4] + bytes([data[-4] ^ 1]) + data[-3:]),
        ("tar.gz", lambda data: data[:-8]),
        ("tar.gz", lambda data: data + b"garbage"),
        ("tar.gz", lambda data: gzip.compress(_header_changed(gzip.decompress(data)))),
        ("tar.bz2", lambda data: data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]),
        ("tar.xz", lambda data: data[:-1]),
        ("zip", _hidden_entry),
        ("zip", lambda data: data + data),
        ("zip", lambda data: with_sizes(data, 10**6)),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_damaged_archive_is_refused(
    suffix: str, damage: Callable[[bytes], bytes], kvasir: Path, tmp_path: Path, raw: Path, error_of
) -> None:
    archive = archived(kvasir, tmp_path / f"kvasir.{suffix}")
    archive.write_bytes(damage(archive.read_bytes()))

    message = error_of("kvasir-seg", "-i", archive, "-d", 1, "--skip-bad")

    assert str(archive) in message and message.count("\n") == 1
    assert names(raw) == []


def _in_two_streams(archive: Path) -> None:
    data = gzip.decompress(archive.read_bytes())
    archive.write_bytes(gzip.compress(data[:1000]) + gzip.compress(data[1000:]))


def _with_zip_at_end(archive: Path) -> None:
    with tarfile.open(archive, "a") as file:
        file.add(zipped(archive.parent / "source" / "Kvasir-SEG" / "Kvasir-SEG" / "images", archive.parent / "x.zip"),
                 "x.ZIP.bak")  # fmt: skip


def _with_large_entries(archive: Path) -> None:
    with zipfile.ZipFile(archive, "a") as file, file.open("notes.txt", "w", force_zip64=True) as notes:
        notes.write(b"abc")
    with archive.open("r+b") as file:
        # write the end records that a zip with more than 65,535 files has
        data = file.read()
        at = data.rindex(b"PK\5\6")
        _, entries, size, offset, _ = struct.unpack("<8sHLLH", data[at : at + 4] + data[at + 6 : at + 22])
        record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, entries, entries, size, offset)
        locator = struct.pack("<4sLQL", b"PK\6\7", 0, at, 1)
        end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
        file.seek(at)
        file.write(record + locator + end)


def _with_a_sparse_file(archive: Path) -> None:
    with tarfile.open(archive, "a", format=tarfile.PAX_FORMAT) as file:
        info = tarfile.TarInfo("notes.txt")
        info.pax_headers = {"GNU.sparse.map": "0,2,1000,1", "GNU.sparse.size": "1001"}
        info.size = 3
        file.addfile(info, io.BytesIO(b"abc"))


@pytest.mark.parametrize(
    ("suffix", "unusual"),
    [
        ("tar.gz", _in_two_streams),
        ("tar", lambda archive: archive.write_bytes(archive.read_bytes() + bytes(10**7))),
        ("tar", _with_zip_at_end),
        ("tar", _with_a_sparse_file),
        ("zip", _with_large_entries),
        ("zip", lambda archive: archive.write_bytes(archive.read_bytes()[:-2] + b"\2\0OK")),
    ],
)
def test_an_unusual_archive_is_read(suffix: str, unusual, kvasir: Path, tmp_path: Path, raw: Path) -> None:
    archive = archived(kvasir, tmp_path / f"kvasir.{suffix}")
    unusual(archive)
    assert len(names(convert_dataset(KVASIR_SEG, [archive], 1, processes=1).folder / "imagesTr")) == 6


def _header(kind: bytes, size: int, **pax: str) -> bytes:
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


MEGABYTES = 64 * 2**20


@pytest.mark.parametrize(
    "members",
    [
        _header(tarfile.GNUTYPE_LONGNAME, MEGABYTES) + b"a" * MEGABYTES,
        _header(tarfile.XHDTYPE, MEGABYTES) + b"%d path=" % MEGABYTES + b"a" * (MEGABYTES - 14) + b"\n",
        (_header(tarfile.XGLTYPE, 2**19) + b"%d a=" % 2**19 + b"a" * (2**19 - 10) + b"\n") * 100,
        (_header(tarfile.GNUTYPE_LONGNAME, 1) + b"a" + bytes(511)) * 5000,
        _header(tarfile.REGTYPE, -512),
    ],
    ids=["long name", "extended header", "global headers", "chain of headers", "negative size"],
)
def test_huge_tar_headers_are_refused_in_little_memory(members: bytes, tmp_path: Path, raw: Path, error_of) -> None:
    archive = tmp_path / "bomb.tar.gz"
    archive.write_bytes(gzip.compress(members + _header(tarfile.REGTYPE, 0) + bytes(10240), compresslevel=1))
    del members

    tracemalloc.start()
    message = error_of("kvasir-seg", "-i", archive, "-d", 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert str(archive) in message and message.count("\n") == 1
    assert peak < 16 * 2**20


def test_zeros_after_the_end_count_against_the_limit(
    kvasir: Path, tmp_path: Path, raw: Path, monkeypatch, error_of
) -> None:
    monkeypatch.setattr("nnunet_mamba_mis.dataset_conversion.archives._RATIO_COUNTS_FROM", 2**20)
    archive = tarred(kvasir, tmp_path / "bomb.tar.gz")
    archive.write_bytes(gzip.compress(gzip.decompress(archive.read_bytes()) + bytes(2**25)))
    assert str(archive) in error_of("kvasir-seg", "-i", archive, "-d", 1)


def test_unsupported_compression_must_be_unpacked_by_hand(kvasir: Path, tmp_path: Path, raw: Path, error_of) -> None:
    archive = zipped(kvasir, tmp_path / "kvasir.zip")
    data = archive.read_bytes()
    for signature, at in ((b"PK\3\4", 8), (b"PK\1\2", 10)):
        for match in re.finditer(signature, data):
            # deflate64, which Windows uses for large files
            data = data[: match.start() + at] + b"\x09\0" + data[match.start() + at + 2 :]
    archive.write_bytes(data)

    message = error_of("kvasir-seg", "-i", archive, "-d", 1)

    assert str(archive) in message and "Unpack it" in message


@pytest.fixture
def dataverse(tmp_path: Path) -> Path:
    """The content of Dataverse's archive of HAM10000: three zips, two of them without a top folder, and two files."""
    ham10000(tmp_path / "ham")
    files = tmp_path / "files"
    files.mkdir()
    for folder in sorted(tmp_path.glob("ham/HAM10000_*_*_*")):
        zipped(folder, files / f"{folder.name}.zip", folder.name if "segmentations" in folder.name else "")
    shutil.copy(tmp_path / "ham" / "HAM10000_metadata", files / "HAM10000_metadata.tab")
    (files / "MANIFEST.TXT").write_text("...")
    return files


@pytest.mark.parametrize("suffix", ["zip", "tar.gz"])
def test_archives_in_an_archive_are_unpacked(suffix: str, dataverse: Path, tmp_path: Path, raw: Path) -> None:
    archive = archived(dataverse, tmp_path / f"dataverse_files.{suffix}")
    folder = convert_dataset(DATASETS["ham10000"], [archive], 1, processes=1).folder
    assert len(names(folder / "imagesTr")) == 8
    (file,) = {case["image"]["file"] for case in json.loads((folder / "conversion_report.json").read_text())["cases"]
               if case["identifier"] == "ISIC_0000001"}  # fmt: skip
    assert file == f"dataverse_files.{suffix}/HAM10000_images_part_2/ISIC_0000001.jpg"
    assert names(raw) == ["Dataset001_HAM10000"]


def test_a_damaged_archive_in_an_archive_is_named(dataverse: Path, tmp_path: Path, raw: Path, error_of) -> None:
    inner = dataverse / "HAM10000_images_part_2.zip"
    inner.write_bytes(inner.read_bytes()[:-30])
    archive = zipped(dataverse, tmp_path / "dataverse_files.zip")
    assert f"{archive}/{inner.name}" in error_of("ham10000", "-i", archive, "-d", 1)
    assert names(raw) == []


def test_nested_archives_share_the_limits(tmp_path: Path, raw: Path, monkeypatch, error_of) -> None:
    monkeypatch.setattr("nnunet_mamba_mis.dataset_conversion.archives._RATIO_COUNTS_FROM", 2**20)
    (tmp_path / "in").mkdir()
    for i in range(3):
        with zipfile.ZipFile(tmp_path / "in" / f"{i}.zip", "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("a.txt", bytes(2**19))
    archive = zipped(tmp_path / "in", tmp_path / "bomb.zip")
    assert f"{archive}/1.zip" in error_of("kvasir-seg", "-i", archive, "-d", 1)


def test_an_archive_beside_its_unpacked_folder_is_ignored(kvasir: Path, tmp_path: Path, raw: Path) -> None:
    zipped(kvasir / "Kvasir-SEG", kvasir / "Kvasir-SEG.zip")
    archive = zipped(kvasir, tmp_path / "all.zip")
    assert convert_dataset(KVASIR_SEG, [archive], 1, processes=1).number_of_cases == {"imagesTr": 6}
