"""Whatever the state of untrusted files, a command succeeds, or fails with a short message and no traceback."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import pytest

from nnunet_mamba_mis.benchmark.evaluation.evaluate import evaluate_datasets
from nnunet_mamba_mis.benchmark.running.jobs import LOG
from nnunet_mamba_mis.cli.main import main
from nnunet_mamba_mis.utils.errors import UserError
from support.benchmark_results import CASES, FAR, OURS, SHAPES, Place, predicted, write_folds
from support.fingerprint import write_fingerprint
from support.hostile_files import damage_content, damage_values
from support.images import disc
from support.small_dataset import OTHER

PLANS = "nnUNetMambaMISPlans"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A planned dataset with a trained fold."""
    place = Place(tmp_path, [CASES[:1], CASES[1:2]])
    place.write_dataset({case: disc(*SHAPES[case]) for case in place.cases}, groups=[CASES[:2]])
    for name, value in place.variables.items():
        monkeypatch.setenv(name, value)
    write_folds(place, OURS, 1)
    (place.raw / "splits_final.json").write_bytes((place.preprocessed / "splits_final.json").read_bytes())
    write_fingerprint(place.preprocessed, [(1, 48, 64)] * 2, channels=3)
    return place


@pytest.fixture
def tested(place: Place) -> Place:
    """The folders of `place`, plus a predicted test set and finished jobs of `benchmark run`."""
    far = list(FAR)[:2]
    place.write_test_set(OTHER, "Tr", {case: disc(*FAR[case]) for case in far}, splits={"groups": [far]}, cases=[])
    folder = place.write_test(OURS, OTHER, "Tr", predicted(FAR, far, 1, 0))
    model = folder.parents[2]
    (place.raw.parent / OTHER / "dataset.json").write_bytes((place.raw / "dataset.json").read_bytes())
    (model / "dataset.json").write_bytes((place.raw / "dataset.json").read_bytes())
    for fold in model.glob("fold_*"):
        (fold / "checkpoint_final.pth").touch()
        (fold / "validation" / "summary.json").touch()
        (fold / LOG).touch()
    (folder / LOG).touch()
    listed = [{"prediction_file": f"{case}.png"} for case in far]
    (folder / "summary.json").write_text(json.dumps({"foreground_mean": {"Dice": 0.5}, "metric_per_case": listed}))
    return place


def assert_no_trace(capsys, arguments: list[str], path: Path, state: str, lines: int = 1) -> int:
    """Check that a command succeeds, or fails with at most `lines` lines of errors; return its status."""
    try:
        status = main(arguments)
    except BaseException as error:
        raise AssertionError(f"{path.name}, {state}") from error
    errors = capsys.readouterr().err
    assert "Traceback" not in errors, (path.name, state, errors)
    assert status == 0 or (status == 1 and 1 <= errors.count("\n") <= lines), (path.name, state, errors)
    return status


def states(path: Path, number: int) -> Iterator[str]:
    return chain(damage_content(path), damage_values(path, number, seed=0))


def model_folder(place: Place) -> Path:
    return place.results / place.name / f"{OURS}__nnUNetPlans__2d"


PLANNING: dict[str, Callable[[Place], Path]] = {
    "dataset.json": lambda place: place.raw / "dataset.json",
    "fingerprint": lambda place: place.preprocessed / "dataset_fingerprint.json",
    "splits": lambda place: place.raw / "splits_final.json",
    "copied splits": lambda place: place.preprocessed / "splits_final.json",
    "plans": lambda place: place.preprocessed / f"{PLANS}.json",
}


@pytest.mark.slow
@pytest.mark.parametrize("which", PLANNING)
def test_planning_accepts_files_or_names_them(place, capsys, which):
    description = json.loads((place.raw / "dataset.json").read_text())
    # list the images, so that nnU-Net does not start twelve processes to find them
    listed = {case: {"images": [f"imagesTr/{case}_0000.png"], "label": f"labelsTr/{case}.png"} for case in place.cases}
    (place.raw / "dataset.json").write_text(json.dumps(description | {"dataset": listed}))
    arguments = ["plan", "-d", "7"]
    assert main(arguments) == 0
    path = PLANNING[which](place)
    statuses = [assert_no_trace(capsys, arguments, path, state) for state in states(path, 15)]
    assert 1 in statuses
    assert main(arguments) == 0


REPORT: dict[str, Callable[[Place], Path]] = {
    "dataset.json": lambda place: place.preprocessed / "dataset.json",
    "splits": lambda place: place.preprocessed / "splits_final.json",
    "conversion": lambda place: place.raw / "conversion_report.json",
    "summary": lambda place: model_folder(place) / "fold_0" / "validation" / "summary.json",
    "plans": lambda place: model_folder(place) / "plans.json",
    "settings": lambda place: model_folder(place) / "fold_0" / "debug.json",
}


