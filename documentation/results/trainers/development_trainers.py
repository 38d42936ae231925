"""Candidates for the recipe, on development data: 6 epochs of 250 iterations (documentation/explanation/recipe.md)."""

from nnunet_mamba_mis import trainers


class _Development:
    epochs, validation_iterations_per_epoch = 6, 10


class Dev_conv(_Development, trainers.nnUNetTrainerMambaMIS_conv):
    """The convolutional stem with the default recipe."""


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
    """Averaged weights."""

    ema_decay = 0.99


class Dev_conv_average_colour(Dev_conv_average):
    """Averaged weights, and colour changes drawn once for all channels."""

    joint_colour = True
