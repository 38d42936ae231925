"""Build the networks of a trained model's folds, and load their weights."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import nn

from nnunet_mamba_mis.nnunet.checkpoint import Network, on_one_line
from nnunet_mamba_mis.nnunet.lookup import find_trainer, overrides
from nnunet_mamba_mis.nnunet.model_folder import planned, read_fold
from nnunet_mamba_mis.nnunet.plans import NETWORK_CLASS
from nnunet_mamba_mis.prediction.model import Model, ModelConfiguration
from nnunet_mamba_mis.utils.errors import UserError


class Networks(NamedTuple):
    """Networks in evaluation mode on the CPU.

    Args:
        folds: One network per fold.
        configuration: Configuration that the networks were trained with.
        mirror_axes: Axes of images (H, W) that training mirrored.
    """

    folds: list[nn.Module]
    configuration: ModelConfiguration
    mirror_axes: tuple[int, ...]


def load_networks(model: Model, folds: Sequence[int | str]) -> Networks:
    """Load the checkpoints of folds, without running any code that they may contain.

    Raises:
        UserError: A checkpoint is missing or unusable, or this package does not support the model.
    """
    checkpoints = [read_fold(model.folder, fold) for fold in folds]
    first = checkpoints[0]
    configuration = planned(model.folder, model.plans, first.init_args.configuration, ModelConfiguration)
    model.check_configuration(configuration)
    axes = first.inference_allowed_mirroring_axes or ()
    if not set(axes) <= {0, 1}:
        raise UserError(
            f"{model.folder}: the checkpoint of fold {folds[0]} has mirror axes {axes}, but an image has only "
            "axes 0 and 1: use a 2D model"
        )
    networks = [_network(model, configuration, *pair) for pair in zip(folds, checkpoints, strict=True)]
    return Networks(networks, configuration, axes)


def _network(model: Model, configuration: ModelConfiguration, fold: int | str, checkpoint: Network) -> nn.Module:
    try:
        # nnU-Net prints while it looks for trainers
        with contextlib.redirect_stdout(io.StringIO()):
            network = _build(model, configuration, checkpoint)
    except Exception as error:  # third-party trainers, third-party networks and the plans can raise anything
        raise UserError(
            f"{model.folder}: the network of {on_one_line(checkpoint.trainer_name)} cannot be built: "
            f"{type(error).__name__}: {on_one_line(str(error))}"
        ) from None
    try:
        network.load_state_dict(checkpoint.network_weights)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()
        raise UserError(
            f"{model.folder}: the weights of fold {fold} do not fit the network of "
            f"{on_one_line(checkpoint.trainer_name)}: {on_one_line(first)}"
        ) from None
    return network.eval()


def _build(model: Model, configuration: ModelConfiguration, checkpoint: Network) -> nn.Module:
    """Build the network that the checkpoint records; without a record, build the network of the plans or trainer."""
    channels = model.channels, model.dataset.heads
    record = checkpoint.optimizer_state.network if checkpoint.optimizer_state else None
    if record is not None and record.name == NETWORK_CLASS:
        from nnunet_mamba_mis.architectures import MambaMIS

        expected = (*channels, configuration.patch_size)
        recorded = MambaMIS(**record.arguments | {"deep_supervision": False})
        if (recorded.input_channels, recorded.arguments["num_classes"], recorded.patch_size) != expected:
            raise ValueError("plans.json or dataset.json changed after training: restore both as they were in training")
        return recorded
    if configuration.network_class and not overrides(checkpoint.trainer_name, "build_network_architecture"):
        return _planned_network(configuration.architecture.as_json(), *channels)
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(model.plans.as_json())
    trainer = find_trainer(checkpoint.trainer_name)
    return trainer.build_network_architecture(
        manager,
        manager.get_configuration(checkpoint.init_args.configuration),
        *channels,
        enable_deep_supervision=False,
    )


def _planned_network(architecture: dict[str, Any], inputs: int, outputs: int) -> nn.Module:
    """Build the network as nnU-Net's default trainer does."""
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    return get_network_from_plans(
        architecture["network_class_name"],
        architecture["arch_kwargs"],
        architecture["_kw_requires_import"],
        inputs,
        outputs,
        allow_init=False,
        deep_supervision=False,
    )
