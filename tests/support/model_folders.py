"""Write folders of untrained models: the trainer's network with seeded weights that predict all classes.

performance/prediction.py uses this module too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunet_mamba_mis.nnunet.lookup import find_trainer
from nnunet_mamba_mis.trainers.network_record import network_record

OURS = "nnUNetTrainerMambaMIS"
_RESAMPLING = {"is_seg": False, "order_z": 0, "force_separate_z": None}


def plain_unet(patch_size: tuple[int, int], most_features: int = 512, first: int = 32) -> dict[str, Any]:
    """Return the entry for nnU-Net's own network that plans have for a patch size."""
    stages = max(2, min(side.bit_length() for side in patch_size) - 2)
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": [min(most_features, first * 2**stage) for stage in range(stages)],
            "conv_op": "torch.nn.modules.conv.Conv2d",
            "kernel_sizes": [[3, 3]] * stages,
            "strides": [[1, 1], *[[2, 2]] * (stages - 1)],
            "n_conv_per_stage": [2] * stages,
            "n_conv_per_stage_decoder": [2] * (stages - 1),
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


@dataclass
class UntrainedModel:
    """An untrained model to write.

    Args:
        trainer: Name of a trainer of this package or of nnU-Net.
        channels: Number of image channels.
        labels: Labels as in dataset.json.
        patch_size: Patch size of the network.
        file_ending: File ending of images and label maps.
        reader: Name of nnU-Net's reader.
        folds: Folds to write, each with its own weights.
        dataset: Further entries of dataset.json.
        plans: Further entries of the plans.
        configuration: Further entries of the configuration.
    """

    trainer: str = OURS
    channels: int = 3
    labels: dict[str, Any] = field(default_factory=lambda: {"background": 0, "polyp": 1})
    patch_size: tuple[int, int] = (32, 32)
    file_ending: str = ".png"
    reader: str = "NaturalImage2DIO"
    folds: Sequence[int | str] = (0,)
    dataset: dict[str, Any] = field(default_factory=dict)
    plans: dict[str, Any] = field(default_factory=dict)
    configuration: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> Path:
        """Write the model and return its folder."""
        numbers = [str(channel) for channel in range(self.channels)]
        dataset = {
            "channel_names": {number: f"channel{number}" for number in numbers},
            "labels": self.labels,
            "numTraining": 5,
            "file_ending": self.file_ending,
            **self.dataset,
        }
        intensities = {"max": 255, "mean": 100, "median": 100, "min": 0, "percentile_00_5": 0, "percentile_99_5": 255}
        configuration = {
            "data_identifier": "nnUNetPlans_2d",
            "preprocessor_name": "DefaultPreprocessor",
            "batch_size": 2,
            "patch_size": list(self.patch_size),
            "spacing": [1.0, 1.0],
            "normalization_schemes": ["ZScoreNormalization"] * self.channels,
            "use_mask_for_norm": [False] * self.channels,
            "resampling_fn_data": "resample_data_or_seg_to_shape",
            "resampling_fn_data_kwargs": _RESAMPLING | {"order": 3},
            "resampling_fn_seg": "resample_data_or_seg_to_shape",
            "resampling_fn_seg_kwargs": _RESAMPLING | {"is_seg": True, "order": 1},
            "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
            "resampling_fn_probabilities_kwargs": _RESAMPLING | {"order": 1},
            "architecture": plain_unet(self.patch_size, 32, 8),
            "batch_dice": True,
            **self.configuration,
        }
        plans = {
            "dataset_name": "Dataset099_Untrained",
            "plans_name": "nnUNetPlans",
            "image_reader_writer": self.reader,
            "transpose_forward": [0, 1, 2],
            "transpose_backward": [0, 1, 2],
            "configurations": {"2d": configuration},
            "experiment_planner_used": "ExperimentPlanner",
            "label_manager": "LabelManager",
            "foreground_intensity_properties_per_channel": dict.fromkeys(numbers, intensities | {"std": 50}),
            **self.plans,
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "dataset.json").write_text(json.dumps(dataset))
        (folder / "plans.json").write_text(json.dumps(plans))
        for number, fold in enumerate(self.folds):
            self._write_fold(folder / f"fold_{fold}", plans, dataset, number)
        return folder

    def _write_fold(self, folder: Path, plans: dict[str, Any], dataset: dict[str, Any], seed: int) -> None:
        torch.manual_seed(seed)
        manager = PlansManager(plans)
        heads = manager.get_label_manager(dataset).num_segmentation_heads
        network = find_trainer(self.trainer).build_network_architecture(
            manager, manager.get_configuration("2d"), self.channels, heads, enable_deep_supervision=True
        )
        _vary(network, torch.randn(2, self.channels, *self.patch_size))
        checkpoint = {
            "network_weights": network.state_dict(),
            "trainer_name": self.trainer,
            "init_args": {"configuration": "2d"},
            "inference_allowed_mirroring_axes": (0, 1),
            "optimizer_state": {"network": network_record(network)},
        }
        folder.mkdir(exist_ok=True)
        torch.save(checkpoint, folder / "checkpoint_final.pth")


@torch.no_grad()
def _vary(network: nn.Module, images: torch.Tensor) -> None:
    """Change the last layer so that each class's logits have mean 0 and deviation 1, so all classes are predicted."""
    heads = network.decoder.seg_layers
    head = heads[0] if heads[0].in_channels <= heads[-1].in_channels else heads[-1]
    if len(head.weight) > 1:
        head.weight -= head.weight.mean(dim=0)
    deviation, mean = torch.std_mean(network(images)[0], dim=(0, 2, 3))
    head.weight *= (1 / deviation)[:, None, None, None]
    head.bias.copy_(1 / deviation * (head.bias - mean))
