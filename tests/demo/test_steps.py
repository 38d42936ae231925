"""The demo's commands, and how it reads their output."""

from __future__ import annotations

import math
import re

from nnunet_mamba_mis.demo.folder import start_afresh
from nnunet_mamba_mis.demo.running import run_step
from nnunet_mamba_mis.demo.steps import convert_step, plan_step, predict_step, train_step
from nnunet_mamba_mis.demo.synthetic_polyps import write_synthetic_set
from nnunet_mamba_mis.demo.workflow import shell_preparation
from nnunet_mamba_mis.demo.workplace import Workplace
from nnunet_mamba_mis.nnunet.logs import Epoch, read_epochs
from support.images import save_image


def test_conversion_holds_out_images(tmp_path):
    write_synthetic_set(tmp_path / "it's a set", 6)
    place = Workplace(tmp_path / "out", "Tiny", "cpu", cores=2)
    start_afresh(place.folder)
    step = convert_step(place, tmp_path / "it's a set", 2)
    run_step(step, tmp_path / "log", place.environment())
    assert step.as_typed().startswith("mamba_mis convert kvasir-seg -i ") and step.as_typed().endswith("--hold-out 2")
    assert len(list((place.raw / "imagesTr").iterdir())) == 4
    assert len(list((place.raw / "imagesTs").iterdir())) == len(list((place.raw / "labelsTs").iterdir())) == 2


def test_large_images_are_planned_at_a_lower_resolution_on_a_cpu_only(place):
    for i, width in enumerate((320, 640, 1920)):
        save_image(place.raw / "imagesTr" / f"{i}_0000.png", width, 300)
    assert "-overwrite_target_spacing 999 4.0 4.0" in plan_step(place).as_typed()
    on_gpu = Workplace(place.folder, "Tiny", "cuda", cores=16)
    assert plan_step(on_gpu).as_typed() == "nnUNetv2_plan_and_preprocess -d 900 -c 2d --verify_dataset_integrity"


def test_small_images_keep_their_resolution(place):
    save_image(place.raw / "imagesTr" / "0_0000.png", 100, 90)
    assert "-overwrite_target_spacing" not in plan_step(place).as_typed()


def test_training_and_prediction_use_the_demo_trainer_and_the_device(place):
    train, predict = train_step(place, 8).as_typed(), predict_step(place).as_typed()
    assert train == "nnUNet_n_proc_DA=0 nnUNetv2_train 900 2d 0 -tr nnUNetTrainerMambaMIS_demo -device cpu"
    assert f"-i {place.raw}/imagesTs -o {place.folder}/predictions" in predict and predict.startswith(
        "nnUNetv2_predict"
    )
    assert "-tr nnUNetTrainerMambaMIS_demo -device cpu" in predict


def test_variables_can_be_pasted_into_a_shell():
    assert "export nnUNet_raw='/my data'" in shell_preparation({"nnUNet_raw": "/my data"})


def test_each_epoch_becomes_one_line(place, nnunet_output):
    watch = train_step(place, 8).watch
    shown = [line for line in map(watch, nnunet_output.splitlines()) if line is not None]
    assert len(shown) == 2
    assert re.fullmatch(
        r"epoch 1/8  train loss -0\.123  val loss  0\.050  pseudo Dice 0\.432  47 s, about 5 min 30 s left", shown[0]
    )
    assert shown[1].startswith("epoch 2/8") and "about 4 min 12 s left" in shown[1]


def test_epochs_are_read_from_nnunets_log(nnunet_output):
    first, second = read_epochs(nnunet_output.splitlines())
    assert first == Epoch(0, -0.1234, 0.05, (0.4321,), 47.12)
    assert math.isnan(second.pseudo_dice) and second.train_loss == -0.4
