"""A trained fold: its network, and what it takes to use it without nnU-Net."""

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
    """Network in evaluation mode on the CPU, and its description, which JSON can hold."""

    network: MambaMIS
    description: dict[str, Any]


def load_fold(
    model: Path, fold: str, checkpoint: str = "checkpoint_final.pth", trainer: str | None = None
) -> TrainedFold:
    """Load what `nnUNetv2_train` wrote. No code of the checkpoint or of strangers' trainers is run.

    Args:
        model: Folder with plans.json, dataset.json and the folds.
        fold: "0", "1", …, or "all".
        checkpoint: Name of the file in the fold's folder.
        trainer: Trainer of ours with the network that the fold has, for checkpoints that do not say what it is; by
            default the one that the checkpoint names. Where the checkpoint says it, the two must agree.

    Raises:
        UserError: A file is missing or broken, the network is not ours, or weights, plans or trainer contradict it.
    """
    plans, dataset = read_model_file(model / PLANS_FILE, Plans), read_model_file(model / DATASET_FILE, Dataset)
    path = model / f"fold_{fold}" / checkpoint
    trained = read_fold(model, fold, checkpoint, "-f and -chk")
    name = trained.init_args.configuration
    trained_with = _Trained(dataset, plans, planned(model, plans, name, PlanarConfiguration), name)
    record = trained.optimizer_state.network if trained.optimizer_state else None
    if record is None:
        theirs = trainer or trained.trainer_name
        network, source = _build(theirs, trained_with), f"as {theirs} has it; the checkpoint does not say"
    else:
        network, source = _build_recorded(record, path, trained_with), "as the checkpoint says"
        if trainer:
            _compare(network, _build(trainer, trained_with), path, trainer)
    try:
        network.load_state_dict(trained.network_weights)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()
        raise UserError(f"the weights in {path} do not fit the network {source}: {first:.200} ...") from None
    about: dict[str, Any] = {"trainer": trained.trainer_name, "configuration": name}
    about |= {"fold": fold, "checkpoint": checkpoint}
    about |= {"network": network.arguments, "network_source": source}
    about["mirror_axes"] = list(trained.inference_allowed_mirroring_axes or [])
    return TrainedFold(network.eval(), about | _describe(trained_with, network))


class _Trained(NamedTuple):
    """What a fold was trained on."""

    dataset: Dataset
    plans: Plans
    planned: PlanarConfiguration
    configuration: str

    @property
    def channels(self) -> tuple[int, int]:
        """Of images and of logits."""
        return len(self.dataset.channel_names), self.dataset.heads


def _build(name: str, trained_with: _Trained) -> MambaMIS:
    """The network as a trainer of ours has it, or the plans."""
    inputs, outputs = trained_with.channels
    trainer: Any = getattr(trainers, name, None)
    try:
        if _is_ours(trainer):
            manager = PlansManager(trained_with.plans.as_json())
            planned = manager.get_configuration(trained_with.configuration)
            return trainer.build_network_architecture(manager, planned, inputs, outputs, enable_deep_supervision=False)
        if arguments := trained_with.planned.architecture.arguments:
            return MambaMIS(inputs, outputs, trained_with.planned.patch_size, **arguments)
    except Exception as error:  # whatever values of other types lead to
        key = f"configurations.{trained_with.configuration}.architecture"
        raise UserError(f"{PLANS_FILE} has no network that can be built: {key}: {error!r:.200}") from None
    raise UserError(
        f"the fold was trained with {name}, which is not a trainer of Mamba-MIS in this package, and its code is not "
        "run. If it is derived from one, name that with --architecture-of, for example nnUNetTrainerMambaMIS_S; "
        "known are " + ", ".join(name for name in trainers.__all__ if _is_ours(getattr(trainers, name)))
    )


def _is_ours(trainer: Any) -> bool:
    return isinstance(trainer, type) and issubclass(trainer, trainers.nnUNetTrainerMambaMIS)


def _build_recorded(record: RecordedNetwork, path: Path, trained_with: _Trained) -> MambaMIS:
    """The network as the checkpoint says, if that is ours and what the plans beside it are for."""
    if record.name != NETWORK_CLASS:
        raise UserError(
            f"the network in {path} is {record.name}, which is not of this package, and its code is not run"
        )
    inputs, outputs = trained_with.channels
    patch_size = list(trained_with.planned.patch_size)
    beside = {"input_channels": inputs, "num_classes": outputs, "patch_size": patch_size}
    if other := _differences({name: record.arguments.get(name) for name in beside}, beside):
        raise UserError(
            f"the network in {path} has {other} in plans.json and dataset.json beside it: "
            "they were changed after training; put those of the training back"
        )
    try:
        return MambaMIS(**(record.arguments | {"deep_supervision": False}))
    except Exception as error:  # whatever values of other types lead to
        raise UserError(f"nnunet-mamba-mis {__version__} cannot build the network in {path}: {error}") from None


def _compare(network: MambaMIS, other: MambaMIS, path: Path, trainer: str) -> None:
    if difference := _differences(network.arguments, other.arguments):
        raise UserError(f"the network in {path} has {difference} in {trainer}: leave --architecture-of out")


def _differences(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    return ", ".join(f"{name} {ours[name]!r}, but {theirs[name]!r}" for name in ours if ours[name] != theirs[name])


def _describe(trained_with: _Trained, network: MambaMIS) -> dict[str, Any]:
    """Return the layout of images, the preprocessing and the meaning of the logits."""
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
        # of each region's channel, the label that it writes, in this order
        "regions_class_order": description["regions_class_order"] if dataset.has_regions else None,
    }


def _normalization(trained_with: _Trained) -> list[dict[str, Any]]:
    """For each channel, nnU-Net's scheme; CTNormalization needs the intensities of the training set's foreground."""
    intensities = trained_with.plans.foreground_intensity_properties_per_channel or {}
    schemes, inside = trained_with.planned.normalization_schemes, trained_with.planned.use_mask_for_norm
    channels = len(trained_with.dataset.channel_names)
    numbers = {str(channel) for channel in range(channels)}
    if not (len(schemes) == len(inside) == channels and numbers <= intensities.keys()):
        raise UserError(
            f"normalization_schemes, use_mask_for_norm and foreground_intensity_properties_per_channel in {PLANS_FILE} "
            f"are not of the {channels} channels in {DATASET_FILE}: put those of the training back"
        )
    return [
        {"scheme": scheme, "only_inside_nonzero": inside[channel], "intensities": intensities[str(channel)]}
        for channel, scheme in enumerate(schemes)
    ]
