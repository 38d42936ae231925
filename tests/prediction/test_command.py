"""`mamba_mis predict`: inputs of every kind, the files that it writes, and errors."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import ExifTags, Image

from nnunet_mamba_mis.cli.main import main
from nnunet_mamba_mis.prediction import Predictor
from support.full_disk import full_disk
from support.images import disc_image
from support.model_folders import UntrainedModel
from support.predictions import MODELS, STOCK, S, assert_same, nnunet_predictor

pytestmark = pytest.mark.usefixtures("listed_in_one_process")


def colours(seed: int = 0, size: tuple[int, int] = (40, 50)) -> np.ndarray:
    """Return an RGB image (H, W, 3)."""
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
    """A folder of three photographs."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(3):
        Image.fromarray(colours(seed)).save(folder / f"photo {seed}.png")
    return folder


NIFTI = {
    "2D": UntrainedModel(STOCK, channels=2, file_ending=".nii.gz", reader="SimpleITKIO",
                         configuration={"spacing": [0.7, 0.8], "use_mask_for_norm": [True, False]}),
    "volume": UntrainedModel(STOCK, channels=1, file_ending=".nii.gz", reader="SimpleITKIO",
                             plans={"transpose_forward": [2, 0, 1], "transpose_backward": [1, 2, 0]}),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.feature("Prediction", "NIfTI in 2D and volumes of a 2d configuration: the files of `nnUNetv2_predict`")
@pytest.mark.parametrize("kind", NIFTI)
def test_nifti_predictions_match_files_of_nnunet(kind, tmp_path):
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
        assert_same(
            labels[0], chances[0].reshape(2, *labels[0].shape), labels[1], chances[1].reshape(2, *labels[0].shape)
        )
        pickled = [np.load(folder / f"{case}.pkl", allow_pickle=True) for folder in (ours, theirs)]
        assert pickled[0].keys() == pickled[1].keys()
        assert (ours / "overlays" / f"{case}.png").exists()


TURNED = Image.Exif()
TURNED[ExifTags.Base.Orientation] = 6
KINDS = {
    "jpg": lambda image, path: image.save(path, quality=95),
    "bmp": lambda image, path: image.save(path),
    "tif": lambda image, path: image.save(path),
    "palette.png": lambda image, path: image.quantize(64).save(path),
    "rgba.png": lambda image, path: image.convert("RGBA").save(path),
    "grey.png": lambda image, path: image.convert("L").save(path),
    "turned.jpg": lambda image, path: image.save(path, exif=TURNED),
    "deep.tif": lambda image, path: imageio.imwrite(path, np.asarray(image).astype(np.uint16) * 16),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.feature("Prediction", "pictures of any kind, as `mamba_mis convert images` reads them")
def test_pictures_are_predicted_as_convert_images_reads_them(model, tmp_path):
    photos, converted = tmp_path / "photos", tmp_path / "converted"
    photos.mkdir()
    for seed, (name, save) in enumerate(KINDS.items()):
        save(Image.fromarray(colours(seed)), photos / f"{seed}.{name}")
    assert main(["convert", "images", "-i", str(photos), "-o", str(converted)]) == 0
    predict(model("stock"), photos, tmp_path / "ours", "--overlays")
    predictor = Predictor(model("stock"))
    for file in converted.glob("*_0000.png"):
        case = file.name.removesuffix("_0000.png")
        labels = imageio.imread(tmp_path / "ours" / f"{case}.png")
        np.testing.assert_array_equal(labels, predictor.predict(imageio.imread(file)))
        overlay = imageio.imread(tmp_path / "ours" / "overlays" / f"{case}.png")
        assert overlay.shape == (*labels.shape, 3) and (overlay != imageio.imread(file)).any()
    assert len(rows(tmp_path / "ours")) == len(KINDS)


@pytest.mark.parametrize("kind", ["grey", "stock"])
def test_images_in_nnunet_naming_are_read_as_by_nnunet(model, kind, tmp_path):
    images, theirs, ours = (tmp_path / name for name in ("images", "theirs", "ours"))
    images.mkdir(), theirs.mkdir()
    pixels = colours() if kind == "stock" else colours()[..., 0].astype(np.uint16) * 200
    imageio.imwrite(images / f"case_7_0000{MODELS[kind].file_ending}", pixels)
    nnunet_predictor(model(kind), [0]).predict_from_files_sequential(str(images), str(theirs))
    predict(model(kind), images, ours)
    (written,) = theirs.glob(f"*{MODELS[kind].file_ending}")
    np.testing.assert_array_equal(imageio.imread(ours / written.name), imageio.imread(written))
    for name in ("dataset.json", "plans.json"):
        assert json.loads((ours / name).read_text()) == json.loads((model(kind) / name).read_text())


def test_camera_file_numbers_are_not_channels(model, tmp_path):
    for number in (0, 1, 2, 3):
        Image.fromarray(colours(number)).save(tmp_path / f"IMG_{number:04d}.png")
    predict(model("stock"), tmp_path, tmp_path / "out")
    assert set(rows(tmp_path / "out")) == {f"IMG_{number:04d}" for number in (0, 1, 2, 3)}


def test_summary_matches_labels_and_probabilities(model, photos, tmp_path):
    predict(model("regions"), photos, tmp_path / "out", "--save-probabilities")
    table = rows(tmp_path / "out")
    assert set(table) == {f"photo_{seed}" for seed in range(3)}
    for case, row in table.items():
        labels = imageio.imread(tmp_path / "out" / f"{case}.png")
        chances = np.load(tmp_path / "out" / f"{case}.npz")["probabilities"]
        assert int(row["whole: area in pixels"]) == (labels > 0).sum()
        assert int(row["core: area in pixels"]) == (labels == 2).sum()
        assert (int(row["core: components"]) > 0) == (labels == 2).any()
        assert float(row["mean confidence"]) == pytest.approx(np.maximum(chances, 1 - chances).mean(), abs=1e-4)
        assert float(row["seconds"]) > 0


def test_summary_contains_no_spreadsheet_formulas(tmp_path):
    model = UntrainedModel(STOCK, labels={"background": 0, "=1+1": 1}).write(tmp_path / "model")
    (tmp_path / "photos").mkdir()
    Image.fromarray(colours()).save(tmp_path / "photos" / "-1.png")
    predict(model, tmp_path / "photos", tmp_path / "out")
    for cell in (tmp_path / "out" / "summary.csv").read_text().replace("\n", ",").split(","):
        assert not cell.startswith(("=", "-", "+", "@"))


def test_broken_image_is_reported_and_the_others_are_predicted(model, photos, tmp_path, capsys):
    whole = (photos / "photo 1.png").read_bytes()
    (photos / "photo 1.png").write_bytes(whole[: len(whole) // 2])
    (photos / "empty.jpg").touch()
    (photos / "notes.txt").touch()
    predict(model("stock"), photos, tmp_path / "out", status=1)
    assert set(rows(tmp_path / "out")) == {"photo_0", "photo_2"} == {p.stem for p in (tmp_path / "out").glob("*.png")}
    errors = capsys.readouterr().err
    assert "photo 1.png" in errors and "empty.jpg" in errors and "Traceback" not in errors


def test_images_with_the_same_name_are_reported(model, photos, tmp_path, capsys):
    Image.fromarray(colours()).save(photos / "photo 0.jpg")
    predict(model("stock"), photos, tmp_path / "out", status=1)
    assert "photo 0.png" in capsys.readouterr().err and len(rows(tmp_path / "out")) == 3


@pytest.mark.slow
def test_resumed_prediction_skips_finished_images(model, photos, tmp_path):
    out = tmp_path / "out"
    predict(model("stock"), photos, out)
    before = {file.name: file.stat().st_mtime_ns for file in out.glob("*.png")}
    earlier = rows(out)
    (out / "photo_1.png").unlink()
    with (out / "summary.csv").open("a") as file:
        file.write("photo_2,killed whi")
    predict(model("stock"), photos, out, "--resume")
    after = {file.name: file.stat().st_mtime_ns for file in out.glob("*.png")}
    assert {name for name in before if after[name] != before[name]} == {"photo_1.png"}
    assert rows(out).keys() == earlier.keys() and rows(out)["photo_2"] == earlier["photo_2"]
    predict(model("stock"), photos, out, "--resume", "--overlays")
    assert len(list((out / "overlays").iterdir())) == 3 and len(rows(out)) == 3
    predict(model("regions"), photos, out, "--resume", status=1)
    assert rows(out).keys() == earlier.keys()


def test_unwritable_output_folder_gives_a_one_line_error(model, photos, tmp_path, capsys):
    (tmp_path / "file").touch()
    predict(model("stock"), photos, tmp_path / "file" / "out", status=1)
    predict(model("stock"), photos, photos, status=1)
    assert capsys.readouterr().err.count("\n") == 2
    assert sorted(path.name for path in photos.iterdir()) == [f"photo {seed}.png" for seed in range(3)]


@pytest.mark.parametrize("kind", ["classes", "nifti"])
def test_full_disk_gives_a_one_line_error_and_loses_no_file(model, photos, tmp_path, capsys, kind):
    out, source, options = tmp_path / "out", photos, ["--save-probabilities"]
    folder = model("stock")
    if kind == "nifti":
        folder = UntrainedModel(STOCK, channels=1, file_ending=".nii.gz", reader="SimpleITKIO").write(
            tmp_path / "model"
        )
        source, options = tmp_path / "scan_0000.nii.gz", []
        noise = np.random.default_rng(0).integers(0, 500, (100, 100)).astype(np.int16)
        sitk.WriteImage(sitk.GetImageFromArray(noise), source)
    predict(folder, source, out, *options)
    before = {file: file.read_bytes() for file in out.iterdir()}
    largest = max(len(content) for file, content in before.items() if file.suffix in (".npz", ".gz"))
    capsys.readouterr()
    with full_disk(largest - 1):
        predict(folder, source, out, *options, status=1)
    assert capsys.readouterr().err.count("\n") == 1
    for file, content in before.items():
        assert file.name == "summary.csv" or file.read_bytes() == content
    assert not list(out.glob(".*"))


def test_missing_model_source_or_fold_gives_a_one_line_error(model, photos, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for folder, source in (
        (tmp_path, photos),
        (model("stock"), tmp_path / "empty"),
        (model("stock"), tmp_path / "nowhere.png"),
    ):
        predict(folder, source, tmp_path / "out", status=1)
        errors = capsys.readouterr().err
        assert errors.count("\n") == 1 and "Traceback" not in errors
    predict(model("stock"), photos, tmp_path / "out", "-f", "3", status=1)
    assert "fold_0" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_model_is_found_by_dataset_with_defaults_and_options(model, photos, tmp_path, monkeypatch, capsys):
    results = tmp_path / "results"
    monkeypatch.setenv("nnUNet_results", str(results))
    for variable in ("nnUNet_raw", "nnUNet_preprocessed"):
        monkeypatch.delenv(variable, raising=False)
    folder = results / "Dataset007_Polyps"

    def install(name: str, kind: str) -> None:
        shutil.copytree(model(kind), folder / name)

    def predicted(*options: str) -> str:
        """Return the kind of model that was found, or the error message."""
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        command = ["predict", "-d", "7", "-i", str(photos), "-o", str(tmp_path / "out"), "-device", "cpu", *options]
        if main(command):
            return capsys.readouterr().err
        classes = json.loads((tmp_path / "out" / "dataset.json").read_text())["labels"]
        return next(kind for kind in MODELS if MODELS[kind].labels == classes)

    install(f"{S}__nnUNetPlans__2d", "regions")
    assert predicted() == "regions"
    install("nnUNetTrainer__nnUNetPlans__2d", "stock")
    assert "choose with -tr" in predicted()
    install("nnUNetTrainerMambaMIS__nnUNetPlans__2d", "classes")
    assert predicted() == "classes"
    assert predicted("-tr", S) == "regions"
    assert "nnUNetTrainerMambaMIS" in predicted("-tr", "nnUNetTrainerOfNobody")
