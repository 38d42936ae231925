"""nnU-Net's commands for training, prediction and what follows, on two folds of a tiny dataset."""

from __future__ import annotations

import json
import pickle
import shlex
import shutil
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunet_mamba_mis.trainers import ABLATIONS
from support.images import disc_image
from support.nnunet_workplace import Dataset

NUMBER = 31
OURS = "nnUNetTrainerMambaMIS"
STOCK = "nnUNetTrainer_brief"
FOLDS = range(2)

pytestmark = pytest.mark.slow


def polyp(seed: int, *size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return an RGB image (3, H, W) with a bright disc, and its mask."""
    return disc_image(seed, size or (32, 30), 7, colour=(120, 60, 50), contrast=70)


@pytest.fixture(scope="session")
def polyps(nnunet) -> Dataset:
    """A dataset of five RGB images, one validation image for each of nnU-Net's folds."""
    cases = {f"case{seed}": polyp(seed) for seed in range(5)}
    return nnunet.add(Dataset(NUMBER, cases, {"background": 0, "polyp": 1}))


@pytest.fixture(scope="session")
def folds(nnunet, polyps) -> Path:
    """The folder of this package's model; its folds and those of nnU-Net's trainer are trained for one step."""
    nnunet.train_all([(NUMBER, fold, trainer) for trainer in (OURS, STOCK) for fold in FOLDS], "--npz")
    return nnunet.model(NUMBER, OURS)


@pytest.fixture(scope="session")
def new_images(tmp_path_factory) -> Path:
    """A folder of images of all sizes, down to one pixel."""
    folder = tmp_path_factory.mktemp("new images")
    for name, size in SIZES.items():
        image, _ = polyp(100, *size)
        imageio.imwrite(folder / f"{name}_0000.png", np.moveaxis(image, 0, -1))
    return folder


SIZES = {
    "patch": (32, 32),
    "pixel": (1, 1),
    "narrow": (40, 1),
    "flat": (1, 70),
    "smaller": (17, 23),
    "larger": (70, 97),
}


@pytest.fixture(scope="session")
def predicted(nnunet, folds, new_images, tmp_path_factory) -> Path:
    """A folder with the predictions of fold 0 for all new images, with probabilities."""
    output = tmp_path_factory.mktemp("predicted")
    nnunet.predict(NUMBER, OURS, new_images, output, "-f", 0, "--save_probabilities")
    return output


@pytest.fixture
def one_image(new_images, tmp_path) -> Path:
    """A folder with only the image of the patch's size."""
    folder = tmp_path / "one image"
    folder.mkdir()
    shutil.copy(new_images / "patch_0000.png", folder)
    return folder


def probabilities(folder: Path, case: str = "patch") -> np.ndarray:
    """Return the probabilities (classes, H, W) of a case."""
    return np.load(folder / f"{case}.npz")["probabilities"][:, 0]


@pytest.mark.feature("Labels", "predicted images of any size, down to one pixel")
@pytest.mark.feature("Labels", "RGB PNG, three channels")
@pytest.mark.parametrize("case", SIZES)
def test_prediction_has_the_size_of_its_image(predicted, case):
    prediction = imageio.imread(predicted / f"{case}.png")
    assert prediction.shape == SIZES[case] and set(np.unique(prediction)) <= {0, 1}
    chances = probabilities(predicted, case)
    assert np.isfinite(chances).all()
    np.testing.assert_allclose(chances.sum(0), 1, atol=1e-3)


@pytest.mark.feature("Commands", "`nnUNetv2_predict` with several folds, `--save_probabilities`")
def test_several_folds_are_averaged(nnunet, predicted, one_image, tmp_path):
    for output, which in (("one", [1]), ("both", [0, 1])):
        nnunet.predict(NUMBER, OURS, one_image, tmp_path / output, "-f", *which, "--save_probabilities")
    zero, one, both = (probabilities(f) for f in (predicted, tmp_path / "one", tmp_path / "both"))
    assert np.abs(zero - one).max() > 1e-3
    # nnU-Net averages logits
    mean = np.sqrt(zero * one)
    np.testing.assert_allclose(both, mean / mean.sum(0), atol=2e-3)


@pytest.mark.feature("Commands", "`nnUNetv2_predict --disable_tta`")
def test_test_time_augmentation_can_be_disabled(nnunet, predicted, one_image, tmp_path):
    """With augmentation, the prediction of a mirrored image is the mirrored prediction."""
    image = imageio.imread(one_image / "patch_0000.png")
    imageio.imwrite(one_image / "mirrored_0000.png", image[:, ::-1])
    nnunet.predict(NUMBER, OURS, one_image, tmp_path / "with", "-f", 0, "--save_probabilities")
    nnunet.predict(NUMBER, OURS, one_image, tmp_path / "without", "-f", 0, "--save_probabilities", "--disable_tta")
    asymmetry = {
        output: np.abs(probabilities(tmp_path / output)[..., ::-1] - probabilities(tmp_path / output, "mirrored")).max()
        for output in ("with", "without")
    }
    # nnU-Net sums logits in half precision, so the symmetry is not exact
    assert 10 * asymmetry["with"] < asymmetry["without"], asymmetry


@pytest.fixture
def own_fold(folds, tmp_path) -> Path:
    """A copy of fold 0 of this package's model, in the results folder `tmp_path / "results"`."""
    model = tmp_path / "results" / folds.parent.name / folds.name
    shutil.copytree(folds, model, ignore=shutil.ignore_patterns("fold_1", "crossval*"))
    return model / "fold_0"


def train_further(nnunet, fold: Path, *arguments: object) -> str:
    """Run `nnUNetv2_train` on a fold of `own_fold`."""
    return nnunet.run("nnUNetv2_train", NUMBER, "2d", 0, "-tr", OURS, "-device", "cpu", "--npz", *arguments,
                      nnUNet_results=str(fold.parents[2]))  # fmt: skip


@pytest.mark.feature("Commands", "`--val_best`, `nnUNetv2_predict -chk checkpoint_best.pth`")
def test_named_checkpoint_is_used_for_prediction_and_validation(nnunet, folds, own_fold, polyps, tmp_path):
    """The test replaces a fold's best checkpoint by another fold's weights, which differ from the final ones."""
    fold = own_fold
    shutil.copy(folds / "fold_1" / "checkpoint_final.pth", fold / "checkpoint_best.pth")
    train_further(nnunet, fold, "--val", "--val_best")
    (validated,) = (fold / "validation").glob("*.npz")
    images = tmp_path / "images"
    images.mkdir()
    shutil.copy(nnunet.raw / polyps.name / "imagesTr" / f"{validated.stem}_0000.png", images)
    for output, arguments in (("best", ["-chk", "checkpoint_best.pth"]), ("final", [])):
        nnunet.run("nnUNetv2_predict", "-d", NUMBER, "-c", "2d", "-tr", OURS, "-device", "cpu", "-npp", 0, "-nps", 0,
                   "-i", images, "-o", tmp_path / output, "-f", 0, "--save_probabilities", *arguments,
                   nnUNet_results=str(tmp_path / "results"))  # fmt: skip
    best, final = (probabilities(tmp_path / output, validated.stem) for output in ("best", "final"))
    np.testing.assert_array_equal(best, probabilities(fold / "validation", validated.stem))
    assert np.abs(best - final).max() > 1e-3


@pytest.mark.feature("Commands", "`nnUNetv2_train --val`")
def test_validation_alone_reproduces_that_of_training(nnunet, folds, own_fold):
    (trained,) = (folds / "fold_0" / "validation").glob("*.npz")
    shutil.rmtree(own_fold / "validation")
    assert "Epoch" not in train_further(nnunet, own_fold, "--val")
    again = own_fold / "validation" / trained.name
    np.testing.assert_array_equal(np.load(again)["probabilities"], np.load(trained)["probabilities"])
    summaries = [json.loads((file.parent / "summary.json").read_text()) for file in (again, trained)]
    assert summaries[0]["mean"] == summaries[1]["mean"]


@pytest.mark.feature("Commands", "`nnUNetv2_train --c` after the last epoch")
def test_resuming_a_finished_training_only_validates(nnunet, own_fold):
    shutil.rmtree(own_fold / "validation")
    assert "Epoch 1" not in train_further(nnunet, own_fold, "--c")
    assert (own_fold / "validation" / "summary.json").exists()


@pytest.mark.feature("Commands", "`nnUNetv2_train -pretrained_weights`")
def test_training_starts_from_pretrained_weights(nnunet, folds):
    """A trainer that changes no weights ends with the pretrained weights, except in the segmentation layers."""
    given = folds / "fold_0" / "checkpoint_final.pth"
    nnunet.train(NUMBER, 0, "Frozen", "-pretrained_weights", given)
    final = nnunet.model(NUMBER, "Frozen") / "fold_0" / "checkpoint_final.pth"
    before, after = (torch.load(file, weights_only=False)["network_weights"] for file in (given, final))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(".seg_layers." in name for name in changed)


@pytest.mark.feature("Commands", "`nnUNetv2_train 31 2d all`, `nnUNetv2_predict -f all`")
def test_fold_all_can_be_trained_and_used_for_prediction(nnunet, polyps, one_image, tmp_path):
    nnunet.train(NUMBER, "all", OURS)
    nnunet.predict(NUMBER, OURS, one_image, tmp_path / "out", "-f", "all")
    assert imageio.imread(tmp_path / "out" / "patch.png").shape == SIZES["patch"]


@pytest.mark.feature("Commands", "`nnUNetv2_train -p nnUNetResEncUNetMPlans`")
def test_plans_of_the_residual_encoder_presets_can_be_trained(nnunet, polyps):
    nnunet.run("nnUNetv2_plan_experiment", "-d", NUMBER, "-pl", "nnUNetPlannerResEncM")
    nnunet.train(NUMBER, 0, OURS, "-p", "nnUNetResEncUNetMPlans")
    (model,) = nnunet.results.glob(f"{polyps.name}/{OURS}__nnUNetResEncUNetMPlans__2d")
    assert (model / "fold_0" / "validation" / "summary.json").exists()


@pytest.fixture(scope="session")
def trained_variants(nnunet, polyps) -> None:
    """Train the networks other than B for one step, the paper's at its own patch size."""
    folder = nnunet.preprocessed / polyps.name
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    plans["configurations"]["2d"]["patch_size"] = [256, 256]
    (folder / "paper.json").write_text(json.dumps(plans | {"plans_name": "paper"}))
    nnunet.train_all((NUMBER, 0, trainer) for trainer in VARIANTS)
    nnunet.train(NUMBER, 0, f"{OURS}_paper", "-p", "paper")


VARIANTS = [*(f"{OURS}_{name}" for name in ("S", "L", "conv", "conv_noSSM")), *ABLATIONS]


@pytest.mark.feature("Ablations", "`_paper` trains, validates and predicts at 256 × 256")
@pytest.mark.feature("Ablations", "each size and ablation trains, validates and predicts")
@pytest.mark.parametrize("trainer", [*VARIANTS, f"{OURS}_paper"])
def test_variants_can_be_trained_and_loaded_for_prediction(nnunet, trained_variants, trainer, monkeypatch):
    nnunet.set_here(monkeypatch)
    plans = "paper" if trainer.endswith("_paper") else "nnUNetPlans"
    (model,) = nnunet.results.glob(f"Dataset031_*/{trainer}__{plans}__2d")
    assert (model / "fold_0" / "validation" / "summary.json").exists()
    predictor = nnUNetPredictor(device=torch.device("cpu"))
    predictor.initialize_from_trained_model_folder(str(model), (0,))
    assert predictor.network.decoder.deep_supervision is False


@pytest.mark.feature("Commands", "`nnUNetv2_train -num_gpus` without GPUs")
@pytest.mark.parametrize("trainer", [OURS, STOCK])
def test_several_gpus_without_any_are_refused(nnunet, polyps, trainer):
    """nnU-Net itself refuses, before it searches for the trainer."""
    output = nnunet.train(NUMBER, 0, trainer, "-num_gpus", 2, status=1)
    assert "DDP training (triggered by num_gpus > 1) is only implemented for cuda devices" in output


@pytest.mark.feature("Commands", "`nnUNetv2_predict_from_modelfolder`")
def test_prediction_from_a_model_folder_needs_no_results_folder(nnunet, folds, predicted, one_image, tmp_path):
    unset = dict.fromkeys(("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"), "")
    nnunet.run("nnUNetv2_predict_from_modelfolder", "-m", folds, "-f", 0, "-i", one_image, "-o", tmp_path / "out",
               "-device", "cpu", "-npp", 1, "-nps", 1, **unset)  # fmt: skip
    assert (tmp_path / "out" / "patch.png").read_bytes() == (predicted / "patch.png").read_bytes()


@pytest.mark.feature("Commands", "model as zip, installed elsewhere: predicts the same bytes")
def test_exported_model_predicts_the_same_bytes_elsewhere(nnunet, folds, predicted, new_images, tmp_path):
    archive = tmp_path / "model.zip"
    nnunet.run("nnUNetv2_export_model_to_zip", "-d", NUMBER, "-o", archive, "-c", "2d", "-tr", OURS, "-f", *FOLDS)
    elsewhere = {name: str(tmp_path / name) for name in ("nnUNet_results", "nnUNet_raw", "nnUNet_preprocessed")}
    (tmp_path / "nnUNet_results").mkdir()
    nnunet.run("nnUNetv2_install_pretrained_model_from_zip", archive, **elsewhere)
    nnunet.run("nnUNetv2_predict", "-d", NUMBER, "-c", "2d", "-tr", OURS, "-f", 0, "-device", "cpu", "-i", new_images,
               "-o", tmp_path / "out", "-npp", 0, "-nps", 0, "--save_probabilities", **elsewhere)  # fmt: skip
    for case in SIZES:
        assert (tmp_path / "out" / f"{case}.png").read_bytes() == (predicted / f"{case}.png").read_bytes()
        np.testing.assert_array_equal(probabilities(tmp_path / "out", case), probabilities(predicted, case))


@pytest.mark.parametrize("trainer", [OURS, STOCK])
@pytest.mark.parametrize("arguments", [[], ["--not_strict"]], ids=" ".join)
def test_export_has_to_name_the_configuration(nnunet, folds, trainer, arguments, tmp_path):
    """By nnU-Net's own rule, the command requires the 3D configurations too, even with `--not_strict`."""
    output = nnunet.run("nnUNetv2_export_model_to_zip", "-d", NUMBER, "-o", tmp_path / "model.zip", "-tr", trainer,
                        *arguments, status=1)  # fmt: skip
    assert "is missing the trained model of configuration 3d_lowres" in output


@pytest.mark.feature("Commands", "`nnUNetv2_accumulate_crossval_results`")
def test_results_of_folds_are_accumulated(nnunet, folds, polyps, tmp_path):
    nnunet.run("nnUNetv2_accumulate_crossval_results", NUMBER, "-c", "2d", "-tr", OURS, "-o", tmp_path / "all",
               "-f", *FOLDS)  # fmt: skip
    validated = {file.stem for fold in FOLDS for file in (folds / f"fold_{fold}" / "validation").glob("*.png")}
    assert {file.stem for file in (tmp_path / "all").glob("*.png")} == validated and len(validated) == len(FOLDS)
    scores = [json.loads((folds / f"fold_{f}" / "validation" / "summary.json").read_text()) for f in FOLDS]
    expected = np.mean([score["foreground_mean"]["Dice"] for score in scores])
    assert json.loads((tmp_path / "all" / "summary.json").read_text())["foreground_mean"]["Dice"] == pytest.approx(
        expected
    )


@pytest.fixture(scope="session")
def best(nnunet, folds) -> str:
    """The output of nnU-Net's search for the best configuration among its own model and this package's."""
    return nnunet.run("nnUNetv2_find_best_configuration", NUMBER, "-c", "2d", "-tr", STOCK, OURS, "-f", *FOLDS)


@pytest.mark.feature("Commands", "`nnUNetv2_find_best_configuration` among this package's models and nnU-Net's")
@pytest.mark.feature("Commands", "`nnUNetv2_train --npz`, which ensembles need")
def test_best_configuration_is_found_among_both_models_and_their_ensemble(nnunet, best):
    information = json.loads((nnunet.results / "Dataset031_Tiny" / "inference_information.json").read_text())
    models = [f"{trainer}__nnUNetPlans__2d" for trainer in (STOCK, OURS)]
    ensemble = f"ensemble___{models[0]}___{models[1]}___0_1"
    assert set(information["all_results"]) == {*models, ensemble}
    assert information["best_model_or_ensemble"]["result_on_crossval_pre_pp"] == max(
        information["all_results"].values()
    )


@pytest.mark.feature("Commands", "the commands in `inference_instructions.txt`")
def test_inference_instructions_can_be_followed(nnunet, best, one_image, tmp_path):
    """Each command runs as written, with folders filled in and with -device cpu."""
    text = (nnunet.results / "Dataset031_Tiny" / "inference_instructions.txt").read_text()
    commands = [shlex.split(line) for line in text.splitlines() if line.startswith("nnUNetv2_")]
    assert commands[0][0] == "nnUNetv2_predict" and commands[-1][0] == "nnUNetv2_apply_postprocessing"
    for command, *arguments in commands:
        filled = [str(tmp_path / a) if a.startswith("OUTPUT_FOLDER") else a for a in arguments]
        filled = [str(one_image) if a == "INPUT_FOLDER" else a for a in filled]
        if command == "nnUNetv2_predict":
            filled += ["-device", "cpu"]
        nnunet.run(command, *filled, nnUNet_npp="0", nnUNet_nps="0")
    assert imageio.imread(tmp_path / "OUTPUT_FOLDER_PP" / "patch.png").shape == SIZES["patch"]


@pytest.mark.feature("Commands", "`nnUNetv2_ensemble` of this package's model and nnU-Net's")
def test_ensemble_is_the_mean_of_probabilities(nnunet, folds, predicted, new_images, tmp_path):
    nnunet.predict(NUMBER, STOCK, new_images, tmp_path / "stock", "-f", 0, "--save_probabilities")
    nnunet.run("nnUNetv2_ensemble", "-i", predicted, tmp_path / "stock", "-o", tmp_path / "both", "-np", 1)
    for case in SIZES:
        mean = (probabilities(predicted, case) + probabilities(tmp_path / "stock", case)) / 2
        np.testing.assert_array_equal(imageio.imread(tmp_path / "both" / f"{case}.png"), mean.argmax(0))


@pytest.mark.feature("Commands", "`nnUNetv2_determine_postprocessing`, `_apply_postprocessing`")
def test_postprocessing_is_determined_and_applied(nnunet, folds, polyps, tmp_path):
    """Each prediction has a stray pixel, so keeping only the largest component helps, and nnU-Net applies it."""
    predictions, truth = tmp_path / "predictions", nnunet.raw / polyps.name / "labelsTr"
    predictions.mkdir()
    for case, (_, mask) in polyps.cases.items():
        stray = mask.copy()
        stray[0, 0] = 1
        imageio.imwrite(predictions / f"{case}.png", stray)
    described = ("-plans_json", folds / "plans.json", "-dataset_json", folds / "dataset.json", "-np", 1)
    nnunet.run("nnUNetv2_determine_postprocessing", "-i", predictions, "-ref", truth, *described)
    functions, _ = pickle.loads((predictions / "postprocessing.pkl").read_bytes())
    assert [function.__name__ for function in functions] == ["remove_all_but_largest_component_from_segmentation"]
    nnunet.run("nnUNetv2_apply_postprocessing", "-i", predictions, "-o", tmp_path / "out",
               "-pp_pkl_file", predictions / "postprocessing.pkl", *described)  # fmt: skip
    for case, (_, mask) in polyps.cases.items():
        np.testing.assert_array_equal(imageio.imread(tmp_path / "out" / f"{case}.png"), mask)
