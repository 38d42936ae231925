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
        reader: nnU-Net's reader class for them.
    """

    of_class: Mapping[str, Label]
    ignored: int | None
    file_ending: str
    reader: type[BaseReaderWriter]

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
        return cls(dataset.foreground, dataset.ignored, dataset.file_ending, reader)

    @property
    def known(self) -> list[int]:
        """All values that a label map may contain."""
        of_classes = [label if isinstance(label, tuple) else (label,) for label in self.of_class.values()]
        ignored = () if self.ignored is None else (self.ignored,)
        return sorted({0}.union(*of_classes, ignored))

    def masks(self, label_map: NDArray[Any]) -> dict[str, Mask]:
        """Return the mask of each class: where a label map has its label, or one of the labels of its region."""
        return {name: np.isin(label_map, label) for name, label in self.of_class.items()}


def labelled_cases(labels: Path, ending: str) -> list[str]:
    """Return the cases of a folder of label maps."""
    return sorted(file.name.removesuffix(ending) for file in labels.iterdir() if file.name.endswith(ending))


def read_label_map(path: Path, labels: Labels) -> tuple[NDArray[Any], tuple[float, ...]]:
    """Read a label map with nnU-Net's reader.

    Returns:
        (H, W), or (D, H, W) if there are several slices, and the spacing of the axes.

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
