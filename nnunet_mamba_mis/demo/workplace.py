"""The demo's folders, dataset and device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nnunet_mamba_mis.nnunet.paths import FOLDERS, dataset_name

DATASET_ID = 900
TRAINER = "nnUNetTrainerMambaMIS_demo"
_PLANS = "nnUNetPlans"
_FEW_CORES = 4


@dataclass(frozen=True)
class Workplace:
    """The demo's folders, dataset and device.

    Args:
        folder: The absolute path of the output folder.
        dataset_name: Name of the dataset without the prefix Dataset900_.
        device: "cpu" or "cuda".
        cores: Number of CPU cores that may be used.
    """

    folder: Path
    dataset_name: str
    device: str
    cores: int

    @property
    def full_name(self) -> str:
        """nnU-Net's name for the dataset."""
        return dataset_name(DATASET_ID, self.dataset_name)

    @property
    def has_few_cores(self) -> bool:
        """Whether worker processes cost more than they save, as each of them imports torch."""
        return self.cores <= _FEW_CORES

    @property
    def raw(self) -> Path:
        """Folder of the converted dataset."""
        return self.folder / "nnUNet_raw" / self.full_name

    @property
    def fold(self) -> Path:
        """Folder of the trained fold."""
        model = f"{TRAINER}__{_PLANS}__2d"
        return self.folder / "nnUNet_results" / self.full_name / model / "fold_0"

    @property
    def predictions(self) -> Path:
        """Folder of the predicted masks of the unseen images."""
        return self.folder / "predictions"

    def environment(self) -> dict[str, str]:
        """Return the environment variables that all commands need."""
        variables = {name: str(self.folder / name) for name in FOLDERS}
        if self.has_few_cores:
            variables["nnUNet_def_n_proc"] = str(self.cores)
        if self.device == "cuda":
            # compiling the network takes longer than the short training
            variables["nnUNet_compile"] = "f"
        return variables