@pytest.mark.slow
@pytest.mark.parametrize("which", REPORT)
def test_report_accepts_files_or_names_them(tested, capsys, which):
    path = REPORT[which](tested)
    for state in states(path, 10):  # without the pictures, which take most of the time
        try:
            evaluate_datasets(["7"], [tested.results], None, 2.0, 1, None)
        except UserError as error:
            assert "\n" not in str(error) or which == "summary", (state, str(error))
        except Exception as error:
            raise AssertionError(f"{path.name}, {state}") from error
    arguments = ["benchmark", "report", "-d", "7", "-o", str(tested.root / "report"), "--no-overlays"]
    damaged = damage_values(path, 1, seed=1)
    assert_no_trace(capsys, arguments, path, next(damaged))
    list(damaged)
    path.write_text("{")
    status = assert_no_trace(capsys, arguments, path, "{")
    if status == 0:  # the report is complete without the file, and names it
        assert str(path) in (tested.root / "report" / "report.md").read_text()


RUN = {name: PLANNING[name] for name in ("copied splits",)} | {
    "dataset.json": lambda place: place.preprocessed / "dataset.json",
    "another dataset.json": lambda place: place.raw.parent / OTHER / "dataset.json",
    "plans": lambda place: place.preprocessed / "nnUNetPlans.json",
}


@pytest.mark.slow
@pytest.mark.parametrize("which", RUN)
def test_grid_accepts_files_or_names_them(tested, capsys, which):
    data = tested.preprocessed / "nnUNetPlans_2d"
    data.mkdir()
    (data / "case0.b2nd").touch()
    planned = {"2d": {"data_identifier": data.name, "patch_size": [8, 8]}, "big": {"inherits_from": "2d"}}
    (tested.preprocessed / "nnUNetPlans.json").write_text(
        json.dumps({"plans_name": "nnUNetPlans", "configurations": planned})
    )
    arguments = ["benchmark", "run", "-d", "7", "--trainers", OURS, "--folds", "0", "--dry-run", "--test-on", OTHER]
    arguments += ["-device", "cpu", "-c", "big"]
    assert main(arguments) == 0
    path = RUN[which](tested)
    statuses = [assert_no_trace(capsys, arguments, path, state, lines=9) for state in states(path, 10)]
    assert 1 in statuses


STATUS = {
    **{name: REPORT[name] for name in ("summary", "plans", "settings")},
    "model's dataset.json": lambda place: model_folder(place) / "dataset.json",
    "summary of a test": lambda place: next(model_folder(place).glob("test_folds*/*/*/summary.json")),
}


@pytest.mark.slow
@pytest.mark.parametrize("which", STATUS)
def test_status_accepts_files_or_names_them(tested, capsys, which):
    path = STATUS[which](tested)
    statuses = [assert_no_trace(capsys, ["benchmark", "status"], path, state) for state in states(path, 30)]
    assert set(statuses) == {0}


@pytest.mark.parametrize(
    "name", ["training_log_2026_1_1_00_00_00.txt", "benchmark.lock", "benchmark.slurm", "benchmark.log"]
)
def test_status_accepts_text_in_any_state(tested, capsys, name):
    path = model_folder(tested) / "fold_0" / name
    texts = [
        b"", bytes(range(256)), b"\xff\xfe", b"host 0\n", b"host -1\n", b"host 99999999999999999999\n", b"a b c\n",
        b"Epoch 99999999999999999999\ntrain_loss 1\nval_loss nan\nPseudo dice [nan]\nEpoch time: 1e999 s\n",
        b"Epoch 1\ntrain_loss 1\nval_loss nan\nPseudo dice [1e999]\nEpoch time: nan s\n",
        b"9" * 10_000,
    ]  # fmt: skip
    for text in texts:
        path.write_bytes(text)
        assert assert_no_trace(capsys, ["benchmark", "status"], path, repr(text[:50])) == 0
    path.unlink()
    path.mkdir()
    assert assert_no_trace(capsys, ["benchmark", "status"], path, "folder") == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "numbers",
    ["999999999 1e308 -1e308 1e308 1e8", "1 nan inf 1e999 1", "2 1e-320 -inf nan 0"],
    ids=["huge", "nan", "tiny"],
)
def test_report_draws_logs_with_any_numbers(tested, capsys, numbers):
    epoch, train, validation, dice, seconds = numbers.split()
    path = model_folder(tested) / "fold_0" / "training_log_2026_1_1_00_00_00.txt"
    lines = [f"Epoch {epoch}", f"train_loss {train}", f"val_loss {validation}", f"Pseudo dice [{dice}]"]
    path.write_text("\n".join([*lines, f"Epoch time: {seconds} s", ""]))
    for arguments in (["report", "-d", "7", "-o", str(tested.root / "report"), "--no-overlays"], ["status"]):
        assert assert_no_trace(capsys, ["benchmark", *arguments], path, numbers) == 0
