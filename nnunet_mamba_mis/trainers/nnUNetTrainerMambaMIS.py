"""nnU-Net trainers for Mamba-MIS, in each of its sizes."""

from __future__ import annotations

import os
from typing import Any, ClassVar

import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_mamba_mis.architectures import MambaMIS, deep_supervision_sizes
from nnunet_mamba_mis.nnunet.plans import Architecture
from nnunet_mamba_mis.nnunet.records import check_record
from nnunet_mamba_mis.ops.memory import keep_freed_memory
from nnunet_mamba_mis.trainers.cuda_graph import replay_training_passes
from nnunet_mamba_mis.trainers.network_record import NETWORK, network_record
from nnunet_mamba_mis.trainers.nnUNetTrainerAdamW1e3 import nnUNetTrainerAdamW1e3


class nnUNetTrainerMambaMIS(nnUNetTrainerAdamW1e3):
    """Mamba-MIS with nnU-Net's schedule, augmentation, loss and deep supervision, and AdamW.

    Variants set class attributes: `architecture` holds keyword arguments of `MambaMIS`. Omitted arguments come
    from plans of `mamba_mis plan`, then from the network's defaults (variant B).
    """

    architecture: ClassVar[dict[str, Any]] = {}
    planar_network = "Mamba-MIS"

    def initialize(self) -> None:
        """Initialize, and record the network in checkpoints for `mamba_mis export`."""
        super().initialize()
        self.optimizer.register_state_dict_post_hook(lambda _, state: state | {NETWORK: network_record(self.network)})

    # nnU-Net has a static method here, and calls it on the class or an instance; a class method knows the variant
    @classmethod
    def build_network_architecture(  # type: ignore[override]
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """Return the network for the patch size of a 2D configuration; nnU-Net's inference calls this, too."""
        keep_freed_memory()
        return MambaMIS(
            num_input_channels,
            num_output_channels,
            tuple(configuration_manager.patch_size),
            deep_supervision=enable_deep_supervision,
            **cls.network_arguments(configuration_manager),
        )

    @classmethod
    def network_arguments(cls, configuration_manager: ConfigurationManager) -> dict[str, Any]:
        """Return keyword arguments of `MambaMIS`: those in plans of `mamba_mis plan`, overridden by the trainer's."""
        return _planned(configuration_manager) | cls.architecture

    def _get_deep_supervision_scales(self) -> list[list[float]] | None:
        if not self.enable_deep_supervision:
            return None
        height, width = self.configuration_manager.patch_size
        return [[h / height, w / width] for h, w in deep_supervision_sizes((height, width))]

    def _do_i_compile(self) -> bool:
        """Compile only if nnUNet_compile is set: compiling takes minutes for this network, a CUDA graph seconds."""
        return "nnUNet_compile" in os.environ and super()._do_i_compile()

    def on_train_start(self) -> None:
        """Start training, and log which backend computes the scans and where this trainer overrides the plans."""
        if not self.was_initialized:
            self.initialize()
        if self.device.type == "cuda" and not self.is_ddp and "nnUNet_compile" not in os.environ:
            self._use_cuda_graph()  # before the data loaders start: their threads use CUDA
        super().on_train_start()
        self.log_scan_backend(self.network_arguments(self.configuration_manager).get("discretization", "zoh"))
        for name, planned in _planned(self.configuration_manager).items():
            chosen = self.architecture.get(name, planned)
            if chosen != planned:
                self.print_to_log_file(
                    f"Network: {name} {chosen}, set by {type(self).__name__}. The plans, with their patch and batch "
                    f"size, are for {name} {planned}: run mamba_mis plan for this network"
                )

    def _use_cuda_graph(self) -> None:
        """Make training steps replay a CUDA graph of the network; if that fails, log why."""
        shape = (self.batch_size, self.num_input_channels, *self.configuration_manager.patch_size)
        self.network.train()
        try:
            replay_training_passes(self.network, torch.zeros(shape, device=self.device))
        except RuntimeError as error:
            self.print_to_log_file(f"CUDA graph: not used, so that training steps are slower ({error})")
        else:
            self.print_to_log_file("CUDA graph: training steps replay one (nnUNet_compile=false turns this off)")


def _planned(manager: ConfigurationManager) -> dict[str, Any]:
    """Return the keyword arguments of `MambaMIS` in the plans."""
    return check_record(manager.configuration["architecture"], Architecture, "plans: architecture").arguments


class nnUNetTrainerMambaMIS_S(nnUNetTrainerMambaMIS):
    """Mamba-MIS-S."""

    architecture: ClassVar[dict[str, Any]] = {"variant": "S"}


class nnUNetTrainerMambaMIS_L(nnUNetTrainerMambaMIS):
    """Mamba-MIS-L."""

    architecture: ClassVar[dict[str, Any]] = {"variant": "L"}


class nnUNetTrainerMambaMIS_demo(nnUNetTrainerMambaMIS):
    """Ten short epochs for `mamba_mis demo`: minutes on a laptop."""

    epochs = 10
    iterations_per_epoch = 50
    validation_iterations_per_epoch = 5
