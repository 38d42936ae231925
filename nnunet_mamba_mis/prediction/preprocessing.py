"""Preprocess images as nnU-Net's DefaultPreprocessor does, and resample logits back to the images' size.

The rules and their order are nnU-Net's. Label maps are skipped, because prediction needs none. The filled nonzero mask
is computed only if a normalization uses it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes
from scipy.special import expit, softmax

from nnunet_mamba_mis.nnunet.lookup import find_definition
from nnunet_mamba_mis.prediction.model import Model, ModelConfiguration
from nnunet_mamba_mis.utils.errors import UserError

Floats = NDArray[np.float32]

_RESAMPLING = "nnunetv2.preprocessing.resampling"
# this function returns data unchanged if it already has the right size
_DEFAULT_RESAMPLING = "resample_data_or_seg_to_shape"


@dataclass(frozen=True)
class Prepared:
    """A preprocessed image.

    Args:
        data: (channels, slices, H, W).
        properties: The image's properties, under nnU-Net's names.
    """

    data: Floats
    properties: dict[str, Any]


class Preprocessing:
    """nnU-Net's preprocessing and its inverse, for the images of a model.

    Args:
        model: Model with plans and labels.
        configuration: The model's configuration.
    """

    def __init__(self, model: Model, configuration: ModelConfiguration) -> None:
        self._forward, self._backward = model.plans.transpose_forward, model.plans.transpose_backward
        self._spacing = configuration.spacing
        self._masked = any(configuration.use_mask_for_norm)
        self._normalizations = [_normalization(model, configuration, channel) for channel in range(model.channels)]
        self._resample_data = _resampling(configuration.resampling_fn_data, configuration.resampling_fn_data_kwargs)
        self._resample_logits = _resampling(
            configuration.resampling_fn_probabilities, configuration.resampling_fn_probabilities_kwargs
        )
        self._labels = _LabelRule(model)

    def prepare(self, data: NDArray[Any], properties: dict[str, Any]) -> Prepared:
        """Transpose, crop, normalize and resample an image.

        Args:
            data: (channels, slices, H, W), as nnU-Net's readers return it.
            properties: The reader's properties, with the spacing.
        """
        # copy in the same memory layout, then use views, so that mean values equal nnU-Net's to the last bit
        data = data.astype(np.float32).transpose(0, *(axis + 1 for axis in self._forward))
        spacing = [properties["spacing"][axis] for axis in self._forward]
        nonzero = (data != 0).any(axis=0)
        box = _bounding_box(nonzero)
        inside = _part(box)
        properties = properties | {"shape_before_cropping": data.shape[1:], "bbox_used_for_cropping": box}
        outside = None
        if self._masked:
            # nnU-Net labels pixels outside the filled nonzero mask -1
            outside = np.where(binary_fill_holes(nonzero)[inside], np.int8(0), np.int8(-1))
        data = data[inside]
        properties["shape_after_cropping_and_before_resampling"] = data.shape[1:]
        for channel, normalization in enumerate(self._normalizations):
            data[channel] = normalization.run(data[channel], outside)
        target = [spacing[0], *self._spacing]
        shape = [round(old / new * size) for old, new, size in zip(spacing, target, data.shape[1:], strict=True)]
        data = self._resample_data(data, shape, spacing, target)
        return Prepared(np.asarray(data, np.float32), properties)

    def restore(self, logits: NDArray[Any], properties: dict[str, Any], probabilities: bool) -> Restored:
        """Resample logits to the image's size, and turn them into labels.

        Args:
            logits: (heads, slices, H, W).
            properties: Properties of the preprocessed image.
            probabilities: Whether to return probabilities; labels then derive from them, as in nnU-Net.
        """
        spacing = [properties["spacing"][axis] for axis in self._forward]
        cropped = properties["shape_after_cropping_and_before_resampling"]
        logits = np.asarray(self._resample_logits(logits, cropped, [spacing[0], *self._spacing], spacing))
        chances = self._labels.probabilities(logits) if probabilities or self._labels.regions else None
        shape, box = properties["shape_before_cropping"], properties["bbox_used_for_cropping"]
        inside = _part(box)
        labels = np.zeros(shape, self._labels.type)
        labels[inside] = self._labels.labels(logits if chances is None else chances)
        labels = labels.transpose(self._backward)
        if chances is None or not probabilities:
            return Restored(labels, None, properties, bool(self._labels.regions))
        whole = np.zeros((len(chances), *shape), np.float32)
        if not self._labels.regions:
            whole[0] = 1
        whole[inside] = chances
        whole = whole.transpose(0, *(axis + 1 for axis in self._backward))
        return Restored(labels, whole, properties, bool(self._labels.regions))

    def from_planes(self, image: NDArray[Any]) -> tuple[NDArray[Any], dict[str, Any]]:
        """Return an image (C, H, W) as nnU-Net's readers do, with the axis of slices and the plans' spacing."""
        data = image[:, None].transpose(0, *(axis + 1 for axis in self._backward))
        spacing = (999, *self._spacing)
        return data, {"spacing": tuple(spacing[axis] for axis in self._backward)}

    def to_plane(self, restored: NDArray[Any]) -> NDArray[Any]:
        """Return the plane (…, H, W) of a result for an image that came from `from_planes`."""
        further = restored.ndim - 3
        axes = (*range(further), *(axis + further for axis in self._forward))
        return np.ascontiguousarray(restored.transpose(axes)[..., 0, :, :])


@dataclass(frozen=True)
class Restored:
    """A prediction at the image's original size.

    Args:
        labels: (slices, H, W), in nnU-Net's dtype.
        probabilities: (heads, slices, H, W), for classes or regions; None unless requested.
        properties: Properties of the preprocessed image.
        of_regions: Whether probabilities are those of regions, which may overlap, instead of classes.
    """

    labels: NDArray[Any]
    probabilities: Floats | None
    properties: dict[str, Any]
    of_regions: bool


class _LabelRule:
    """nnU-Net's rule for turning logits into probabilities and labels."""

    def __init__(self, model: Model) -> None:
        self.regions = model.dataset.regions_class_order if model.dataset.has_regions else None
        self.type = model.label_type

    def probabilities(self, logits: NDArray[Any]) -> Floats:
        # scipy instead of torch, whose threads would compete with those of the network
        logits = logits.astype(np.float32)
        return expit(logits) if self.regions else softmax(logits, axis=0)

    def labels(self, values: NDArray[Any]) -> NDArray[Any]:
        if not self.regions:
            return values.argmax(0)
        labels = np.zeros(values.shape[1:], self.type)
        for region, label in zip(values, self.regions, strict=True):
            labels[region > 0.5] = label
        return labels


