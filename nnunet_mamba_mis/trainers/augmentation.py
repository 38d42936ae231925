"""Change nnU-Net's augmentation by setting attributes of the transforms that nnU-Net has composed.

nnU-Net composes its augmentation in one function, without parameters for these changes. A copy of that function would
miss what later versions add. Instead, transforms are looked up by class, and a missing one ends training.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform


def share_colour(transforms: BasicTransform) -> None:
    """Make brightness, contrast and gamma change all channels by the same factor, drawn once per image.

    Args:
        transforms: nnU-Net's augmentation, changed in place.

    Raises:
        SystemExit: One of these transforms is missing.
    """
    for kind in (MultiplicativeBrightnessTransform, ContrastTransform, GammaTransform):
        _change(transforms, kind, synchronize_channels=True)


def set_geometry(
    transforms: BasicTransform,
    rotation: float | None = None,
    scaling: tuple[float, float] | None = None,
    p_rotation: float | None = None,
    p_scaling: float | None = None,
) -> None:
    """Replace nnU-Net's settings for rotation and scale; None keeps a setting.

    Args:
        transforms: nnU-Net's augmentation, changed in place.
        rotation: Largest angle in degrees, in either direction.
        scaling: Range of the scale; larger numbers make objects smaller.
        p_rotation: Probability of a rotation.
        p_scaling: Probability of a change in scale.

    Raises:
        SystemExit: The spatial transform is missing.
    """
    radians = None if rotation is None else (-math.radians(rotation), math.radians(rotation))
    values = {"rotation": radians, "scaling": scaling, "p_rotation": p_rotation, "p_scaling": p_scaling}
    if chosen := {name: value for name, value in values.items() if value is not None}:
        _change(transforms, SpatialTransform, **chosen)


def _change(transforms: BasicTransform, kind: type[BasicTransform], **values: object) -> None:
    """Set attributes of all transforms of a kind."""
    matching = [transform for transform in _all_within(transforms) if isinstance(transform, kind)]
    if not matching or any(not hasattr(transform, name) for transform in matching for name in values):
        raise SystemExit(
            f"The augmentation has no {kind.__name__} with {', '.join(values)}, which this trainer changes. Check that "
            "the trainer does not replace nnU-Net's augmentation, and that nnU-Net's version is supported "
            "(mamba_mis doctor)"
        )
    for transform in matching:
        for name, value in values.items():
            setattr(transform, name, value)


def _all_within(transform: BasicTransform) -> Iterator[BasicTransform]:
    """Yield a transform and all transforms in it, under whatever name a container holds them."""
    yield transform
    for value in vars(transform).values():
        for part in value if isinstance(value, list | tuple) else [value]:
            if isinstance(part, BasicTransform):
                yield from _all_within(part)
