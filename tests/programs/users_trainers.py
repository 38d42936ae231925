"""A trainer that a user has in a folder of nnUNet_extTrainer."""

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class TrainerOfTheUser(nnUNetTrainer):
    """nnU-Net's own under another name."""
