"""Trainers with 10 epochs of 20 iterations, for a comparison that takes an hour on two CPU cores."""

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_mamba_mis import trainers

EPOCHS, ITERATIONS, VALIDATION_ITERATIONS = 10, 20, 4


class nnUNetTrainer_short(nnUNetTrainer):
    """nnU-Net's own network and optimizer (SGD)."""

    def __init__(self, plans: dict, configuration: str, fold: int, dataset_json: dict, device):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.num_iterations_per_epoch = EPOCHS, ITERATIONS
        self.num_val_iterations_per_epoch = VALIDATION_ITERATIONS


class _Short:
    epochs, iterations_per_epoch, validation_iterations_per_epoch = EPOCHS, ITERATIONS, VALIDATION_ITERATIONS


class nnUNetTrainerAdamW1e3_short(_Short, trainers.nnUNetTrainerAdamW1e3):
    """nnU-Net's network with the optimizer of Mamba-MIS."""


class nnUNetTrainerMambaMIS_short(_Short, trainers.nnUNetTrainerMambaMIS):
    """Mamba-MIS."""


class nnUNetTrainerMambaMIS_noSSM_short(_Short, trainers.nnUNetTrainerMambaMIS_noSSM):
    """Mamba-MIS with depthwise convolutions instead of scans."""
