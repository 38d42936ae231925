"""The paper's own recipe."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from nnunet_mamba_mis.trainers.nnUNetTrainerMambaMIS import nnUNetTrainerMambaMIS

PATCH_SIZE = (256, 256)


class nnUNetTrainerMambaMIS_paper(nnUNetTrainerMambaMIS):
    """B as Wen et al. trained it: 256×256, batch 32, 300 epochs, AdamW with a cosine that rises again, one loss.

    The loss is nnU-Net's Dice + cross entropy in equal parts; of two classes that is Dice + BCE. All parameters decay.
    Augmentation and sampling are nnU-Net's, as the paper names none.

    Raises:
        SystemExit: The plans have another patch size.
    """

    architecture: ClassVar[dict[str, Any]] = {"variant": "B", "stem": "patch"}
    epochs = 300
    recipe_batch_size: ClassVar[int] = 32

    def initialize(self) -> None:
        """As its base class, with the paper's batch size and a loss on the full resolution alone."""
        self.enable_deep_supervision = False
        self.configuration_manager.configuration["batch_size"] = self.recipe_batch_size
        super().initialize()

    @classmethod
    def network_arguments(cls, configuration_manager: ConfigurationManager) -> dict[str, Any]:
        """As its base class, for the paper's patch size only."""
        patch_size = tuple(configuration_manager.patch_size)
        if patch_size != PATCH_SIZE:
            raise SystemExit(
                f"{cls.__name__} is the paper's recipe at 256 × 256, but the plans have patches of {patch_size}: "
                "resize the images to 256 × 256 (mamba_mis convert --resize 256) and plan anew, or set patch_size in a "
                "copy of the plans and name it with -p"
            )
        return super().network_arguments(configuration_manager)

    def configure_optimizers(self) -> tuple[Optimizer, LRScheduler]:
        """AdamW at 1e-3 with weight decay 0.01; CosineAnnealingLR(T_max = 50, eta_min = 1e-5), stepped per epoch."""
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=self.initial_lr, weight_decay=self.weight_decay)
        return optimizer, CosineAnnealingLR(optimizer, T_max=50, eta_min=1e-5)