def _bounding_box(mask: NDArray[np.bool_]) -> list[list[int]]:
    """Return a mask's half-open bounding box as nnU-Net does: the whole array for an empty mask."""
    box = []
    for axis, size in enumerate(mask.shape):
        along = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        box.append([int(along[0]), int(along[-1]) + 1] if len(along) else [0, size])
    return box


def _part(box: list[list[int]]) -> Any:
    """Return the index that selects a box in the last axes of an array."""
    return (..., *(slice(*bounds) for bounds in box))


def _normalization(model: Model, configuration: ModelConfiguration, channel: int) -> Any:
    """Return the nnU-Net object that normalizes a channel."""
    name = configuration.normalization_schemes[channel]
    kind = find_definition("nnunetv2.preprocessing.normalization", name)
    intensities = (model.plans.foreground_intensity_properties_per_channel or {}).get(str(channel))
    if not hasattr(kind, "run") or intensities is None:
        raise UserError(
            f"{model.folder}: plans.json cannot normalize channel {channel}: it needs one of nnU-Net's schemes (has "
            f"{name!r}) and an entry in foreground_intensity_properties_per_channel"
        )
    return kind(use_mask_for_norm=configuration.use_mask_for_norm[channel], intensityproperties=intensities)


def _resampling(name: str, arguments: dict[str, Any]) -> Any:
    """Return nnU-Net's resampling function, imported on first use."""

    def resample(data: NDArray[Any], shape: Sequence[int], current: Sequence[float], new: Sequence[float]) -> Any:
        if name == _DEFAULT_RESAMPLING and tuple(shape) == data.shape[1:]:
            return data
        return find_definition(_RESAMPLING, name)(data, shape, current, new, **arguments)

    return resample
