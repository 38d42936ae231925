"""Build U-Mamba from the arguments of nnU-Net's U-Net in a plan."""

from __future__ import annotations

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

from nnunet_mamba_mis import trainers
from nnunet_mamba_mis.architectures.umamba import UMamba

# nnU-Net's 2D plans for 320 × 320 images, as for the abdominal MRI dataset for which U-Mamba's numbers were published
PLAIN = {
    "n_stages": 7,
    "features_per_stage": [32, 64, 128, 256, 512, 512, 512],
    "conv_op": "torch.nn.modules.conv.Conv2d",
    "kernel_sizes": [[3, 3]] * 7,
    "strides": [[1, 1], *[[2, 2]] * 6],
    "n_conv_per_stage": [2] * 7,
    "n_conv_per_stage_decoder": [2] * 6,
    "conv_bias": True,
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
    "dropout_op": None,
    "dropout_op_kwargs": None,
    "nonlin": "torch.nn.LeakyReLU",
    "nonlin_kwargs": {"inplace": True},
}
TO_IMPORT = ["conv_op", "norm_op", "dropout_op", "nonlin"]


def make_umamba(
    place: str, arguments: dict, channels: int = 1, classes: int = 2, deep_supervision: bool = False
) -> UMamba:
    configuration = ConfigurationManager(
        {"architecture": {"network_class_name": "U-Net", "arch_kwargs": arguments, "_kw_requires_import": TO_IMPORT}}
    )
    trainer = {"bottleneck": trainers.nnUNetTrainerUMambaBot, "encoder": trainers.nnUNetTrainerUMambaEnc}[place]
    return trainer.build_network_architecture(None, configuration, channels, classes, deep_supervision)
