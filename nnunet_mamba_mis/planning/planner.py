"""nnU-Net's planner, with patch and batch size for Mamba-MIS."""

from __future__ import annotations

import contextlib
import glob
import io
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.utilities.json_export import recursive_fix_for_json_export

from nnunet_mamba_mis.nnunet.paths import folder, folder_if_set
from nnunet_mamba_mis.nnunet.plans import NETWORK_CLASS, Configuration, architecture_entry, read_plans
from nnunet_mamba_mis.planning import STOCK_PLANS_NAME
from nnunet_mamba_mis.planning.checks import read_dataset
from nnunet_mamba_mis.planning.memory import process_bytes, training_bytes
from nnunet_mamba_mis.utils.atomic_write import atomic_write
from nnunet_mamba_mis.utils.errors import UserError

CONFIGURATION = "2d"
GIGABYTE = 1e9  # not 2³⁰: a GPU sold as 8 GB has more than 8e9 bytes, and its allocator needs the rest
_STEP = 32  # the network pads to multiples of this
_LARGEST_AREA = 2048**2
# the entries of a configuration that determine preprocessing
_PREPROCESSING = (
    "preprocessor_name", "spacing", "normalization_schemes", "use_mask_for_norm",
    "resampling_fn_data", "resampling_fn_data_kwargs", "resampling_fn_seg", "resampling_fn_seg_kwargs",
)  # fmt: skip


def plan(dataset: str, gpu_memory: float, variant: str, stem: str, plans_name: str) -> MambaMISPlanner:
    """Write plans, and return their planner; arguments are those of `MambaMISPlanner`.

    Raises:
        UserError: Plans for this memory or of this name cannot be made.
    """
    # nnU-Net prints the U-Net that it starts with, and tracebacks of readers that it tries
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            planner = MambaMISPlanner(dataset, gpu_memory, variant, stem, plans_name)
            planner.plan_experiment()
        except OSError as error:
            raise UserError(f"{dataset} cannot be planned: {error}") from error
    return planner


