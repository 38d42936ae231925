"""Plans, dataset.json and splits_final.json with which nnU-Net would fail with a traceback."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from nnunet_mamba_mis.trainers import nnUNetTrainerMambaMIS_S
from support.trainer_in_process import make_trainer


@pytest.fixture
def data(in_this_process, tmp_path) -> Path:
    """A copy of the preprocessed discs, whose files tests may change."""
    return Path(shutil.copytree(in_this_process, tmp_path / "preprocessed"))


@pytest.fixture
def split(data):
    """Return a function that returns the training and validation cases of fold 0 for a given splits_final.json."""

    def split(content: object) -> tuple[list[str], list[str]]:
        trainer = make_trainer(nnUNetTrainerMambaMIS_S, data)
        trainer.preprocessed_dataset_folder_base = str(data)
        trainer.preprocessed_dataset_folder = str(data / "nnUNetPlans_2d")
        (data / "splits_final.json").unlink(missing_ok=True)
        if content is not None:
            (data / "splits_final.json").write_text(json.dumps(content))
        return trainer.do_split()

    return split


@pytest.fixture
def cases(data) -> list[str]:
    return sorted(path.stem for path in (data / "nnUNetPlans_2d").glob("*.pkl"))


@pytest.mark.feature("Labels", "unusable splits end in one message")
@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"train": [], "val": []}, "valid array"),
        ([{"train": "case0", "val": ["case1"]}], r"0\.train"),
        ([{"train": [0], "val": [1]}], r"0\.train\.0"),
        ([{"train": ["nowhere"], "val": ["nowhere2"]}], "nowhere, nowhere2"),
        ([{"train": [], "val": ["nowhere"]}], "fold 0 needs"),
    ],
    ids=["dict", "text", "numbers", "other cases", "empty"],
)
def test_unusable_splits_are_one_line(split, content, named):
    with pytest.raises(SystemExit, match=f"splits_final.json.*{named}") as stopped:
        split(content)
    assert stopped.value.code.isprintable()


def test_splits_in_the_file_are_used(split, cases):
    fold = {"train": cases[1:], "val": cases[:1]}
    # other folds are not checked
    assert split([fold, {"train": ["nowhere"], "val": []}]) == (cases[1:], cases[:1])


def test_fold_that_the_file_lacks_is_drawn_by_nnunet(split, cases):
    train, validation = split([])
    assert sorted([*train, *validation]) == cases


def test_too_few_cases_for_five_folds_are_one_line(split, data, cases):
    assert set(split(None)[0]) < set(cases)
    for case in cases[4:]:
        for file in (data / "nnUNetPlans_2d").glob(f"{case}*"):
            file.unlink()
    with pytest.raises(SystemExit, match="fold all"):
        split(None)
    assert not (data / "splits_final.json").exists()


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("nnUNetPlans.json", "transpose_forward", "xyz"),
        ("dataset.json", "labels", {"polyp": "1"}),
        ("dataset.json", "channel_names", 3),
    ],
    ids=str,
)
def test_values_of_wrong_types_are_one_line(data, file, key, value):
    content = json.loads((data / file).read_text())
    (data / file).write_text(json.dumps(content | {key: value}))
    with pytest.raises(SystemExit, match=f"cannot be used: {key}") as stopped:
        make_trainer(nnUNetTrainerMambaMIS_S, data)
    assert stopped.value.code.isprintable()


@pytest.mark.parametrize(
    ("key", "value"), [("architecture", 3), ("architecture", {"arch_kwargs": []}), ("patch_size", "large")]
)
def test_values_of_wrong_types_in_a_configuration_are_one_line(data, key, value):
    with pytest.raises(SystemExit, match=rf"cannot be used: configurations\.2d\.{key}"):
        make_trainer(nnUNetTrainerMambaMIS_S, data, **{key: value})
