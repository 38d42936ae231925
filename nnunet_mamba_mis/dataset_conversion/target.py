"""The target of a conversion: a free id and name, and where nnU-Net reads the splits."""

from __future__ import annotations

import re
from pathlib import Path

from nnunet_mamba_mis.nnunet import paths
from nnunet_mamba_mis.utils.atomic_write import SUFFIX, atomic_write
from nnunet_mamba_mis.utils.errors import UserError


class Target:
    """The folder in nnUNet_raw to convert a dataset to.

    Args:
        dataset_id: 1 to 999.
        name: The dataset's name without a prefix such as "Dataset027_".
        overwrite: Whether a dataset with this id and name may exist already.

    Raises:
        UserError: nnUNet_raw is not set, or the id or name is invalid or taken.
    """

    def __init__(self, dataset_id: int, name: str, overwrite: bool) -> None:
        self.raw = paths.folder("nnUNet_raw")
        if not 1 <= dataset_id <= 999:
            raise UserError(f"-d {dataset_id}: a dataset id must be between 1 and 999")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
            raise UserError(f"--name {name!r}: use letters, digits, - and _ only")
        self.name = name
        self.dataset_id = dataset_id
        self.folder = self.raw / paths.dataset_name(dataset_id, name)
        self.overwrite = overwrite
        preprocessed = paths.folder_if_set("nnUNet_preprocessed")
        self.splits_for_nnunet = preprocessed / self.folder.name / paths.SPLITS_FILE if preprocessed else None
        self.check_is_free()

    def check_is_free(self) -> None:
        """Raise UserError if the id is in use, unless by a dataset that --overwrite may replace."""
        # nnU-Net looks for a dataset's id in all three folders
        used: dict[int, Path] = {}
        for parent in filter(None, map(paths.folder_if_set, paths.FOLDERS)):
            for path in sorted(parent.glob("Dataset*")):
                if path.is_dir() and paths.is_dataset_name(path.name) and not self._is_ours(path):
                    used.setdefault(paths.dataset_id(path.name), path)
        if self.dataset_id not in used:
            return
        taken = used[self.dataset_id]
        free = next((i for i in [*range(self.dataset_id, 1000), *range(1, self.dataset_id)] if i not in used), None)
        suggestion = f"-d {free} is free" if free else "all ids are in use, so remove a dataset"
        if taken.name == self.folder.name:
            suggestion += ", and --overwrite replaces the existing dataset"
        elif self.overwrite:
            suggestion += ". --overwrite only replaces a dataset with the same id and name"
        raise UserError(f"dataset id {self.dataset_id} is in use by {taken}: {suggestion}")

    def _is_ours(self, folder: Path) -> bool:
        if folder.name != self.folder.name:
            return False
        # a killed run may have written the splits, which are written before the dataset
        return self.overwrite or all(_is_splits_file(path.name) for path in folder.iterdir())

    def give_nnunet_splits(self, built: Path) -> str:
        """Write the splits where nnU-Net reads them, unless the user's own splits exist; return the outcome in words.

        Args:
            built: Folder that contains the splits.
        """
        file = self.splits_for_nnunet
        text = (built / paths.SPLITS_FILE).read_bytes()
        here = self.folder / paths.SPLITS_FILE
        if file is None:
            return f"nnUNet_preprocessed is not set: before training, copy {here} to its {self.folder.name}"
        if file.exists():
            present = file.read_bytes()
            replaceable = self.overwrite and here.exists() and present == here.read_bytes()
            if present != text and not replaceable:
                return f"nnU-Net uses the existing {file}, which was kept; to use the new splits, copy {here} over it"
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(file) as new:
                new.write(text)
        except OSError as error:  # not fatal: the dataset is in another folder
            return f"{file} cannot be written ({error.strerror or error}): before training, copy {here} there"
        return f"nnU-Net uses {file}"


def _is_splits_file(name: str) -> bool:
    return name == paths.SPLITS_FILE or (name.startswith(f"{paths.SPLITS_FILE}.") and name.endswith(SUFFIX))
