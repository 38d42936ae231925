"""A user's trainer in a folder of nnUNet_extTrainer."""

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class TrainerOfTheUser(nnUNetTrainer):
    """nnU-Net's own trainer under another name."""
