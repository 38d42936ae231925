"""U-Mamba as a control: the other Mamba network for nnU-Net, trained as its authors train it."""

from __future__ import annotations

from typing import Any, ClassVar

from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_mamba_mis.ops.memory import keep_freed_memory
from nnunet_mamba_mis.trainers.recipe import RecipeTrainer

NETWORK_CLASS = "nnunet_mamba_mis.architectures.umamba.UMamba"


class nnUNetTrainerUMambaBot(RecipeTrainer):
    """U-Mamba_Bot in 2D, with nnU-Net's optimiser and schedule, and the stages of a U-Net's plans.

    Raises:
        SystemExit: The configuration is not 2D, or its plans are not for one of nnU-Net's U-Nets.
    """

    planar_network = "U-Mamba"
    place: ClassVar[str] = "bottleneck"

    @classmethod
    def build_network_architecture(  # type: ignore[override]
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """Return the network for a 2D configuration; nnU-Net's inference calls this, too."""
        keep_freed_memory()
        return get_network_from_plans(
            NETWORK_CLASS,
            cls.network_arguments(configuration_manager),
            configuration_manager.network_arch_init_kwargs_req_import,
            num_input_channels,
            num_output_channels,
            deep_supervision=enable_deep_supervision,
        )

    @classmethod
    def network_arguments(cls, configuration_manager: ConfigurationManager) -> dict[str, Any]:
        """Return keyword arguments of `UMamba`, in the form that plans have."""
        arguments = dict(configuration_manager.network_arch_init_kwargs)
        # plans for nnU-Net's plain U-Net count convolutions; plans for its residual U-Nets count blocks
        blocks = arguments.pop("n_conv_per_stage", arguments.get("n_blocks_per_stage"))
        if blocks is None:
            raise SystemExit(
                f"{cls.__name__} takes its stages from plans for nnU-Net's U-Nets, but these plans are for "
                f"{configuration_manager.network_arch_class_name}: use -p nnUNetPlans"
            )
        return arguments | {"n_blocks_per_stage": blocks, "place": cls.place}

    def on_train_start(self) -> None:
        """Start training, and log which backend computes the scans."""
        super().on_train_start()
        self.log_scan_backend("mamba")


class nnUNetTrainerUMambaEnc(nnUNetTrainerUMambaBot):
    """U-Mamba_Enc in 2D: like nnUNetTrainerUMambaBot, with a Mamba layer after every stage of the encoder."""

    place = "encoder"
