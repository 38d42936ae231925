"""Read a trained model's plans.json and dataset.json, without importing torch or nnU-Net."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from nnunet_mamba_mis.nnunet.dataset import Dataset
from nnunet_mamba_mis.nnunet.lookup import find_definition
from nnunet_mamba_mis.nnunet.model_folder import PlanarConfiguration, read_model_file
from nnunet_mamba_mis.nnunet.paths import DATASET_FILE
from nnunet_mamba_mis.nnunet.plans import Plans
from nnunet_mamba_mis.nnunet.results import PLANS_FILE
from nnunet_mamba_mis.utils.errors import UserError

NATURAL_READER = "NaturalImage2DIO"
# nnU-Net ships only these
_PREPROCESSOR, _LABEL_MANAGER = "DefaultPreprocessor", "LabelManager"

_Axes = Annotated[tuple[int, int, int], Field()]


class ModelPlans(Plans):
    """Plans, with the entries that reading and writing images need."""

    image_reader_writer: str
    transpose_forward: _Axes
    transpose_backward: _Axes


class ModelConfiguration(PlanarConfiguration):
    """A 2D configuration, with the entries that preprocessing and resampling back need."""

    preprocessor_name: str
    resampling_fn_data: str
    resampling_fn_data_kwargs: dict[str, Any]
    resampling_fn_probabilities: str
    resampling_fn_probabilities_kwargs: dict[str, Any]


@dataclass(frozen=True)
class Model:
    """A trained model's folder, plans and dataset.json, without its weights.

    Args:
        folder: Folder TRAINER__PLANS__CONFIGURATION, in nnUNet_results or elsewhere.
        plans: Contents of plans.json.
        dataset: Contents of dataset.json.
    """

    folder: Path
    plans: ModelPlans
    dataset: Dataset

    @classmethod
    def read(cls, folder: Path) -> Model:
        """Read plans.json and dataset.json.

        Raises:
            UserError: A file is missing or cannot be used.
        """
        plans = read_model_file(folder / PLANS_FILE, ModelPlans)
        if plans.label_manager not in (None, _LABEL_MANAGER):
            raise _not_stock(folder, "label_manager", plans.label_manager)
        return cls(folder, plans, read_model_file(folder / DATASET_FILE, Dataset))

    def check_configuration(self, configuration: ModelConfiguration) -> None:
        """Check that the configuration uses nnU-Net's own preprocessor, with one normalization per channel.

        Raises:
            UserError: The preprocessor is another one, or the number of normalizations is wrong.
        """
        if configuration.preprocessor_name != _PREPROCESSOR:
            raise _not_stock(self.folder, "preprocessor_name", configuration.preprocessor_name)
        schemes, inside = configuration.normalization_schemes, configuration.use_mask_for_norm
        if not len(schemes) == len(inside) == self.channels:
            raise UserError(
                f"{self.folder / PLANS_FILE}: normalization_schemes and use_mask_for_norm need one entry for each of "
                f"the {self.channels} channels in {DATASET_FILE}: restore both files as they were in training"
            )

    @property
    def channels(self) -> int:
        """Number of channels of the images."""
        return len(self.dataset.channel_names)

    @property
    def is_of_pictures(self) -> bool:
        """Whether images are single PNG, BMP or TIFF files, so that the model can also predict camera pictures."""
        return self.plans.image_reader_writer == NATURAL_READER and self.channels in (1, 3)

    @property
    def label_type(self) -> str:
        """numpy's name for the dtype of label maps, as nnU-Net chooses it."""
        labels = {number for label in self.dataset.foreground.values() for number in _numbers(label)}
        return "uint8" if len(labels) < 255 else "uint16"

    def reader_writer(self) -> Any:
        """Return the nnU-Net object that reads images and writes label maps.

        Raises:
            UserError: nnU-Net has no reader of the name in the plans.
        """
        name = self.plans.image_reader_writer
        kind = find_definition("nnunetv2.imageio", name)
        if not hasattr(kind, "write_seg"):
            raise UserError(
                f"{self.folder / PLANS_FILE}: image_reader_writer {name!r} is not one of nnU-Net's readers: "
                "install the nnU-Net version that the model was trained with"
            )
        return kind()


def _numbers(label: int | tuple[int, ...]) -> tuple[int, ...]:
    return label if isinstance(label, tuple) else (label,)


def _not_stock(folder: Path, key: str, value: str) -> UserError:
    return UserError(f"{folder / PLANS_FILE}: {key} {value!r} is not nnU-Net's own: predict with nnUNetv2_predict")
