"""nnU-Net's files, including missing and damaged ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nnunet_mamba_mis.nnunet.dataset import Dataset, Splits
from nnunet_mamba_mis.nnunet.plans import read_plans
from nnunet_mamba_mis.nnunet.records import read_record, read_record_if_usable
from nnunet_mamba_mis.nnunet.results import (
    Summary,
    fold_number,
    predicted_files,
    read_settings,
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
def test_fold_number_is_read_from_the_folders_name(tmp_path, name, number):
    assert fold_number(tmp_path / name) == number


def test_used_settings_override_inherited_plans(fold):
    configurations = {
        "2d": {"patch_size": [8, 8], "batch_size": 2, "spacing": [1, 1]},
        "small": {"batch_size": 4, "spacing": [2, 2], "inherits_from": "2d"},
    }
    (fold.parent / "plans.json").write_text(json.dumps({"configurations": configurations}))
    used = {"num_epochs": "50", "configuration_manager": str({"spacing": [3, 3]})}
    (fold / "debug.json").write_text(json.dumps(used))
    problems: list[str] = []
    settings = training_settings(fold, "small", problems)
    assert (settings["patch_size"], settings["batch_size"], settings["spacing"]) == ((8, 8), 4, (3, 3))
    assert settings["num_epochs"] == "50" and problems == []


@pytest.mark.parametrize("parent", ["small", "2d", "gone"])
def test_plans_that_inherit_from_nowhere_or_in_a_circle_are_named(tmp_path, parent):
    configurations = {"2d": {"inherits_from": "small"}, "small": {"inherits_from": parent}}
    (tmp_path / "plans.json").write_text(json.dumps({"configurations": configurations}))
    with pytest.raises(UserError, match=r"plans\.json cannot be read: configurations"):
        read_plans(tmp_path / "plans.json")


def test_plans_with_endless_inheritance_or_parent_folders_are_named(tmp_path):
    chain = {str(i): {"inherits_from": str(i + 1)} for i in range(5000)} | {"5000": {}}
    for configurations in (chain, {"2d": {"data_identifier": ".."}}):
        (tmp_path / "plans.json").write_text(json.dumps({"configurations": configurations}))
        with pytest.raises(UserError, match=r"plans\.json cannot be read: configurations"):
            read_plans(tmp_path / "plans.json")


@pytest.mark.parametrize(
    "content, problems",
    [(None, 0), ("{}", 0), ("{", 1), ("[1]", 1), ('{"num_epochs": "many"}', 1), ('{"configuration_manager": "(("}', 1)],
)
def test_informative_files_may_be_missing_or_broken(fold, content, problems):
    if content is not None:
        (fold / "debug.json").write_text(content)
    messages: list[str] = []
    assert read_settings(fold, messages).num_epochs is None
    assert len(messages) == problems and all(str(fold / "debug.json") in message for message in messages)
    assert "batch_size" not in training_settings(fold, "small", [])


@pytest.mark.parametrize(
    "content, dice",
    [('{"foreground_mean": {"Dice": 0.5}}', 0.5), ('{"foreground_mean": {"Dice": NaN}}', None), ("{}", None)],
)
def test_mean_dice_is_read_from_a_summary(fold, content, dice):
    (fold / "summary.json").write_text(content)
    assert read_record(fold / "summary.json", Summary).mean_dice == dice


@pytest.mark.parametrize("content", ["{", "[]", '{"metric_per_case": [1]}', '{"metric_per_case": null}', "\xff"])
def test_summary_that_lists_no_predictions_is_one_error(fold, content):
    (fold / "summary.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=str(fold / "summary.json")):
        predicted_files(fold / "summary.json")


def test_predictions_are_listed_by_name_without_their_folder(fold):
    (fold / "summary.json").write_text(json.dumps({"metric_per_case": [{"prediction_file": "/gone/a.png"}]}))
    assert predicted_files(fold / "summary.json") == ["a.png"]


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"\xef\xbb\xbf[]", b"\xff\xfe[]", b"\x00\x01", b"[" * 100_000, b"{}", b"[1]",
        b'[{"train": ["a"]}]', b'[{"train": ["a"], "val": "b"}]', b'[{"train": ["a"], "val": [1]}]',
    ],
    ids=lambda content: content[:30],
)  # fmt: skip
def test_unusable_file_is_named_in_one_line(tmp_path, content):
    path = tmp_path / "splits_final.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"^{path}") as error:
        read_record(path, Splits)
    assert "\n" not in str(error.value)


def test_missing_file_or_folder_in_its_place_is_named(tmp_path):
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(UserError, match=f"^{path} cannot be read"):
            read_record(path, Splits)
    assert read_record_if_usable(tmp_path / "none.json", Splits) is None


def described(tmp_path: Path, labels: object, **further: object) -> Dataset:
    content = {"labels": labels, "file_ending": ".png", "channel_names": {"0": "R"}, **further}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    return read_record(tmp_path / "dataset.json", Dataset)


REGIONS = {"background": 0, "whole": [1, 2], "core": [2]}
ACCEPTED = [
    ({"background": 0, "polyp": 1}, None),
    ({"background": "0", "polyp": "1"}, None),
    ({"background": 0, "polyp": 1.0}, None),
    ({"background": False, "polyp": True}, None),
    ({"background": 0, "polyp": [1]}, None),
    ({"background": 0, "polyp": ["1"]}, None),
    ({"background": 0, "void": 0, "polyp": 1, "lesion": 1}, None),
    ({"background": 0, "polyp": 1, "ignore": 2}, None),
    ({"background": 0, "polyp": 1, "ignore": None}, None),
    (REGIONS, [1, 2]),
    (REGIONS | {"core": 2, "ignore": 3}, [1, 2]),
    (REGIONS | {"whole": [1.0, 3]}, [1, 2]),
]
REFUSED = [
    ({"0": "background", "1": "polyp"}, None),
    ({"polyp": 1}, None),
    ({"background": 1, "polyp": 0}, None),
    ({"background": [0], "polyp": 1}, None),
    ({"background": 0, "polyp": "1.0"}, None),
    ({"background": 0, "polyp": None}, None),
    ({"background": 0, "polyp": 2}, None),  # nnU-Net's loss fails
    ({"background": 0, "polyp": 1, "ignore": "2"}, None),
    ({"background": 0, "polyp": 1, "ignore": 3}, None),
    (REGIONS, None),
    (REGIONS, [1]),
    (REGIONS, ["1", "2"]),
    (REGIONS | {"whole": ["1", "2"]}, [1, 2]),  # nnU-Net's training fails
    (REGIONS | {"core": "2"}, [1, 2]),
    (REGIONS | {"core": 2.0}, [1, 2]),
]


@pytest.mark.parametrize(("labels", "order"), ACCEPTED, ids=lambda value: json.dumps(value))
def test_labels_have_the_values_that_nnunet_gives_them(tmp_path, labels, order):
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    ours = described(tmp_path, labels, regions_class_order=order)
    theirs = LabelManager(labels, order)
    foreground = theirs.foreground_regions if theirs.has_regions else theirs.foreground_labels
    as_sets = [{label} if isinstance(label, int) else set(label) for label in ours.foreground.values()]
    expected = [set(np_label) if isinstance(np_label, tuple) else {int(np_label)} for np_label in foreground]
    assert sorted(map(sorted, as_sets)) == sorted(map(sorted, expected * (len(as_sets) // len(expected))))
    assert (ours.heads, ours.ignored, ours.has_regions) == (
        theirs.num_segmentation_heads, theirs.ignore_label, theirs.has_regions,
    )  # fmt: skip


@pytest.mark.parametrize(("labels", "order"), REFUSED, ids=lambda value: json.dumps(value))
def test_labels_that_nnunet_cannot_train_with_are_named(tmp_path, labels, order):
    with pytest.raises(UserError, match=r"dataset\.json cannot be read: (labels|regions_class_order)") as error:
        described(tmp_path, labels, regions_class_order=order)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("module", ["logs", "paths", "results", "dataset", "plans", "environment"])
def test_modules_about_files_import_neither_torch_nor_nnunet(module):
    code = f"import sys, nnunet_mamba_mis.nnunet.{module}; sys.exit(bool({{'torch', 'nnunetv2'}} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_help_does_not_import_pydantic():
    code = "import sys; from nnunet_mamba_mis.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    assert subprocess.run([sys.executable, "-c", code + "sys.exit('pydantic' in sys.modules)"]).returncode == 0
