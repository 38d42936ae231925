"""The paper's own recipe."""

from __future__ import annotations

from typing import Any, ClassVar

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from nnunet_mamba_mis.trainers.adamw import fused_adamw
from nnunet_mamba_mis.trainers.nnUNetTrainerMambaMIS import nnUNetTrainerMambaMIS

PATCH_SIZE = (256, 256)


class nnUNetTrainerMambaMIS_paper(nnUNetTrainerMambaMIS):
    """Variant B as in Wen et al.: 256×256, batch 32, 300 epochs, AdamW with a cyclic cosine, no deep supervision.

    The loss is nnU-Net's Dice plus cross entropy in equal parts, which for two classes is Dice plus BCE. Weight decay
    applies to all parameters. Augmentation and sampling are nnU-Net's, as the paper specifies neither.

    Raises:
        SystemExit: The plans have another patch size.
    """

    architecture: ClassVar[dict[str, Any]] = {"variant": "B", "stem": "patch"}
    epochs = 300
    recipe_batch_size: ClassVar[int] = 32

    def initialize(self) -> None:
        """Initialize with the paper's batch size, and with a loss at full resolution only."""
        self.enable_deep_supervision = False
        self.configuration_manager.configuration["batch_size"] = self.recipe_batch_size
        super().initialize()

    @classmethod
    def network_arguments(cls, configuration_manager: ConfigurationManager) -> dict[str, Any]:
        """Return keyword arguments of `MambaMIS`, for the paper's patch size only."""
        patch_size = tuple(configuration_manager.patch_size)
        if patch_size != PATCH_SIZE:
            raise SystemExit(
                f"{cls.__name__} needs patches of 256 × 256, as in the paper, but the plans have {patch_size}: resize "
                "the images (mamba_mis convert --resize 256) and plan again, or set patch_size in a copy of the plans "
                "and select it with -p"
            )
        return super().network_arguments(configuration_manager)

    def configure_optimizers(self) -> tuple[Optimizer, LRScheduler]:
        """Return AdamW at 1e-3 with weight decay 0.01, and CosineAnnealingLR(T_max = 50, eta_min = 1e-5) per epoch."""
        groups = [{"params": list(self.network.parameters()), "weight_decay": self.weight_decay}]
        optimizer = fused_adamw(groups, self.initial_lr)
        return optimizer, CosineAnnealingLR(optimizer, T_max=50, eta_min=1e-5)
