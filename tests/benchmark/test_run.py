"""The checks and the plan of `mamba_mis benchmark run` before anything starts."""

from __future__ import annotations

import argparse
import json
import re

import pytest

from nnunet_mamba_mis.benchmark.running.devices import make_slots
from nnunet_mamba_mis.cli.benchmark.run import _trainers_and_plans, add_arguments
from nnunet_mamba_mis.cli.main import main
from support.benchmark_command import finish_training
from support.small_dataset import ELSEWHERE, NAME, NUMBER, OTHER


def test_dry_run_prints_the_remaining_commands(benchmark):
    finish_training(benchmark.job("nnUNetTrainer", seed=7))
    trained = benchmark.job("nnUNetTrainer", fold=1, seed=7)
    trained.folder.mkdir(parents=True)
    trained.final_checkpoint.touch()
    output = benchmark.run(
        "run", "-d", NUMBER, "--trainers", "nnUNetTrainer", "Long", "--folds", 0, 1, "--seeds", 7, "--jobs", 2,
        "-device", "cpu", "--dry-run",
    )  # fmt: skip
    commands = output.splitlines()
    assert commands[-1] == "# 1 of 4 jobs are done; nothing was started"
    seeded = "python -m nnunet_mamba_mis.benchmark.running.seeded_train 7 Dataset041_Tiny 2d"
    assert [command.partition(" python ")[2] for command in commands[:-1]] == [
        f"{seeded} {job} -p nnUNetPlans -device cpu{end}".partition(" ")[2]
        for job, end in (("0 -tr Long", ""), ("1 -tr nnUNetTrainer", " --val"), ("1 -tr Long", ""))
    ]
    assert all(f"nnUNet_results={benchmark.results}/seed_7 " in command for command in commands[:-1])
    assert not benchmark.job("Long", seed=7).folder.exists()


def test_test_sets_and_other_datasets_are_predicted_after_training(benchmark):
    grid = ["run", "-d", NUMBER, "--trainers", "Quick", "Long", "--folds", 0, 1, "-device", "cpu", "--dry-run"]
    output = benchmark.run(*grid, "--test-sets", "--test-on", ELSEWHERE)
    *commands, _ = output.splitlines()
    assert [re.search(r"nnUNetv2_(train|predict)", command)[1] for command in commands] == ["train"] * 4 + [
        "predict"
    ] * 4
    inputs = [re.search(r" -i \S+/(\S+/\S+) ", command)[1] for command in commands[4:]]
    assert inputs == [f"{NAME}/imagesTs_far", f"{OTHER}/imagesTr"] * 2


def test_all_problems_are_reported_together(benchmark, nnunet, monkeypatch, tmp_path):
    changed = tmp_path / "preprocessed"
    (changed / NAME).mkdir(parents=True)
    for file in (nnunet.preprocessed / NAME).iterdir():
        (changed / NAME / file.name).symlink_to(file)
    plans = json.loads((changed / NAME / "nnUNetPlans.json").read_text())
    (changed / NAME / "CopiedPlans.json").write_text(json.dumps(plans))
    plans["plans_name"], plans["configurations"]["2d"]["data_identifier"] = "OtherPlans", "OtherPlans_2d"
    (changed / NAME / "OtherPlans.json").write_text(json.dumps(plans))
    benchmark.variables["nnUNet_preprocessed"] = str(changed)
    output = benchmark.run(
        "run", "-d", NUMBER, 999, "nonsense", "--trainers", "nnUNetTrainer", "nnUNetTrainerMambaMIX",
        "--folds", 0, 9, "--plans", "nnUNetPlans", "NoPlans", "CopiedPlans", "OtherPlans", "-device", "cpu",
        status=1,
    )  # fmt: skip
    assert output.count("mamba_mis: error") == 1
    for value in ("nnUNetTrainerMambaMIX", "-d 999", "-d nonsense", "NoPlans", "CopiedPlans", "--folds 9"):
        assert value in output
    assert f"nnUNetv2_preprocess -d {NUMBER} -plans_name OtherPlans -c 2d" in output
    assert not list(benchmark.results.iterdir())


def test_unusable_test_sets_are_reported_before_anything_starts(benchmark, nnunet, tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / NAME).symlink_to(nnunet.raw / NAME)
    description = json.loads((raw / NAME / "dataset.json").read_text())
    for name, change in (
        ("Dataset043_Lesions", {"labels": {"background": 0, "lesion": 1}}),
        ("Dataset044_Rgb", {"channel_names": {"0": "R", "1": "G", "2": "B"}}),
        ("Dataset045_Empty", {}),
        ("Dataset046_Unpaired", {"numTraining": 1}),
    ):
        for part in ("imagesTr", "labelsTr") if change else ("imagesTr",):
            (raw / name / part).mkdir(parents=True)
        (raw / name / "dataset.json").write_text(json.dumps(description | change))
    (raw / "Dataset046_Unpaired" / "imagesTr" / "lonely_0000.png").touch()
    benchmark.variables["nnUNet_raw"] = str(raw)
    grid = ["run", "-d", NUMBER, "--trainers", "Quick", "-device", "cpu", "--test-on", 43, 44, 45, 46, 998, NUMBER]
    output = benchmark.run(*grid, status=1)
    for problem in (
        r"labels .*'lesion': 1.* Dataset043_Lesions",
        r"channel_names .*'B'.* Dataset044_Rgb",
        r"Dataset046_Unpaired imagesTr: images without labels: lonely",
        r"Dataset043_Lesions imagesTr: .*_0000\.png",
        r"Dataset045_Empty .*labelsTr",
        r"--test-on 998: ",
        rf"--test-on: {NAME} .*--test-sets",
    ):
        assert re.search(problem, output), problem
    assert not list(benchmark.results.iterdir())


@pytest.mark.parametrize(
    "arguments, trainers, plans",
    [
        ("--trainers A B", ["A", "B"], ["nnUNetPlans"]),
        ("--trainers A --plans P Q", ["A"], ["P", "Q"]),
        ("--preset sizes", [f"nnUNetTrainerMambaMIS{size}" for size in ("_S", "", "_L")], ["nnUNetPlans"]),
        ("--preset sizes --plans P", [f"nnUNetTrainerMambaMIS{size}" for size in ("_S", "", "_L")], ["P"]),
    ],
)
def test_trainers_come_from_names_or_a_preset(arguments, trainers, plans):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    compared = _trainers_and_plans(parser.parse_args(["-d", "1", *arguments.split()]))
    assert tuple(map(list, compared)) == (trainers, plans)


@pytest.mark.parametrize(
    "arguments",
    ["--jobs 0", "--memory -1", "--seeds -1", "--slurm --jobs 2", "--gpus 0 -device cpu", "--epochs 5"],
)
def test_invalid_options_are_refused(capsys, arguments):
    assert main(["benchmark", "run", "-d", "1", "--trainers", "A", *arguments.split()]) == 1
    assert arguments.split()[0] in capsys.readouterr().err


def test_gpus_are_counted_among_the_visible_ones(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert make_slots(None, [0, 1]) == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert make_slots(None, [1]) == [{"CUDA_VISIBLE_DEVICES": "6"}]
    assert make_slots(3, None) == [{}, {}, {}]
