"""Epochs in nnU-Net's training logs, even in logs that are cut off."""

from __future__ import annotations

import math
import os

import pytest

from nnunet_mamba_mis.nnunet.logs import Epoch, EpochReader, read_epochs, read_training_logs

LOG = """
2026-01-01 10:00:00.000000: Epoch {number}
2026-01-01 10:00:00.100000: Current learning rate: 0.01
2026-01-01 10:00:09.000000: train_loss -0.5
2026-01-01 10:00:09.100000: val_loss 1e-05
2026-01-01 10:00:09.200000: Pseudo dice [{dice}]
2026-01-01 10:00:10.000000: Epoch time: 10.25 s
"""


@pytest.mark.parametrize(
    "dice, classes",
    [("0.5", [0.5]), ("np.float32(0.5), np.float32(nan)", [0.5, math.nan]), ("np.float64(1e-05), 0", [1e-5, 0])],
)
def test_every_class_has_a_pseudo_dice(dice, classes):
    (epoch,) = read_epochs(LOG.format(number=7, dice=dice).splitlines())
    assert (epoch.number, epoch.train_loss, epoch.val_loss, epoch.seconds) == (7, -0.5, 1e-5, 10.25)
    assert epoch.pseudo_dices == pytest.approx(classes, nan_ok=True) and epoch.pseudo_dice == classes[0]


def test_interrupted_epoch_leaves_nothing_to_the_next():
    cut = LOG.format(number=3, dice="0.1").splitlines()[:-2]
    resumed = LOG.format(number=2, dice="0.9").splitlines()
    reader = EpochReader()
    assert list(reader.read(cut)) == [] and reader.epochs_done == 3
    assert list(reader.read(resumed)) == [Epoch(2, -0.5, 1e-5, (0.9,), 10.25)]
    assert reader.epochs_done == 3
    assert list(reader.read(resumed[:2] + resumed[-1:])) == []


def test_logs_of_a_fold_are_read_in_the_order_they_were_written(tmp_path):
    for number, (name, time) in enumerate({"2026_1_1_9_00_00": 1, "2026_1_1_10_00_00": 2}.items()):
        file = tmp_path / f"training_log_{name}.txt"
        file.write_text(LOG.format(number=number, dice="0.5"))
        os.utime(file, (time, time))
    assert [epoch.number for epoch in read_training_logs(tmp_path)] == [0, 1]
