"""nnU-Net's own trainer for 25 epochs, as nnU-Net lacks this length; trainers of this package have every length."""

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class nnUNetTrainer_25epochs(nnUNetTrainer):
    """nnU-Net's own network and optimizer (SGD)."""

    def __init__(self, plans: dict, configuration: str, fold: int, dataset_json: dict, device):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = 25
        self.save_every = 1  # nnU-Net's 50 would lose an interrupted run
