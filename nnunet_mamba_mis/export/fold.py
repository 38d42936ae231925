"""A trained fold: its network, and what it takes to use it without nnU-Net."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_mamba_mis import __version__, trainers
from nnunet_mamba_mis.architectures import MambaMIS
from nnunet_mamba_mis.export.checkpoint import read_checkpoint
from nnunet_mamba_mis.nnunet.plans import NETWORK_CLASS, planned_architecture
from nnunet_mamba_mis.trainers.network_record import recorded_network
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
    plans, dataset = (_read_json(model / name, model) for name in ("plans.json", "dataset.json"))
    path = model / f"fold_{fold}" / checkpoint
    trained = read_checkpoint(path)
    manager = PlansManager(plans)
    configuration = trained["init_args"]["configuration"]
    if configuration not in manager.available_configurations:
        raise UserError(f"{model}/plans.json has no configuration {configuration!r}, which the checkpoint names")
    planned = manager.get_configuration(configuration)
    record = recorded_network(trained)
    if record is None:
        name = trainer or trained["trainer_name"]
        network, source = _build(name, manager, planned, dataset), f"as {name} has it; the checkpoint does not say"
    else:
        network, source = _build_recorded(record, path, manager, planned, dataset), "as the checkpoint says"
        if trainer:
            _compare(network, _build(trainer, manager, planned, dataset), path, trainer)
    try:
        network.load_state_dict(trained["network_weights"])
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()
        raise UserError(f"the weights in {path} do not fit the network {source}: {first:.200} ...") from None
    about = {"trainer": trained["trainer_name"], "configuration": configuration, "fold": fold, "checkpoint": checkpoint}
    about |= {"network": network.arguments, "network_source": source}
    about["mirror_axes"] = list(trained.get("inference_allowed_mirroring_axes") or [])
    return TrainedFold(network.eval(), about | _describe(manager, planned, dataset, network))


def _read_json(path: Path, model: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(
            f"there is no {path}: -m takes the folder that nnUNetv2_train made, "
            "nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def _build(name: str, manager: PlansManager, planned: ConfigurationManager, dataset: dict[str, Any]) -> MambaMIS:
    """The network as a trainer of ours has it, or the plans."""
    inputs, outputs = _channels(manager, planned, dataset)
    trainer: Any = getattr(trainers, name, None)
    if _is_ours(trainer):
        return trainer.build_network_architecture(manager, planned, inputs, outputs, enable_deep_supervision=False)
    if arguments := planned_architecture(planned.configuration):
        return MambaMIS(inputs, outputs, tuple(planned.patch_size), **arguments)
    raise UserError(
        f"the fold was trained with {name}, which is not a trainer of Mamba-MIS in this package, and its code is not "
        "run. If it is derived from one, name that with --architecture-of, for example nnUNetTrainerMambaMIS_S; "
        "known are " + ", ".join(name for name in trainers.__all__ if _is_ours(getattr(trainers, name)))
    )


def _is_ours(trainer: Any) -> bool:
    return isinstance(trainer, type) and issubclass(trainer, trainers.nnUNetTrainerMambaMIS)


def _build_recorded(
    record: Any, path: Path, manager: PlansManager, planned: ConfigurationManager, dataset: dict[str, Any]
) -> MambaMIS:
    """The network as the checkpoint says, if that is ours and what the plans beside it are for."""
    try:
        kind, arguments = record["class"], dict(record["arguments"])
    except (TypeError, KeyError, ValueError):
        raise UserError(f"{path} says of its network what nnunet-mamba-mis {__version__} cannot read") from None
    if kind != NETWORK_CLASS:
        raise UserError(f"the network in {path} is {kind}, which is not of this package, and its code is not run")
    inputs, outputs = _channels(manager, planned, dataset)
    beside = {"input_channels": inputs, "num_classes": outputs, "patch_size": list(planned.patch_size)}
    if other := _differences({name: arguments.get(name) for name in beside}, beside):
        raise UserError(
            f"the network in {path} has {other} in plans.json and dataset.json beside it: "
            "they were changed after training; put those of the training back"
        )
    try:
        return MambaMIS(**(arguments | {"deep_supervision": False}))
    except (TypeError, ValueError) as error:
        raise UserError(f"nnunet-mamba-mis {__version__} cannot build the network in {path}: {error}") from None


def _compare(network: MambaMIS, other: MambaMIS, path: Path, trainer: str) -> None:
    if difference := _differences(network.arguments, other.arguments):
        raise UserError(f"the network in {path} has {difference} in {trainer}: leave --architecture-of out")


def _differences(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    return ", ".join(f"{name} {ours[name]!r}, but {theirs[name]!r}" for name in ours if ours[name] != theirs[name])


def _channels(manager: PlansManager, planned: ConfigurationManager, dataset: dict[str, Any]) -> tuple[int, int]:
    """Of images and of logits."""
    inputs = determine_num_input_channels(manager, planned, dataset)
    return inputs, manager.get_label_manager(dataset).num_segmentation_heads


def _describe(
    manager: PlansManager, planned: ConfigurationManager, dataset: dict[str, Any], network: MambaMIS
) -> dict[str, Any]:
    """Return the layout of images, the preprocessing and the meaning of the logits."""
    labels = manager.get_label_manager(dataset)
    return {
        "version": __version__,
        "dataset": manager.dataset_name,
        "patch_size": list(network.patch_size),
        "channel_names": dataset.get("channel_names", dataset.get("modality")),
        "normalization": _normalization(manager, planned),
        "spacing": planned.spacing,
        "transpose_forward": manager.transpose_forward,
        "labels": dataset["labels"],
        # of each region's channel, the label that it writes, in this order
        "regions_class_order": labels.regions_class_order if labels.has_regions else None,
    }


def _normalization(manager: PlansManager, planned: ConfigurationManager) -> list[dict[str, Any]]:
    """For each channel, nnU-Net's scheme; CTNormalization needs the intensities of the training set's foreground."""
    intensities = manager.foreground_intensity_properties_per_channel
    return [
        {"scheme": scheme, "only_inside_nonzero": inside, "intensities": intensities[str(channel)]}
        for channel, (scheme, inside) in enumerate(
            zip(planned.normalization_schemes, planned.use_mask_for_norm, strict=True)
        )
    ]
