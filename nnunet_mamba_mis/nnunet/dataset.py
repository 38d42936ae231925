"""dataset.json, the fingerprint and the splits of a dataset."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any

from pydantic import AfterValidator, AliasChoices, Field, ValidationInfo, field_validator, model_validator

from nnunet_mamba_mis.nnunet.records import Record

FINGERPRINT_FILE = "dataset_fingerprint.json"
# a class has one label, a region several
Label = int | tuple[int, ...]
_BACKGROUND, _IGNORE = "background", "ignore"
_LARGEST_LABEL = 2**15 - 1  # nnU-Net writes regions as int16

Spacing = tuple[Annotated[float, Field(ge=1e-6, le=1e6)], ...]
Shape = tuple[Annotated[int, Field(ge=1, le=10**7)], ...]
_ThreeAxes = Field(min_length=3, max_length=3)


class TrainingCase(Record):
    """Files of a case, if dataset.json lists them."""

    images: Annotated[tuple[str, ...], Field(min_length=1)]
    label: str


def _check_labels(values: dict[str, Any]) -> dict[str, Label]:
    """Return labels as integers; accept those that nnU-Net can train with, in every form that nnU-Net reads."""
    _check_order(values)
    regions = any(isinstance(value, list) and len(value) > 1 for value in values.values())
    # nnU-Net converts all labels to integers except those of regions, which it compares without conversion
    number, in_list = ((int,), (int, float)) if regions else ((int, float, str), (int, float, str))
    labels: dict[str, Label] = {}
    for name, value in values.items():
        if name == _IGNORE:
            continue
        elements = [_integer(element, in_list if isinstance(value, list) else number) for element in _list(value)]
        integers = [element for element in elements if element is not None]
        if len(integers) != len(elements) or not integers:
            kind = "an integer or a list of integers" if regions else "an integer"
            raise ValueError(f"{name!r} must be {kind} from 0 to {_LARGEST_LABEL}, found {value!r:.60}")
        labels[name] = tuple(integers) if len(integers) > 1 else integers[0]
    _check_values(labels, regions)
    return _with_ignored(labels, values.get(_IGNORE))


def _check_order(values: Mapping[str, Any]) -> None:
    if _BACKGROUND in values:
        if isinstance(values[_BACKGROUND], list):
            raise ValueError(f"'background' must be 0, found {values[_BACKGROUND]!r:.60}")
        return
    if _BACKGROUND in [value for value in values.values() if isinstance(value, str)]:
        raise ValueError(
            "numbers come before names, as in nnU-Net v1, but nnU-Net v2 expects names first, as in "
            '{"background": 0, "polyp": 1} (nnUNetv2_convert_old_nnUNet_dataset converts a whole dataset)'
        )
    raise ValueError("'background' is missing: add it with label 0")


def _check_values(labels: Mapping[str, Label], regions: bool) -> None:
    if labels[_BACKGROUND] != 0:
        raise ValueError(f"'background' must be 0, found {labels[_BACKGROUND]}")
    numbers = _numbers(labels)
    if not any(numbers):
        raise ValueError("there is only background: add a class")
    if not regions and numbers != list(range(len(numbers))):
        raise ValueError(f"labels must be consecutive, 0, 1, 2, …, found {numbers}")


def _with_ignored(labels: dict[str, Label], ignored: object) -> dict[str, Label]:
    if ignored is None:
        return labels
    highest = max(_numbers(labels))
    if not isinstance(ignored, int) or ignored != highest + 1:
        raise ValueError(f"'ignore' must be {highest + 1}, the integer after all other labels, found {ignored!r:.60}")
    return labels | {_IGNORE: int(ignored)}


def _numbers(labels: Mapping[str, Label]) -> list[int]:
    return sorted({number for label in labels.values() for number in _list(label)})


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _integer(value: object, kinds: tuple[type, ...]) -> int | None:
    if not isinstance(value, kinds) or (isinstance(value, float) and not value.is_integer()):
        return None
    with suppress(ValueError):
        number = int(value)  # type: ignore[call-overload]
        return number if 0 <= number <= _LARGEST_LABEL else None
    return None


class Dataset(Record):
    """dataset.json.

    Args:
        labels: Label of each class, or labels of each region, including background and ignored pixels.
        channel_names: Names of the channels, by number.
        file_ending: Ending of images and label maps.
        numTraining: Number of training cases.
        regions_class_order: Label that each region writes.
        overwrite_image_reader_writer: nnU-Net's class that reads the images, if the ending does not determine it.
        dataset: Files of each case, None if they are in imagesTr and labelsTr.
    """

    labels: Annotated[dict[str, Any], AfterValidator(_check_labels)]
    channel_names: Annotated[
        dict[str, str], Field(min_length=1, validation_alias=AliasChoices("channel_names", "modality"))
    ]
    file_ending: Annotated[str, Field(pattern=r"^(\.\w+)+$", max_length=20)]
    numTraining: Annotated[int, Field(ge=1, le=10**9)] | None = None  # noqa: N815 (nnU-Net's name)
    regions_class_order: tuple[int, ...] | None = None
    overwrite_image_reader_writer: str = "None"
    # nnU-Net does not accept null here
    dataset: Annotated[dict[str, TrainingCase], Field(min_length=1)] = Field(default=None)  # type: ignore[arg-type]

    @model_validator(mode="after")
    def _check_regions(self) -> Dataset:
        if self.has_regions and len(self.regions_class_order or ()) != len(self.foreground):
            raise ValueError(
                f"regions_class_order must have a label for each of the {len(self.foreground)} regions, in their "
                f"order, found {self.regions_class_order!r:.60}"
            )
        return self

    @property
    def has_regions(self) -> bool:
        """Whether a class has several labels, so that classes may overlap."""
        return any(isinstance(label, tuple) for label in self.labels.values())

    @property
    def foreground(self) -> dict[str, Label]:
        """Classes or regions that are scored."""
        return {name: label for name, label in self.labels.items() if name != _IGNORE and any(_list(label))}

    @property
    def ignored(self) -> int | None:
        """Label of ignored pixels, or None."""
        return self.labels.get(_IGNORE)

    @property
    def heads(self) -> int:
        """Channels of the logits."""
        return len(self.foreground) if self.has_regions else len(_numbers(self.labels)) - (self.ignored is not None)


class Fingerprint(Record):
    """dataset_fingerprint.json: spacing and shape of each training case, and intensities of each channel."""

    spacings: Annotated[tuple[Annotated[Spacing, _ThreeAxes], ...], Field(min_length=1)]
    shapes_after_crop: Annotated[tuple[Annotated[Shape, _ThreeAxes], ...], Field(min_length=1)]
    foreground_intensity_properties_per_channel: dict[str, dict[str, float]]
    median_relative_size_after_cropping: float

    @field_validator("shapes_after_crop")
    @classmethod
    def _check_number(cls, shapes: tuple[Shape, ...], others: ValidationInfo) -> tuple[Shape, ...]:
        spacings = others.data.get("spacings")
        if spacings is not None and len(spacings) != len(shapes):
            raise ValueError(f"expected a shape for each of the {len(spacings)} spacings, found {len(shapes)}")
        return shapes


class Split(Record):
    """Cases of a fold."""

    train: tuple[str, ...]
    val: tuple[str, ...]


Splits = tuple[Split, ...]
# as many as nnU-Net creates
FOLDS = 5


def first_fold(number_of_cases: int, has_splits: bool) -> str:
    """Return the fold to train first: 0, or all if there are no splits and too few cases for nnU-Net's five folds."""
    return "0" if has_splits or number_of_cases >= FOLDS else "all"
