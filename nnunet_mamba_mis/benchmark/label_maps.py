"""Read label maps with nnU-Net's readers, and extract the masks of classes and regions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nnunet_mamba_mis.nnunet.dataset import Dataset, Label
from nnunet_mamba_mis.nnunet.records import read_record
from nnunet_mamba_mis.utils.errors import UserError
from nnunet_mamba_mis.utils.text import is_utf8, shortened

if TYPE_CHECKING:
    from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Labels:
    """The foreground classes or regions of a dataset.json.

    Args:
        of_class: Label of each class, or labels of each region.
        ignored: Label of pixels to ignore, if any.
        file_ending: File ending of label maps.
        reader: nnU-Net's reader class for label maps.
        has_regions: Whether classes may overlap, so that probabilities have no background channel.
    """

    of_class: Mapping[str, Label]
    ignored: int | None
    file_ending: str
    reader: type[BaseReaderWriter]
    has_regions: bool

    @classmethod
    def read(cls, file: Path) -> Labels:
        """Read dataset.json.

        Raises:
            UserError: The file cannot be used; the message names it and the problem.
        """
        from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
        from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

        dataset = read_record(file, Dataset)
        try:
            reader = determine_reader_writer_from_dataset_json(dataset.as_json(), verbose=False)
        except RuntimeError:
            raise UserError(
                f"{file}: file_ending: nnU-Net cannot read files that end with {dataset.file_ending}"
            ) from None
        if not (isinstance(reader, type) and issubclass(reader, BaseReaderWriter)):
            name = dataset.overwrite_image_reader_writer
            raise UserError(f"{file}: overwrite_image_reader_writer: {name!r} is not one of nnU-Net's readers")
        return cls(dataset.foreground, dataset.ignored, dataset.file_ending, reader, dataset.has_regions)

    @property
    def known(self) -> list[int]:
        """All values that a label map may contain."""
        of_classes = [label if isinstance(label, tuple) else (label,) for label in self.of_class.values()]
        ignored = () if self.ignored is None else (self.ignored,)
        return sorted({0}.union(*of_classes, ignored))

    def masks(self, label_map: NDArray[Any]) -> dict[str, Mask]:
        """Return the mask of each class: the pixels with its label, or with any label of its region."""
        return {name: np.isin(label_map, label) for name, label in self.of_class.items()}

    def of_channels(self, probabilities: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return the probabilities of each class.

        A class's channel is its label. With regions, it is the class's position in `of_class`.

        Raises:
            ValueError: The number of channels is wrong.
        """
        channels = len(self.of_class) + (not self.has_regions)
        if len(probabilities) != channels:
            raise ValueError(f"it has {len(probabilities)} channels, expected {channels}")
        places = enumerate(self.of_class.values())
        return {
            name: probabilities[place if self.has_regions else label]
            for name, (place, label) in zip(self.of_class, places, strict=True)
        }


def labelled_cases(labels: Path, ending: str) -> list[str]:
    """Return the cases of a folder of label maps."""
    return sorted(file.name.removesuffix(ending) for file in labels.iterdir() if file.name.endswith(ending))


def read_label_map(path: Path, labels: Labels) -> tuple[NDArray[Any], tuple[float, ...]]:
    """Read a label map with nnU-Net's reader.

    Returns:
        The label map, (H, W) or (D, H, W) if it has several slices, and the spacing of its axes.

    Raises:
        ValueError: The file cannot be read, or contains a value that is not a label and would count as background.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    if not is_utf8(str(path)):
        raise ValueError(f"{path} cannot be read: its name is not valid UTF-8")
    try:
        values, properties = labels.reader().read_seg(str(path))
        if len(values) != 1:
            raise ValueError(f"it has {len(values)} channels, expected 1")
        volume = values[0]
        spacing = tuple(float(size) for size in properties["spacing"])
    except Exception as error:  # each of nnU-Net's image libraries has its own exceptions
        raise ValueError(f"{path} cannot be read: {type(error).__name__} {error}") from None
    is_known = np.isin(volume, labels.known)
    if not is_known.all():
        unknown = shortened([f"{value:g}" for value in np.unique(volume[~is_known])])
        raise ValueError(
            f"{path} contains {unknown}, but dataset.json has the labels {shortened(list(map(str, labels.known)))}"
        )
    return (volume[0], spacing[1:]) if len(volume) == 1 else (volume, spacing)


def probabilities_file(prediction: Path, ending: str) -> Path:
    """Return the file in which nnU-Net saves the probabilities of a prediction."""
    return prediction.with_name(prediction.name.removesuffix(ending) + ".npz")


def read_probabilities(path: Path, labels: Labels, shape: tuple[int, ...]) -> dict[str, NDArray[np.floating]]:
    """Read the probabilities that nnU-Net saved, without running code that the file may contain.

    Args:
        path: The file.
        labels: Labels of the dataset.
        shape: (H, W) or (D, H, W) of the prediction.

    Returns:
        Probabilities of each class, (H, W) or (D, H, W).

    Raises:
        ValueError: The file cannot be read, or does not contain probabilities of this shape.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            probabilities = arrays["probabilities"]
        if not np.issubdtype(probabilities.dtype, np.floating) or probabilities.ndim != 4:
            raise ValueError(f"expected an array of numbers (channels, D, H, W), found shape {probabilities.shape}")
        if probabilities.shape[1:] not in (shape, (1, *shape)):
            raise ValueError(f"the probabilities have shape {probabilities.shape[1:]}, but the prediction has {shape}")
        of_class = labels.of_channels(probabilities)
    except Exception as error:  # zipfile, zlib and numpy have their own exceptions
        raise ValueError(f"{path} cannot be used: {type(error).__name__} {error}") from None
    # half precision rounds sums slightly beyond 1
    if not (probabilities.min() >= -1e-3 and probabilities.max() <= 1 + 1e-3):
        raise ValueError(f"{path} cannot be used: probabilities are not between 0 and 1")
    return {name: values.reshape(shape).clip(0, 1) for name, values in of_class.items()}
