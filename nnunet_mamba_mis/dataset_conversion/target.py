"""The folder of a dataset to be: an id and a name that are free, and the place of its splits."""

from __future__ import annotations

import re
from pathlib import Path

from nnunet_mamba_mis.nnunet import paths
from nnunet_mamba_mis.utils.atomic_write import SUFFIX, atomic_write
from nnunet_mamba_mis.utils.errors import UserError


class Target:
    """The folder of a dataset to be, in nnUNet_raw.

    Args:
        dataset_id: 1 to 999.
        name: What follows "Dataset027_".
        overwrite: Whether a dataset of this id and name may be there already.

    Raises:
        UserError: nnUNet_raw is not set, the id or the name is unusable or taken.
    """

    def __init__(self, dataset_id: int, name: str, overwrite: bool) -> None:
        self.raw = paths.folder("nnUNet_raw")
        if not 1 <= dataset_id <= 999:
            raise UserError(f"-d {dataset_id}: a dataset id must lie between 1 and 999")
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
        """Raise UserError if the id is in use, except by what --overwrite may replace."""
        # nnU-Net finds a dataset's name from its id in all three
        used: dict[int, Path] = {}
        for parent in filter(None, map(paths.folder_if_set, paths.FOLDERS)):
            for path in sorted(parent.glob("Dataset*")):
                if path.is_dir() and paths.is_dataset_name(path.name) and not self._is_ours(path):
                    used.setdefault(paths.dataset_id(path.name), path)
        if self.dataset_id not in used:
            return
        taken = used[self.dataset_id]
        free = next((i for i in [*range(self.dataset_id, 1000), *range(1, self.dataset_id)] if i not in used), None)
        suggestion = f"-d {free} is free" if free else "remove a dataset, all ids are in use"
        if taken.name == self.folder.name:
            suggestion += ", and --overwrite replaces what is there"
        elif self.overwrite:
            suggestion += ". --overwrite replaces a dataset of the same id and name only"
        raise UserError(f"dataset id {self.dataset_id} is in use by {taken}: {suggestion}")

    def _is_ours(self, folder: Path) -> bool:
        if folder.name != self.folder.name:
            return False
        # a run that was killed may have written the split, which comes before the dataset
        return self.overwrite or all(_is_splits_file(path.name) for path in folder.iterdir())

    def give_nnunet_splits(self, built: Path) -> str:
        """Write the splits where nnU-Net reads them, if nothing of the user's is there, and say what became of them.

        Args:
            built: Folder that has the splits.
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
                return f"{file} was there and is kept, nnU-Net uses it: to use the new splits, copy {here} over it"
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(file) as new:
                new.write(text)
        except OSError as error:  # no reason to give up the dataset, which lies elsewhere
            return f"{file} cannot be written ({error.strerror or error}): before training, copy {here} there"
        return f"nnU-Net uses {file}"


def _is_splits_file(name: str) -> bool:
    return name == paths.SPLITS_FILE or (name.startswith(f"{paths.SPLITS_FILE}.") and name.endswith(SUFFIX))
