"""`Predictor` on arrays, compared with nnU-Net's predictor on the same images in files."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch

from nnunet_mamba_mis.prediction import Predictor
from nnunet_mamba_mis.utils.errors import UserError
from support.images import disc_image
from support.model_folders import UntrainedModel
from support.predictions import MODELS, assert_same, nnunet_predictor

SIZES = {
    "smaller": (17, 23),
    "larger": (47, 60),
    "narrow": (40, 1),
    "pixel": (1, 1),
    "black": (20, 50),
}


def images(channels: int) -> dict[str, np.ndarray]:
    """Return images (H, W, 3), or 16-bit (H, W), some with black borders, which nnU-Net crops."""
    made = {}
    for seed, (name, size) in enumerate(SIZES.items()):
        pixels = np.moveaxis(disc_image(seed, size, 7, (120, 60, 50)[:channels], 70)[0], 0, -1).copy()
        if min(size) > 30:
            pixels[:4] = pixels[:, -3:] = 0
        made[name] = pixels if channels == 3 else pixels[..., 0].astype(np.uint16) * 40
    made["black"][:] = 0
    return made


@pytest.mark.feature("Prediction", "classes, regions, several folds, grey TIFF, `nnUNetTrainer`, images of any size")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in ("classes", "folds"))) for name in MODELS]
)
def test_predictions_of_arrays_match_nnunets_of_files(model, name, tmp_path):
    kind, folder = MODELS[name], model(name)
    given = images(kind.channels)
    files = [[str(tmp_path / f"{case}_0000{kind.file_ending}")] for case in given]
    for (file,), pixels in zip(files, given.values(), strict=True):
        imageio.imwrite(file, pixels)
    theirs = nnunet_predictor(folder, kind.folds).predict_from_files_sequential(files, None, save_probabilities=True)
    ours = list(Predictor(folder, kind.folds).predict_many(iter(given.values()), probabilities=True))
    for (labels, chances), (their_labels, their_chances) in zip(ours, theirs, strict=True):
        assert_same(labels, chances, their_labels[0], their_chances[:, 0])
    largest = ours[list(SIZES).index("larger")][0]
    assert 0.1 < (largest == 0).mean() < 0.9, "uniform labels would agree by chance"


def test_prediction_without_mirroring_matches_nnunet(model, tmp_path):
    pixels = images(3)["larger"]
    imageio.imwrite(tmp_path / "image_0000.png", pixels)
    theirs = nnunet_predictor(model("classes"), [0], mirroring=False).predict_from_files_sequential(
        [[str(tmp_path / "image_0000.png")]], None, save_probabilities=True
    )
    ours = Predictor(model("classes"), mirroring=False).predict(pixels, probabilities=True)
    assert_same(*ours, theirs[0][0][0], theirs[0][1][:, 0])


@pytest.mark.parametrize("trainer", ["nnUNetTrainerUMambaBot", "nnUNetTrainerBN", "nnUNetTrainer_100epochs"])
def test_network_comes_from_the_trainer(trainer, tmp_path):
    pixels = images(3)["larger"]
    imageio.imwrite(tmp_path / "image_0000.png", pixels)
    folder = UntrainedModel(trainer).write(tmp_path / "model")
    theirs = nnunet_predictor(folder, [0]).predict_from_files_sequential(
        [[str(tmp_path / "image_0000.png")]], None, save_probabilities=True
    )
    assert_same(*Predictor(folder).predict(pixels, probabilities=True), theirs[0][0][0], theirs[0][1][:, 0])


def test_shared_batches_do_not_change_predictions(model):
    predictor = Predictor(model("classes"), mirroring=False)
    given = list(images(3).values())
    for labels, alone in zip(predictor.predict_many(given), map(predictor.predict, given), strict=True):
        np.testing.assert_array_equal(labels, alone)


def test_three_channel_model_accepts_grey_images(model):
    grey = images(1)["larger"]
    predictor = Predictor(model("classes"))
    np.testing.assert_array_equal(predictor.predict(grey), predictor.predict(np.stack([grey] * 3, axis=-1)))


@pytest.mark.parametrize(
    "array",
    [np.zeros(5), np.zeros((4, 4, 2)), np.zeros((0, 4)), np.full((4, 4), np.nan), np.full((4, 4), "a"), "image.png"],
    ids=["1D", "channels", "empty", "nan", "text", "path"],
)
def test_invalid_image_raises_value_error(model, array):
    with pytest.raises(ValueError):
        Predictor(model("classes")).predict(array)


def test_predict_many_is_lazy_and_stops_with_its_consumer(model):
    taken = itertools.count()
    ended = threading.Event()

    def camera():
        try:
            while True:
                next(taken)
                yield images(3)["smaller"]
        finally:
            ended.set()

    frames = Predictor(model("classes")).predict_many(camera())
    assert next(frames).shape == next(frames).shape == (17, 23)
    frames.close()
    assert ended.wait(5) and next(taken) < 50


def test_error_in_the_iterable_is_raised_after_earlier_results(model):
    def failing():
        yield images(3)["smaller"]
        raise OSError("unplugged")

    results = Predictor(model("classes")).predict_many(failing())
    assert next(results).shape == (17, 23)
    with pytest.raises(OSError, match="unplugged"):
        next(results)


def broken(tmp_path: Path, model, change) -> Path:
    """Return a copy of a model with changed plans or checkpoint."""
    source, folder = model("stock"), tmp_path / "model"
    (folder / "fold_0").mkdir(parents=True)
    plans = json.loads((source / "plans.json").read_text())
    checkpoint = torch.load(source / "fold_0" / "checkpoint_final.pth")
    change(plans, checkpoint)
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_bytes((source / "dataset.json").read_bytes())
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")
    return folder


CHANGES = {
    "3D": lambda plans, checkpoint: plans["configurations"]["2d"].update(patch_size=[8, 8, 8], spacing=[1.0] * 3),
    "no such trainer": lambda plans, checkpoint: checkpoint.update(trainer_name="nnUNetTrainerOfNobody"),
    "no such configuration": lambda plans, checkpoint: checkpoint["init_args"].update(configuration="3d"),
    "other weights": lambda plans, checkpoint: checkpoint["network_weights"].popitem(),
    "other preprocessor": lambda plans, checkpoint: plans["configurations"]["2d"].update(preprocessor_name="Mine"),
    "other label manager": lambda plans, checkpoint: plans.update(label_manager="Mine"),
    "no such normalization": lambda plans, checkpoint: plans["configurations"]["2d"].update(
        normalization_schemes=["os"] * 3
    ),
    "other channels": lambda plans, checkpoint: plans["configurations"]["2d"].update(use_mask_for_norm=[True]),
    "no such network": lambda plans, checkpoint: plans["configurations"]["2d"]["architecture"].update(
        network_class_name="nowhere.Network"
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_unusable_model_gives_a_one_line_error(model, tmp_path, change):
    folder = broken(tmp_path, model, CHANGES[change])
    with pytest.raises(UserError) as raised:
        Predictor(folder)
    assert str(folder) in str(raised.value) and "\n" not in str(raised.value)


def test_missing_model_fold_or_device_gives_a_one_line_error(model, tmp_path):
    for arguments in ([tmp_path], [model("stock"), [7]], [model("stock"), "all"], [model("stock"), 0, "cuda:99"]):
        with pytest.raises(UserError) as raised:
            Predictor(*arguments)
        assert "\n" not in str(raised.value)


PREDICT_AND_LIST_HEAVY_MODULES = """
import sys
import numpy as np
from nnunet_mamba_mis.prediction import Predictor
labels = Predictor(sys.argv[1]).predict(np.zeros((40, 40, 3), np.uint8))
heavy = ["nnunetv2.training.nnUNetTrainer.nnUNetTrainer", "matplotlib", "timm", "pandas", "skimage", "blosc2"]
print([name for name in heavy if name in sys.modules])
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["classes", "stock"])
def test_prediction_imports_no_training_code(model, name):
    command = [sys.executable, "-c", PREDICT_AND_LIST_HEAVY_MODULES, str(model(name))]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"
