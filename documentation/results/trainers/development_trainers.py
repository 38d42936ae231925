"""Candidates for the recipe, on development data: 6 epochs of 250 iterations (documentation/explanation/recipe.md)."""

from typing import Any, ClassVar

from nnunet_mamba_mis import trainers


class _Development:
    epochs, validation_iterations_per_epoch = 6, 10


class Dev_unet(_Development, trainers.nnUNetTrainerAdamW1e3):
    """nnU-Net's network with the default recipe."""


class Dev_unet_average(Dev_unet):
    """nnU-Net's network with averaged weights."""

    ema_decay = 0.99


class Dev_unet_muon(Dev_unet_average):
    """nnU-Net's network with Muon for convolutions, and averaged weights."""

    muon = True


class Dev_hybrid_muon(_Development, trainers.nnUNetTrainerMambaMIS_conv):
    """`_conv` as it is: Muon for convolutions, and averaged weights."""


class Dev_hybrid_muon_noSSM(_Development, trainers.nnUNetTrainerMambaMIS_conv_noSSM):
    """`_conv` with depthwise convolutions instead of scans."""


class Dev_hybrid_average(Dev_hybrid_muon):
    """The network of `_conv` with averaged weights, without Muon."""

    muon = False


class Dev_hybrid(Dev_hybrid_average):
    """The network of `_conv` with neither Muon nor averaged weights."""

    ema_decay = None


class Dev_conv(_Development, trainers.nnUNetTrainerMambaMIS):
    """B with the convolutional stem."""

    architecture: ClassVar[dict[str, Any]] = {"stem": "conv"}


class Dev_conv_colour(Dev_conv):
    """Brightness, contrast and gamma drawn once for all channels."""

    joint_colour = True


class Dev_conv_geometry(Dev_conv):
    """Stronger and more frequent changes of scale, and more frequent rotations."""

    scaling = (0.5, 2.0)
    p_scaling = p_rotation = 0.5


class Dev_conv_rate(Dev_conv):
    """Twice the learning rate, a warm-up, and cosine decay."""

    initial_lr = 2e-3
    warmup_epochs = 0.5
    schedule = "cosine"


class Dev_conv_average(Dev_conv):
    """B with the convolutional stem and averaged weights."""

    ema_decay = 0.99


class Dev_conv_average_colour(Dev_conv_average):
    """B with the convolutional stem, averaged weights, and colour changes drawn once for all channels."""

    joint_colour = True
