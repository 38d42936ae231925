"""Archives as downloaded: unpacked, or refused by name before they can do harm."""

from __future__ import annotations

import gzip
import io
import json
import re
import stat
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest

from nnunet_mamba_mis.dataset_conversion import DATASETS
from nnunet_mamba_mis.dataset_conversion.convert import convert_dataset
from support.convert_trees import contents, names, write_pair

KVASIR_SEG = DATASETS["kvasir-seg"]


def zipped(folder: Path, archive: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(folder.rglob("*")):
            file.write(path, Path(prefix) / path.relative_to(folder))
        file.writestr("__MACOSX/Kvasir-SEG/images/._cju0.jpg", b"\0\5\x16\7")
    return archive


def tarred(folder: Path, archive: Path, mode: str = "w:gz") -> Path:
    with tarfile.open(archive, mode) as file:
        file.add(folder, arcname=".")
    return archive


@pytest.mark.parametrize("suffix", ["zip", "tar", "tar.gz", "tgz"])
def test_an_archive_gives_what_its_folder_gives(suffix: str, kvasir: Path, tmp_path: Path, raw: Path, run) -> None:
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


def test_a_set_may_come_in_several_archives_some_without_a_folder_inside(tmp_path: Path, raw: Path) -> None:
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
def test_a_member_that_leads_elsewhere_is_named(
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
    """Return a zip all of whose members claim to have this size."""
    for signature, offset in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        parts = data.split(signature)
        # the signature itself counts
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


def test_an_archive_that_lies_about_sizes_is_refused(kvasir: Path, tmp_path: Path, raw: Path, error_of) -> None:
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


def test_rar_is_to_be_unpacked_by_hand(tmp_path: Path, raw: Path, error_of) -> None:
    (tmp_path / "PH2Dataset.rar").write_bytes(b"Rar!\x1a\7")
    assert "PH2Dataset.rar" in error_of("ph2", "-i", tmp_path / "PH2Dataset.rar", "-d", 1)


def test_archives_in_a_folder_are_pointed_at(kvasir: Path, tmp_path: Path, raw: Path, error_of) -> None:
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


def test_no_room_for_an_archive_is_said_before_unpacking(
    kvasir: Path, tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch, error_of
) -> None:
    monkeypatch.setenv("nnUNet_raw", str(small_disk))
    archive = zipped(kvasir, tmp_path / "kvasir.zip")

    assert str(archive) in error_of("kvasir-seg", "-i", archive, "-d", 1)
    assert names(small_disk) == []
