"""What a fold's user has to know, as data that JSON can hold."""

from __future__ import annotations

from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_mamba_mis import __version__
from nnunet_mamba_mis.architectures import MambaMIS


def describe(
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
