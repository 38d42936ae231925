"""`mamba_mis predict`: files of every kind, what it leaves behind, and what goes wrong."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from nnunet_mamba_mis.cli.main import main
from nnunet_mamba_mis.prediction import Predictor
from support.full_disk import full_disk
from support.images import disc_image
from support.model_folders import UntrainedModel
from support.predictions import MODELS, S, assert_same, nnunet_predictor


def colours(seed: int = 0, size: tuple[int, int] = (40, 50)) -> np.ndarray:
    """(H, W, 3)."""
    return np.moveaxis(disc_image(seed, size, 9, (120, 60, 50), 70)[0], 0, -1)


def predict(model: Path, source: Path | list[Path], output: Path, *options: str, status: int = 0) -> None:
    sources = [str(path) for path in (source if isinstance(source, list) else [source])]
    command = ["predict", "-m", str(model), "-i", *sources, "-o", str(output), "-device", "cpu", *options]
    assert main(command) == status


def rows(output: Path) -> dict[str, dict[str, str]]:
    with (output / "summary.csv").open(newline="") as file:
        return {row["image"]: row for row in csv.DictReader(file)}


@pytest.fixture
def photos(tmp_path) -> Path:
    """Three photographs."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(3):
        Image.fromarray(colours(seed)).save(folder / f"photo {seed}.png")
    return folder


NIFTI = {
    "2D": UntrainedModel(S, channels=2, file_ending=".nii.gz", reader="SimpleITKIO",
                         configuration={"spacing": [0.7, 0.8], "use_mask_for_norm": [True, False]}),
    "volume": UntrainedModel(S, channels=1, file_ending=".nii.gz", reader="SimpleITKIO",
                             plans={"transpose_forward": [2, 0, 1], "transpose_backward": [1, 2, 0]}),
}  # fmt: skip


@pytest.mark.feature("Prediction", "NIfTI in 2D and volumes of a 2d configuration: the files of `nnUNetv2_predict`")
@pytest.mark.parametrize("kind", NIFTI)
def test_nifti_is_predicted_into_the_files_of_nnunet(kind, tmp_path):
    model = NIFTI[kind].write(tmp_path / "model")
    images, theirs, ours = (tmp_path / name for name in ("images", "theirs", "ours"))
    images.mkdir(), theirs.mkdir()
    shape = (38, 45) if kind == "2D" else (30, 41, 3)
    for case in ("a", "b"):
        for channel in range(NIFTI[kind].channels):
            values = np.random.default_rng(channel).integers(0, 500, shape).astype(np.int16)
            values[:5] = 0
            volume = sitk.GetImageFromArray(values)
            volume.SetSpacing([1.1, 0.9, 4.0][: len(shape)])
            volume.SetOrigin([5.0, -2.0, 3.0][: len(shape)])
            sitk.WriteImage(volume, images / f"{case}_{channel:04d}.nii.gz")
    nnunet_predictor(model, [0]).predict_from_files_sequential(str(images), str(theirs), save_probabilities=True)
    predict(model, images, ours, "--save-probabilities", "--overlays")
    for case in ("a", "b"):
        label_maps = [sitk.ReadImage(folder / f"{case}.nii.gz") for folder in (ours, theirs)]
        for geometry in ("GetSpacing", "GetOrigin", "GetDirection", "GetSize", "GetPixelIDTypeAsString"):
            assert len({getattr(label_map, geometry)() for label_map in label_maps}) == 1
        labels = [sitk.GetArrayFromImage(label_map).reshape(-1, *shape[-2:]) for label_map in label_maps]
        chances = [np.load(folder / f"{case}.npz")["probabilities"] for folder in (ours, theirs)]
        assert_same(labels[0], chances[0].reshape(2, *labels[0].shape), labels[1], chances[1].reshape(2, *labels[0].shape))
        pickled = [np.load(folder / f"{case}.pkl", allow_pickle=True) for folder in (ours, theirs)]
        assert pickled[0].keys() == pickled[1].keys()
        assert (ours / "overlays" / f"{case}.png").exists()


KINDS = {
    "jpg": lambda image, path: image.save(path, quality=95),
    "bmp": lambda image, path: image.save(path),
    "tif": lambda image, path: image.save(path),
    "palette.png": lambda image, path: image.quantize(64).save(path),
    "rgba.png": lambda image, path: image.convert("RGBA").save(path),
    "grey.png": lambda image, path: image.convert("L").save(path),
    "turned.jpg": lambda image, path: image.save(path, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"),
    "deep.tif": lambda image, path: imageio.imwrite(path, np.asarray(image).astype(np.uint16) * 16),
}  # fmt: skip


@pytest.mark.feature("Prediction", "pictures of any kind, as `mamba_mis convert images` reads them")
def test_pictures_are_predicted_as_convert_images_reads_them(model, tmp_path):
    photos, converted = tmp_path / "photos", tmp_path / "converted"
    photos.mkdir()
    for seed, (name, save) in enumerate(KINDS.items()):
        save(Image.fromarray(colours(seed)), photos / name)
    assert main(["convert", "images", "-i", str(photos), "-o", str(converted)]) == 0
    predict(model("classes"), photos, tmp_path / "ours", "--overlays")
    predictor = Predictor(model("classes"))
    for file in converted.glob("*_0000.png"):
        case = file.name.removesuffix("_0000.png")
        labels = imageio.imread(tmp_path / "ours" / f"{case}.png")
        np.testing.assert_array_equal(labels, predictor.predict(imageio.imread(file)))
        overlay = imageio.imread(tmp_path / "ours" / "overlays" / f"{case}.png")
        assert overlay.shape == (*labels.shape, 3) and (overlay != imageio.imread(file)).any()
    assert len(rows(tmp_path / "ours")) == len(KINDS)
