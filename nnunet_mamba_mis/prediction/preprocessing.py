"""Prepare images as nnU-Net's DefaultPreprocessor does, and bring logits back to their size.

The same rules in the same order, without what prediction does not use: label maps, and the filled mask of what is not
zero where no normalization asks for it.
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
# returns data of the right size as it is
_DEFAULT_RESAMPLING = "resample_data_or_seg_to_shape"


@dataclass(frozen=True)
class Prepared:
    """An image as the network takes it.

    Args:
        data: (channels, slices, H, W).
        properties: What nnU-Net notes on the image, under its names.
    """

    data: Floats
    properties: dict[str, Any]


class Preprocessing:
    """nnU-Net's rules for images of a model.

    Args:
        model: Its plans and labels.
        configuration: Its configuration.
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
            data: (channels, slices, H, W), as nnU-Net's readers give it.
            properties: The readers', with the spacing.
        """
        # a copy in the same layout, views of it from here: means are then the same to the last bit
        data = data.astype(np.float32).transpose(0, *(axis + 1 for axis in self._forward))
        spacing = [properties["spacing"][axis] for axis in self._forward]
        nonzero = (data != 0).any(axis=0)
        box = _bounding_box(nonzero)
        inside = _part(box)
        properties = properties | {"shape_before_cropping": data.shape[1:], "bbox_used_for_cropping": box}
        outside = None
        if self._masked:
            # -1 is nnU-Net's label for what holes in the image do not reach
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
        """Bring logits back to the image's size, and make labels of them.

        Args:
            logits: (heads, slices, H, W).
            properties: Of the prepared image.
            probabilities: Whether probabilities are wanted; labels are then made of them, as nnU-Net does.
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
        """Return channels (C, H, W) as a reader would give them, and properties with the spacing of the plans."""
        data = image[:, None].transpose(0, *(axis + 1 for axis in self._backward))
        spacing = (999, *self._spacing)
        return data, {"spacing": tuple(spacing[axis] for axis in self._backward)}

    def to_plane(self, restored: NDArray[Any]) -> NDArray[Any]:
        """Return the plane (…, H, W) of a result that `from_planes` began with."""
        further = restored.ndim - 3
        axes = (*range(further), *(axis + further for axis in self._forward))
        return np.ascontiguousarray(restored.transpose(axes)[..., 0, :, :])


@dataclass(frozen=True)
class Restored:
    """A prediction in the image's own size.

    Args:
        labels: (slices, H, W), in nnU-Net's type.
        probabilities: (heads, slices, H, W), of classes or of regions, if they were wanted.
        properties: Of the prepared image.
        of_regions: Whether probabilities are of regions, which may overlap, rather than of classes.
    """

    labels: NDArray[Any]
    probabilities: Floats | None
    properties: dict[str, Any]
    of_regions: bool


class _LabelRule:
    """How logits become labels."""

    def __init__(self, model: Model) -> None:
        self.regions = model.dataset.regions_class_order if model.dataset.has_regions else None
        self.type = model.label_type

    def probabilities(self, logits: NDArray[Any]) -> Floats:
        # without torch, whose threads would get in the way of those that run the network
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
    """nnU-Net's: half open, and everything where nothing is in it."""
    box = []
    for axis, size in enumerate(mask.shape):
        along = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        box.append([int(along[0]), int(along[-1]) + 1] if len(along) else [0, size])
    return box


def _part(box: list[list[int]]) -> Any:
    """Index of a box in arrays whose last axes are its own."""
    return (..., *(slice(*bounds) for bounds in box))


def _normalization(model: Model, configuration: ModelConfiguration, channel: int) -> Any:
    """nnU-Net's object that normalizes a channel."""
    name = configuration.normalization_schemes[channel]
    kind = find_definition("nnunetv2.preprocessing.normalization", name)
    intensities = (model.plans.foreground_intensity_properties_per_channel or {}).get(str(channel))
    if not hasattr(kind, "run") or intensities is None:
        raise UserError(
            f"{model.folder}: plans.json cannot normalize channel {channel}: nnU-Net needs a scheme, found {name!r}, "
            "and foreground_intensity_properties_per_channel"
        )
    return kind(use_mask_for_norm=configuration.use_mask_for_norm[channel], intensityproperties=intensities)


def _resampling(name: str, arguments: dict[str, Any]) -> Any:
    """nnU-Net's function, which is imported when an image needs it."""

    def resample(data: NDArray[Any], shape: Sequence[int], current: Sequence[float], new: Sequence[float]) -> Any:
        if name == _DEFAULT_RESAMPLING and tuple(shape) == data.shape[1:]:
            return data
        return find_definition(_RESAMPLING, name)(data, shape, current, new, **arguments)

    return resample
