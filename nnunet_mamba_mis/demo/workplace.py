"""Where the demo works, and with what."""

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
    """Where the demo works, and with what.

    Args:
        folder: The output folder, absolute.
        dataset_name: What follows Dataset900_.
        device: "cpu" or "cuda".
        cores: That may be used.
    """

    folder: Path
    dataset_name: str
    device: str
    cores: int

    @property
    def full_name(self) -> str:
        """nnU-Net's name of the dataset."""
        return dataset_name(DATASET_ID, self.dataset_name)

    @property
    def has_few_cores(self) -> bool:
        """Whether workers cost more than they bring: each imports torch anew."""
        return self.cores <= _FEW_CORES

    @property
    def raw(self) -> Path:
        """The converted dataset."""
        return self.folder / "nnUNet_raw" / self.full_name

    @property
    def fold(self) -> Path:
        """What training wrote."""
        model = f"{TRAINER}__{_PLANS}__2d"
        return self.folder / "nnUNet_results" / self.full_name / model / "fold_0"

    @property
    def predictions(self) -> Path:
        """Masks that the network found on the unseen images."""
        return self.folder / "predictions"

    def environment(self) -> dict[str, str]:
        """Variables that all commands need."""
        variables = {name: str(self.folder / name) for name in FOLDERS}
        if self.has_few_cores:
            variables["nnUNet_def_n_proc"] = str(self.cores)
        if self.device == "cuda":
            # compiling the network takes longer than this short training
            variables["nnUNet_compile"] = "f"
        return variables
