"""Trainers that comparison.sh uses, and that neither nnU-Net nor this package provides."""

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_mamba_mis import trainers


class nnUNetTrainer_25epochs(nnUNetTrainer):
    """nnU-Net's own network and optimizer (SGD), for 25 epochs: nnU-Net has no trainer of this length."""

    def __init__(self, plans: dict, configuration: str, fold: int, dataset_json: dict, device):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = 25
        self.save_every = 1  # nnU-Net's 50 would lose an interrupted run


class nnUNetTrainerAdamW1e3_muon_25epochs(trainers.nnUNetTrainerAdamW1e3):
    """nnU-Net's network with the recipe of `_conv`: Muon for convolutions, AdamW for the rest, averaged weights."""

    epochs = 25
    muon = True
    ema_decay = 0.99


class nnUNetTrainerAdamW1e3_muon_250epochs(nnUNetTrainerAdamW1e3_muon_25epochs):
    """`nnUNetTrainerAdamW1e3_muon_25epochs` for 250 epochs."""

    epochs = 250
