"""Load a trained fold: its network, and a description sufficient to use it without nnU-Net."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_mamba_mis import __version__, trainers
from nnunet_mamba_mis.architectures import MambaMIS
from nnunet_mamba_mis.nnunet.checkpoint import RecordedNetwork
from nnunet_mamba_mis.nnunet.dataset import Dataset
from nnunet_mamba_mis.nnunet.model_folder import PlanarConfiguration, planned, read_fold, read_model_file
from nnunet_mamba_mis.nnunet.paths import DATASET_FILE
from nnunet_mamba_mis.nnunet.plans import NETWORK_CLASS, Plans
from nnunet_mamba_mis.nnunet.results import PLANS_FILE
from nnunet_mamba_mis.utils.errors import UserError


class TrainedFold(NamedTuple):
    """A network in evaluation mode on the CPU, and its JSON-serializable description."""

    network: MambaMIS
    description: dict[str, Any]


def load_fold(
    model: Path, fold: str, checkpoint: str = "checkpoint_final.pth", trainer: str | None = None
) -> TrainedFold:
    """Load a fold that `nnUNetv2_train` wrote, without running code of the checkpoint or of third-party trainers.

    Args:
        model: Folder with plans.json, dataset.json and the folds.
        fold: "0", "1", …, or "all".
        checkpoint: Name of the checkpoint in the fold's folder.
        trainer: Trainer of this package that builds the fold's network, for a checkpoint that does not record its
            network; default: the trainer that the checkpoint names. If the checkpoint records the network, the trainer
            must build the same network.

    Raises:
        UserError: A file is missing or broken, the network is not Mamba-MIS, or weights, plans or trainer contradict
            the recorded network.
    """
    plans, dataset = read_model_file(model / PLANS_FILE, Plans), read_model_file(model / DATASET_FILE, Dataset)
    path = model / f"fold_{fold}" / checkpoint
    trained = read_fold(model, fold, checkpoint, "-f and -chk")
    name = trained.init_args.configuration
    trained_with = _Trained(dataset, plans, planned(model, plans, name, PlanarConfiguration), name)
    record = trained.optimizer_state.network if trained.optimizer_state else None
    if record is None:
        builder = trainer or trained.trainer_name
        network, source = _build(builder, trained_with), f"built by {builder}; not recorded in the checkpoint"
    else:
        network, source = _build_recorded(record, path, trained_with), "recorded in the checkpoint"
        if trainer:
            _compare(network, _build(trainer, trained_with), path, trainer)
    try:
        network.load_state_dict(trained.network_weights)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()
        way_out = "the checkpoint is damaged" if record else "choose the right trainer with --architecture-of"
        raise UserError(f"the weights in {path} do not fit the network ({source}): {first:.200}; {way_out}") from None
    about: dict[str, Any] = {"trainer": trained.trainer_name, "configuration": name}
    about |= {"fold": fold, "checkpoint": checkpoint}
    about |= {"network": network.arguments, "network_source": source}
    about["mirror_axes"] = list(trained.inference_allowed_mirroring_axes or [])
    return TrainedFold(network.eval(), about | _describe(trained_with, network))


class _Trained(NamedTuple):
    """Dataset, plans and configuration that a fold was trained with."""

    dataset: Dataset
    plans: Plans
    planned: PlanarConfiguration
    configuration: str

    @property
    def channels(self) -> tuple[int, int]:
        """Number of channels of images and of logits."""
        return len(self.dataset.channel_names), self.dataset.heads


def _build(name: str, trained_with: _Trained) -> MambaMIS:
    """Build the network with a trainer of this package or, if `name` is another trainer, from the plans."""
    inputs, outputs = trained_with.channels
    trainer: Any = getattr(trainers, name, None)
    try:
        if _is_ours(trainer):
            manager = PlansManager(trained_with.plans.as_json())
            planned = manager.get_configuration(trained_with.configuration)
            return trainer.build_network_architecture(manager, planned, inputs, outputs, enable_deep_supervision=False)
        if arguments := trained_with.planned.architecture.arguments:
            return MambaMIS(inputs, outputs, trained_with.planned.patch_size, **arguments)
    except Exception as error:  # values of wrong types can raise anything
        key = f"configurations.{trained_with.configuration}.architecture"
        raise UserError(f"{PLANS_FILE}: no network can be built from {key}: {error!r:.200}") from None
    known = ", ".join(name for name in trainers.__all__ if _is_ours(getattr(trainers, name)))
    raise UserError(
        f"the fold was trained with {name}, which is not a Mamba-MIS trainer of this package, and export runs no code "
        f"of other trainers. If it derives from one of these, name that trainer with --architecture-of: {known}"
    )


def _is_ours(trainer: Any) -> bool:
    return isinstance(trainer, type) and issubclass(trainer, trainers.nnUNetTrainerMambaMIS)


def _build_recorded(record: RecordedNetwork, path: Path, trained_with: _Trained) -> MambaMIS:
    """Build the network that the checkpoint records, if it is Mamba-MIS and fits plans.json and dataset.json."""
    if record.name != NETWORK_CLASS:
        raise UserError(
            f"the network in {path} is {record.name}, which does not belong to this package: export runs no code of "
            f"other networks than {NETWORK_CLASS}"
        )
    inputs, outputs = trained_with.channels
    patch_size = list(trained_with.planned.patch_size)
    expected = {"input_channels": inputs, "num_classes": outputs, "patch_size": patch_size}
    if other := _differences({name: record.arguments.get(name) for name in expected}, expected):
        raise UserError(
            f"the network in {path} has {other} in plans.json and dataset.json, which changed after training: "
            "restore both files as they were in training"
        )
    try:
        return MambaMIS(**(record.arguments | {"deep_supervision": False}))
    except Exception as error:  # values of wrong types can raise anything
        raise UserError(
            f"nnunet-mamba-mis {__version__} cannot build the network in {path}: {error}. "
            "Install the version that the fold was trained with"
        ) from None


def _compare(network: MambaMIS, other: MambaMIS, path: Path, trainer: str) -> None:
    if difference := _differences(network.arguments, other.arguments):
        raise UserError(f"the network in {path} has {difference} in {trainer}: omit --architecture-of")


def _differences(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    return ", ".join(f"{name} {ours[name]!r}, but {theirs[name]!r}" for name in ours if ours[name] != theirs[name])


def _describe(trained_with: _Trained, network: MambaMIS) -> dict[str, Any]:
    """Describe the layout of images, the preprocessing and the meaning of the logits."""
    dataset, plans, planned, _ = trained_with
    description = dataset.as_json()
    return {
        "version": __version__,
        "dataset": plans.dataset_name,
        "patch_size": list(network.patch_size),
        "channel_names": dataset.channel_names,
        "normalization": _normalization(trained_with),
        "spacing": list(planned.spacing),
        "transpose_forward": list(plans.transpose_forward or ()) or None,
        "labels": description["labels"],
        # the label that each region's channel writes, in the order of channels
        "regions_class_order": description["regions_class_order"] if dataset.has_regions else None,
    }


def _normalization(trained_with: _Trained) -> list[dict[str, Any]]:
    """Return nnU-Net's scheme per channel, with the foreground intensities that CTNormalization needs."""
    intensities = trained_with.plans.foreground_intensity_properties_per_channel or {}
    schemes, inside = trained_with.planned.normalization_schemes, trained_with.planned.use_mask_for_norm
    channels = len(trained_with.dataset.channel_names)
    numbers = {str(channel) for channel in range(channels)}
    if not (len(schemes) == len(inside) == channels and numbers <= intensities.keys()):
        raise UserError(
            f"{PLANS_FILE}: normalization_schemes, use_mask_for_norm and foreground_intensity_properties_per_channel "
            f"need one entry for each of the {channels} channels in {DATASET_FILE}: restore both files as they were in "
            "training"
        )
    return [
        {"scheme": scheme, "only_inside_nonzero": inside[channel], "intensities": intensities[str(channel)]}
        for channel, scheme in enumerate(schemes)
    ]
