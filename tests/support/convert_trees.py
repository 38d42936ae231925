"""Write tiny datasets of real image files in the layout of public sets, and build the command that converts them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from support.images import centred_disc


def photograph(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Return an RGB image (H, W, 3) of the given height and width that differs for every seed."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 200, (8, 8, 3)).astype(np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC))
    return (smooth + random.integers(0, 50, (*size, 3))).clip(0, 255).astype(np.uint8)


def rgb(grey: np.ndarray) -> np.ndarray:
    return np.stack([grey] * 3, axis=-1)


def write(path: Path, pixels: np.ndarray, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    quality = {"quality": 95} if path.suffix.lower() in (".jpg", ".jpeg") else {}
    Image.fromarray(pixels).save(path, **quality, **options)


def write_pair(image: Path, mask: Path, seed: int, size: tuple[int, int] = (24, 32)) -> None:
    write(image, photograph(size, seed))
    write(mask, centred_disc(size))


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def only(folder: Path, pattern: str) -> Path:
    (path,) = folder.rglob(pattern)
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def report(folder: Path) -> dict:
    return json.loads((folder / "conversion_report.json").read_text())


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "nnunet_mamba_mis.cli", "convert", *map(str, arguments)]


def write_kvasir(source: Path, number: int = 6) -> Path:
    """Write a small Kvasir-SEG: pairs of RGB JPEGs of different sizes, in nested folders."""
    for i in range(number):
        size = (24 + i, 40 - i)
        write(source / "Kvasir-SEG" / "Kvasir-SEG" / "images" / f"cju{i}.jpg", photograph(size, seed=i))
        write(source / "Kvasir-SEG" / "Kvasir-SEG" / "masks" / f"cju{i}.jpg", rgb(centred_disc(size)))
    return source


def junk(folder: Path) -> None:
    """Write files that operating systems leave in downloads."""
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (folder / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    (folder / "._1.jpg").write_bytes(b"\0\5\x16\7")


def cvc_clinicdb(source: Path, suffix: str) -> None:
    for seed, frame in enumerate((1, 2, 10, 25, 26, 612)):
        write_pair(source / "Original" / f"{frame}.{suffix}", source / "Ground Truth" / f"{frame}.{suffix}", seed)
    junk(source / "Original")


def cvc_clinicdb_tif(source: Path) -> None:
    cvc_clinicdb(source / "CVC-ClinicDB", "tif")


def cvc_clinicdb_both(source: Path) -> None:
    cvc_clinicdb(source / "PNG", "png")
    cvc_clinicdb(source / "TIF", "tif")
    (source / "metadata.csv").write_text("frame_id,sequence_id\n")


def cvc_colondb(source: Path) -> None:
    for i in (1, 2, 380):
        write_pair(source / "CVC-ColonDB" / "images" / f"{i}.png", source / "CVC-ColonDB" / "masks" / f"{i}.png", i)
    # another dataset of the same bundle
    write_pair(source / "CVC-300" / "images" / "150.png", source / "CVC-300" / "masks" / "150.png", 9)


def cvc_colondb_original(source: Path) -> None:
    for i in (1, 2, 10):
        write_pair(source / "CVC-ColonDB" / f"{i}.bmp", source / "CVC-ColonDB" / f"p{i}.bmp", i)
        for other in "sc":
            write(source / "CVC-ColonDB" / f"{other}{i}.bmp", centred_disc((24, 32), 200))


def cvc_colondb_original_psc(source: Path) -> None:
    for i in (1, 2, 10):
        write_pair(source / f"p{i}.bmp", source / f"s{i}.bmp", i)
        write(source / f"c{i}.bmp", centred_disc((24, 32), 200))


def cvc_300(source: Path) -> None:
    for i in (149, 150, 151):
        write_pair(source / "CVC-300" / "images" / f"{i}.png", source / "CVC-300" / "masks" / f"{i}.png", i)


def etis(source: Path) -> None:
    folder = source / "ETIS-LaribPolypDB"
    for i in (1, 13, 2):
        write_pair(folder / "ETIS-LaribPolypDB" / f"{i}.tif", folder / "Ground Truth" / f"p{i}.tif", i)


def polypgen(source: Path) -> None:
    for centre in range(1, 7):
        folder = source / "PolypGen2021_MultiCenterData_v3" / f"data_C{centre}"
        # all centres use the same names, and one image shows no polyp
        for i in (1, 2):
            image = folder / f"images_C{centre}" / f"100H{i:04}.jpg"
            write_pair(image, folder / f"masks_C{centre}" / f"100H{i:04}_mask.jpg", 10 * centre + i)
        write(folder / f"bbox_image_C{centre}" / "100H0001_mask_bbox.jpg", photograph((24, 32)))
    write(folder / "masks_C6" / "100H0002_mask.jpg", np.zeros((24, 32), np.uint8))


def pranet(source: Path, image: str = "image", mask: str = "masks") -> None:
    train, test = source / "TrainDataset" / "TrainDataset", source / "TestDataset"
    # in the training set, numbers name frames of CVC-ClinicDB, but other sets use numbers as names too
    for i, name in enumerate(("cju0", "cju1", "1", "2", "612")):
        write_pair(train / image / f"{name}.png", train / mask / f"{name}.png", i)
    for i, name in enumerate(("Kvasir", "CVC-ClinicDB", "CVC-ColonDB", "CVC-300", "ETIS-LaribPolypDB")):
        write_pair(test / name / "images" / "1.png", test / name / "masks" / "1.png", 100 + i)


def pranet_images(source: Path) -> None:
    pranet(source, "images", "masks")


def pranet_mask(source: Path) -> None:
    pranet(source, "image", "mask")


def isic2016(source: Path) -> None:
    for part, numbers in (("Training", (0, 1, 2)), ("Test", (3,))):
        for i in numbers:
            write_pair(
                source / f"ISBI2016_ISIC_Part1_{part}_Data" / f"ISIC_000000{i}.jpg",
                source / f"ISBI2016_ISIC_Part1_{part}_GroundTruth" / f"ISIC_000000{i}_Segmentation.png",
                i,
            )


def isic2017(source: Path) -> None:
    for part, numbers in (("Training", (10, 11, 12)), ("Validation", (13, 14)), ("Test_v2", (15, 16072))):
        for i in numbers:
            data = source / f"ISIC-2017_{part}_Data" / f"ISIC_{i:07}.jpg"
            truth = source / f"ISIC-2017_{part}_Part1_GroundTruth"
            write_pair(data, truth / f"ISIC_{i:07}_segmentation.png", i)
            write(data.with_name(f"ISIC_{i:07}_superpixels.png"), photograph((24, 32)))
        (data.parent / f"ISIC-2017_{part}_Data_metadata.csv").write_text("image_id,age_approximate,sex\n")


def isic2018(source: Path) -> None:
    for part, numbers in (("Training", (20, 16072, 22)), ("Validation", (23, 24)), ("Test", (25,))):
        data = source / f"ISIC2018_Task1-2_{part}_Input"
        truth = source / f"ISIC2018_Task1_{part}_GroundTruth"
        for i in numbers:
            write_pair(data / f"ISIC_{i:07}.jpg", truth / f"ISIC_{i:07}_segmentation.png", i)
        for folder in (data, truth):
            for name in ("LICENSE.txt", "ATTRIBUTION.txt"):
                (folder / name).write_text("CC-0\n")


def ph2(source: Path) -> None:
    for i in (2, 3, 4):
        folder = source / "PH2Dataset" / "PH2 Dataset images" / f"IMD00{i}"
        size = (24, 30 + i)
        mask = folder / f"IMD00{i}_lesion" / f"IMD00{i}_lesion.bmp"
        write(folder / f"IMD00{i}_Dermoscopic_Image" / f"IMD00{i}.bmp", photograph(size, i))
        # of the 200 masks, one is RGB and the others have one bit per pixel
        write(mask, rgb(centred_disc(size)) if i == 4 else centred_disc(size) > 0)
        for roi in (1, 2):
            write(folder / f"IMD00{i}_roi" / f"IMD00{i}_R{roi}_Label{roi}.bmp", centred_disc(size) > 0)
    (source / "PH2Dataset" / "PH2_dataset.xlsx").write_bytes(b"PK\3\4")


def ham10000(source: Path) -> None:
    lines = ["lesion_id,image_id,dx,dx_type,age,sex,localization,dataset"]
    for i in range(8):
        # two images for each of four lesions
        lines.append(f"HAM_{i // 2:07},ISIC_{i:07},bkl,histo,80.0,male,scalp,vidir_modern")
        write_pair(
            source / f"HAM10000_images_part_{i % 2 + 1}" / f"ISIC_{i:07}.jpg",
            source / "HAM10000_segmentations_lesion_tschandl" / f"ISIC_{i:07}_segmentation.png",
            i,
        )
    (source / "HAM10000_metadata").write_text("\n".join(lines) + "\n")


def kvasir_seg(source: Path) -> None:
    for i in range(3):
        write_pair(source / "Kvasir-SEG" / "images" / f"cju{i}.jpg", source / "Kvasir-SEG" / "masks" / f"cju{i}.jpg", i)
    (source / "Kvasir-SEG" / "kavsir_bboxes.json").write_text("{}")
    (source / "__MACOSX" / "Kvasir-SEG" / "images").mkdir(parents=True)
    (source / "__MACOSX" / "Kvasir-SEG" / "images" / "._cju0.jpg").write_bytes(b"\0\5\x16\7")


def bkai_igh(source: Path) -> None:
    for i in range(3):
        write(source / "train" / "train" / f"img{i}.jpeg", photograph((64, 64), i))
        mask = rgb(np.zeros((64, 64), np.uint8))
        mask[8:24, 8:24] = (255, 0, 0)
        mask[40:56, 30:50] = (0, 255, 0)
        write(source / "train_gt" / "train_gt" / f"img{i}.jpeg", mask)
    write(source / "test" / "test" / "img9.jpeg", photograph((64, 64), 9))
    (source / "sample_submission.csv").write_text("Id,Expected\n")
