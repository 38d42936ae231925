"""What nnU-Net's folders of results say, whatever state they are in."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from nnunet_mamba_mis.nnunet.results import (
    fold_number,
    mean_dice,
    planned_epochs,
    predicted_files,
    read_first_json,
    read_json,
    training_settings,
)
from nnunet_mamba_mis.utils.errors import UserError


@pytest.fixture
def fold(tmp_path):
    """The folder of a fold of a model."""
    folder = tmp_path / "T__P__small" / "fold_3"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("name, number", [("fold_0", 0), ("fold_12", 12), ("fold_all", None), ("3", None)])
def test_fold_has_the_number_of_its_folder(tmp_path, name, number):
    assert fold_number(tmp_path / name) == number


def test_settings_come_from_inherited_plans_and_are_overridden_by_what_was_used(fold):
    configurations = {
        "2d": {"patch_size": [8, 8], "batch_size": 2, "spacing": [1, 1], "inherits_from": "small"},
        "small": {"batch_size": 4, "spacing": [2, 2], "inherits_from": "2d"},
    }
    (fold.parent / "plans.json").write_text(json.dumps({"configurations": configurations}))
    used = {"num_epochs": "50", "configuration_manager": str({"spacing": [3, 3]})}
    (fold / "debug.json").write_text(json.dumps(used))
    settings = training_settings(fold, "small")
    assert (settings["patch_size"], settings["batch_size"], settings["spacing"]) == ([8, 8], 4, [3, 3])
    assert planned_epochs(fold) == 50


@pytest.mark.parametrize("content", [None, "{", "[1]", "{}", '{"num_epochs": "many"}'])
def test_what_only_describes_may_be_missing_or_broken(fold, content):
    if content is not None:
        (fold / "debug.json").write_text(content)
    assert planned_epochs(fold) is None
    assert "batch_size" not in training_settings(fold, "small")


@pytest.mark.parametrize(
    "content, dice",
    [
        ('{"foreground_mean": {"Dice": 0.5}}', 0.5),
        ('{"foreground_mean": {"Dice": NaN}}', None),
        ("{}", None),
        ("", None),
    ],
)
def test_dice_of_a_summary(fold, content, dice):
    (fold / "summary.json").write_text(content)
    assert mean_dice(fold / "summary.json") == dice


@pytest.mark.parametrize("content", ["{", "[]", '{"metric_per_case": [1]}', "\xff"])
def test_summary_that_lists_no_predictions_is_one_error(fold, content):
    (fold / "summary.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=str(fold / "summary.json")):
        predicted_files(fold / "summary.json")


def test_first_file_that_exists_is_read(tmp_path):
    (tmp_path / "b.json").write_text("[1]")
    assert read_first_json(tmp_path / name for name in ("a.json", "b.json")) == [1]
    assert read_first_json([tmp_path / "a.json"]) is None
    with pytest.raises(UserError, match=r"a\.json"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("module", ["logs", "paths", "results", "environment"])
def test_knowledge_of_files_costs_no_import_of_torch_or_nnunet(module):
    code = f"import sys, nnunet_mamba_mis.nnunet.{module}; sys.exit(bool({{'torch', 'nnunetv2'}} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