class MambaMISPlanner(ExperimentPlanner):
    """Planner for one configuration, 2d; nnU-Net plans everything that does not depend on the network.

    Args:
        dataset: Full name of the dataset.
        gpu_memory: Memory that training may take, in GB.
        variant: "S", "B", "L" or "H".
        stem: "patch" or "conv".
        plans_name: Name of the plans and of their file.
    """

    def __init__(self, dataset: str, gpu_memory: float, variant: str, stem: str, plans_name: str) -> None:
        self.description = read_dataset(folder("nnUNet_preprocessed") / dataset)
        # nnU-Net's planner shrinks the patch until a U-Net fits in memory: this much memory prevents that
        super().__init__(dataset, gpu_memory_target_in_gb=1e6, plans_name=plans_name)
        self.budget = gpu_memory * GIGABYTE
        self.variant, self.stem = variant, stem

    @staticmethod
    def static_estimate_VRAM_usage(*_network: object) -> int:
        """Return a constant instead of building a U-Net to estimate its memory, which does not matter here."""
        return 1

    def determine_reader_writer(self) -> type:
        """Return nnU-Net's class that reads the images.

        Raises:
            UserError: No class can read the first image.
        """
        try:
            return super().determine_reader_writer()
        except (RuntimeError, IndexError):
            case, files = next(iter(self.dataset.items()))
            image = next(iter(files["images"]), f"{case}_0000{self.description.file_ending}")
            raise UserError(f"nnU-Net cannot read {image}: check that the file exists and is not damaged") from None

    def get_plans_for_configuration(
        self,
        spacing: np.ndarray,
        median_shape: np.ndarray,
        data_identifier: str,
        approximate_n_voxels_dataset: float,
        _cache: dict,
    ) -> dict[str, Any]:
        """Return nnU-Net's configuration with Mamba-MIS, and with patch and batch size for it.

        Raises:
            UserError: Not even the smallest patch fits.
        """
        if len(spacing) == 3:
            # `save_plans` drops this 3D configuration; as its patch is a whole image, nnU-Net adds no more of them
            return {"patch_size": median_shape, "spacing": spacing}
        arguments = (spacing, median_shape, data_identifier, approximate_n_voxels_dataset, _cache)
        configuration = super().get_plans_for_configuration(*arguments)
        patch_size = self._patch_size(spacing, median_shape)
        return configuration | {
            "patch_size": patch_size,
            "batch_size": self._batch_size(patch_size, approximate_n_voxels_dataset),
            "architecture": architecture_entry(patch_size, self.variant, self.stem),
        }

    def _patch_size(self, spacing: np.ndarray, median_shape: np.ndarray) -> tuple[int, int]:
        """Return the size of the median image, or a smaller size of which two patches fit in memory.

        While two patches do not fit, shorten the side that covers the largest share of the image.
        """
        # the largest patch has the same physical extent on both axes, and 2048 × 2048 pixels in all
        largest = math.sqrt(_LARGEST_AREA * spacing[0] * spacing[1]) / np.asarray(spacing)
        patch = [_STEP * math.ceil(side / _STEP) for side in np.minimum(largest, median_shape)]
        while self.memory((patch[0], patch[1]), self.UNet_min_batch_size) > self.budget:
            if max(patch) == _STEP:
                raise UserError(
                    f"--gpu-memory {self.budget / GIGABYTE:g}: training takes at least "
                    f"{self.memory((_STEP, _STEP), self.UNet_min_batch_size) / GIGABYTE:.1f} GB"
                )
            shown = [side / whole if side > _STEP else 0 for side, whole in zip(patch, median_shape, strict=True)]
            patch[int(np.argmax(shown))] -= _STEP
        return patch[0], patch[1]

    def _batch_size(self, patch_size: tuple[int, int], pixels_in_dataset: float) -> int:
        """Return the largest batch size that fits in memory and covers at most 5 % of all pixels, but at least 2."""
        per_image = self.memory(patch_size, 2) - self.memory(patch_size, 1)
        fitting = 1 + (self.budget - self.memory(patch_size, 1)) / per_image
        share_of_dataset = round(self.max_dataset_covered * pixels_in_dataset / math.prod(patch_size))
        return max(int(min(fitting, share_of_dataset)), self.UNet_min_batch_size)

    def memory(self, patch_size: tuple[int, int], batch_size: int, device: str = "cuda") -> float:
        """Return the bytes that training takes, including the memory of the process itself."""
        channels, classes = len(self.description.channel_names), self.description.heads
        step = training_bytes(device, self.variant, patch_size, batch_size, channels, classes, self.stem)
        return process_bytes(device) + step

    def save_plans(self, plans: dict[str, Any]) -> None:
        """Write the plans; if nnU-Net's own plans preprocess in the same way, reuse their preprocessed data.

        Raises:
            UserError: Plans of this name are for another network, or would change although networks were trained with
                them, or the file cannot be written.
        """
        recursive_fix_for_json_export(plans)
        configuration = plans["configurations"][CONFIGURATION]
        self._check_replaceable(configuration)
        if self._stock_data_fit(plans):
            configuration["data_identifier"] = f"{STOCK_PLANS_NAME}_{CONFIGURATION}"
        path = self._plans_file(self.plans_identifier)
        # keep configurations that users have added, as nnU-Net does
        added = read_plans(path).as_json()["configurations"] if path.exists() else {}
        plans["configurations"] = added | {CONFIGURATION: configuration}
        try:
            with atomic_write(path) as file:
                file.write(json.dumps(plans, indent=4).encode())
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error}. The previous file is unchanged") from None

    def _check_replaceable(self, configuration: dict[str, Any]) -> None:
        path = self._plans_file(self.plans_identifier)
        if not path.exists():
            return
        earlier = read_plans(path).configurations.get(CONFIGURATION, Configuration())
        if earlier.network_class != NETWORK_CLASS:
            raise UserError(f"{path} is for another network than Mamba-MIS: choose another --plans-name")
        if _equal(earlier, configuration, ("patch_size", "architecture", *_PREPROCESSING)):
            return
        if trained := self._trained_networks():
            raise UserError(
                f"{path} would change, but {trained[0]} was trained with it, and the next run would replace the plans "
                "with which that network is loaded. Choose another --plans-name, or move the trained networks away"
            )

    def _trained_networks(self) -> list[Path]:
        """Return the folders of networks that were trained with plans of this name."""
        results = folder_if_set("nnUNet_results")
        if results is None:
            return []
        plans = glob.escape(self.plans_identifier)
        checkpoints = (results / self.dataset_name).glob(f"*__{plans}__*/fold_*/checkpoint_*.pth")
        return sorted({checkpoint.parent.parent for checkpoint in checkpoints})

    def _stock_data_fit(self, plans: dict[str, Any]) -> bool:
        path = self._plans_file(STOCK_PLANS_NAME)
        if not path.exists():  # nnU-Net may plan any spacing later
            return False
        stock = read_plans(path)
        theirs = stock.configurations.get(CONFIGURATION, Configuration())
        if stock.transpose_forward != tuple(plans["transpose_forward"]):
            return False
        return _equal(theirs, plans["configurations"][CONFIGURATION], _PREPROCESSING)

    def _plans_file(self, name: str) -> Path:
        return folder("nnUNet_preprocessed") / self.dataset_name / f"{name}.json"


def _equal(earlier: Configuration, planned: dict[str, Any], names: Iterable[str]) -> bool:
    """Return whether a configuration from a file has the planned values, whose tuples are lists in the file."""
    values = earlier.as_json()
    return all(values.get(name) == json.loads(json.dumps(planned[name])) for name in names)
