"""nnU-Net's augmentation, changed by attributes of a trainer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.random import OneOfTransform, RandomTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoDA import nnUNetTrainerNoDA

from nnunet_mamba_mis.trainers import nnUNetTrainerMambaMIS
from nnunet_mamba_mis.trainers.augmentation import share_colour
from support.trainer_in_process import make_trainer

COLOUR = (MultiplicativeBrightnessTransform, ContrastTransform, GammaTransform)
SIZE = 64
# what nnU-Net passes to its augmentation: no deep supervision, mirroring along both axes
ARGUMENTS: tuple[Any, ...] = ((SIZE, SIZE), (-math.pi, math.pi), None, (0, 1), False)


def augmentation(preprocessed: Path, channels: int = 3, other: tuple[type, ...] = (), **attributes: object):
    """Return the augmentation of a trainer with these attributes, for PNG images."""
    kind = type("Augmented", (nnUNetTrainerMambaMIS, *other), attributes)
    trainer = make_trainer(kind, preprocessed)
    trainer.dataset_json["channel_names"] = {str(channel): f"channel{channel}" for channel in range(channels)}
    return trainer.get_training_transforms(*ARGUMENTS)


def always(transforms, *kinds: type):
    """Keep only transforms of some kinds, and apply each to every image."""
    inner = [part.transform if isinstance(part, RandomTransform) else part for part in transforms.transforms]
    transforms.transforms = [part for part in inner if isinstance(part, kinds)]
    return transforms


def augmented(transforms, image: torch.Tensor) -> torch.Tensor:
    return transforms(image=image.clone(), segmentation=torch.zeros(1, *image.shape[1:]))["image"]


@pytest.mark.feature("Recipe", "`joint_colour`: brightness, contrast and gamma of colour images drawn once")
@pytest.mark.parametrize(
    ("channels", "joint", "stays_grey"), [(3, True, True), (3, False, False), (2, True, False)], ids=str
)
def test_grey_stays_grey_if_colour_is_joint(in_this_process, channels, joint, stays_grey):
    transforms = always(augmentation(in_this_process, channels, joint_colour=joint), *COLOUR)
    assert len(transforms.transforms) == 4  # two of them change gamma
    grey = torch.randn(1, 8, 8).expand(channels, -1, -1)
    for _ in range(5):
        changed = augmented(transforms, grey)
        assert not torch.allclose(changed, grey)
        assert all(torch.equal(changed[0], channel) for channel in changed[1:]) == stays_grey


def test_colour_is_joint_within_every_kind_of_container():
    contrast = ContrastTransform((0.5, 2), preserve_range=False, synchronize_channels=False)
    brightness = MultiplicativeBrightnessTransform((0.5, 2), synchronize_channels=False)
    gamma = GammaTransform((0.5, 2), 0, synchronize_channels=False, p_per_channel=1, p_retain_stats=1)
    share_colour(OneOfTransform([contrast, RandomTransform(OneOfTransform([brightness, gamma]))]))
    assert all(transform.synchronize_channels for transform in (contrast, brightness, gamma))


@pytest.mark.feature("Recipe", "`rotation`, `scaling` and their probabilities")
def test_attributes_set_scaling_and_rotation(in_this_process):
    attributes = {"scaling": (2.0, 2.0), "p_scaling": 1, "rotation": 20, "p_rotation": 1}
    transforms = always(augmentation(in_this_process, **attributes), SpatialTransform)
    bar = torch.zeros(1, SIZE, SIZE)
    bar[:, 12:52, 28:36] = 1
    angles = []
    for _ in range(40):
        rows, columns = torch.nonzero(augmented(transforms, bar)[0] > 0.5, as_tuple=True)
        assert len(rows) == pytest.approx(40 * 8 / 2**2, rel=0.2)
        covariance = torch.cov(torch.stack([rows, columns]).float())
        angles.append(0.5 * math.degrees(math.atan2(2 * covariance[0, 1], covariance[0, 0] - covariance[1, 1])))
    assert 10 < max(angles) < 22 and -22 < min(angles) < -10


@pytest.mark.feature("Recipe", "`rotation`, `scaling` and their probabilities")
def test_probabilities_of_0_leave_the_image_unchanged(in_this_process):
    transforms = always(augmentation(in_this_process, p_scaling=0, p_rotation=0), SpatialTransform)
    image = torch.rand(3, SIZE, SIZE)
    assert all(torch.equal(augmented(transforms, image), image) for _ in range(20))


def test_augmentation_without_attributes_is_nnunets(in_this_process):
    assert str(augmentation(in_this_process)) == str(nnUNetTrainer.get_training_transforms(*ARGUMENTS))


@pytest.mark.parametrize(
    ("attributes", "named"),
    [({"joint_colour": True}, "MultiplicativeBrightnessTransform"), ({"rotation": 90}, "SpatialTransform")],
    ids=["colour", "geometry"],
)
def test_augmentation_without_the_transform_is_refused(in_this_process, attributes, named):
    with pytest.raises(SystemExit, match=named):
        augmentation(in_this_process, other=(nnUNetTrainerNoDA,), **attributes)
