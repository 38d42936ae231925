"""Where a dataset goes, and how it gets there whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nnunet_mamba_mis.utils.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# never "Dataset…": nnU-Net would take a half-written folder for a dataset
_WORK_PREFIX = ".converting_"
# holds a dataset while the one that replaces it takes its place
_REPLACED_PREFIX = ".replaced_"

SPLITS_FILE = "splits_final.json"
_NEW_SPLITS_FILE = f".{SPLITS_FILE}"


class Place:
    """The folder of a dataset to be, in nnUNet_raw.

    Args:
        dataset_id: 1 to 999.
        name: what follows "Dataset027_".
        overwrite: whether a dataset of this id and name may be there already.

    Raises:
        UserError: nnUNet_raw is not set, the id or the name is unusable or taken.
    """

    def __init__(self, dataset_id: int, name: str, overwrite: bool) -> None:
        raw = os.environ.get("nnUNet_raw")
        if not raw:
            raise UserError("nnUNet_raw is not set: `export nnUNet_raw=/path` to the folder for nnU-Net's raw datasets")
        if not 1 <= dataset_id <= 999:
            raise UserError(f"-d {dataset_id}: a dataset id must lie between 1 and 999")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
            raise UserError(f"--name {name!r}: use letters, digits, - and _ only")
        self.raw = Path(raw)
        self.name = name
        self.dataset_id = dataset_id
        self.target = self.raw / f"Dataset{dataset_id:03d}_{name}"
        self.overwrite = overwrite
        preprocessed = os.environ.get("nnUNet_preprocessed")
        self.splits_for_nnunet = Path(preprocessed) / self.target.name / SPLITS_FILE if preprocessed else None
        self.check_is_free()

    def check_is_free(self) -> None:
        """Raise UserError if the id is in use, except by what --overwrite may replace."""
        # nnU-Net finds a dataset's name from its id in all three
        used: dict[int, Path] = {}
        for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            if os.environ.get(variable):
                for folder in sorted(Path(os.environ[variable]).glob("Dataset[0-9][0-9][0-9]_*")):
                    if folder.is_dir() and not self._is_ours(folder):
                        used.setdefault(int(folder.name[7:10]), folder)
        if self.dataset_id not in used:
            return
        taken = used[self.dataset_id]
        free = next((i for i in [*range(self.dataset_id, 1000), *range(1, self.dataset_id)] if i not in used), None)
        suggestion = f"-d {free} is free" if free else "remove a dataset, all ids are in use"
        if taken.name == self.target.name:
            suggestion += ", and --overwrite replaces what is there"
        elif self.overwrite:
            suggestion += ". --overwrite replaces a dataset of the same id and name only"
        raise UserError(f"dataset id {self.dataset_id} is in use by {taken}: {suggestion}")

    def _is_ours(self, folder: Path) -> bool:
        if folder.name != self.target.name:
            return False
        # a run that was killed may have written the split, which comes before the dataset
        return self.overwrite or {path.name for path in folder.iterdir()} <= {SPLITS_FILE, _NEW_SPLITS_FILE}

    def give_nnunet_splits(self, text: str) -> str:
        """Write the splits where nnU-Net reads them, if nothing of the user's is there, and say what became of them.

        Args:
            text: content of the file.
        """
        file = self.splits_for_nnunet
        here = self.target / SPLITS_FILE
        if file is None:
            return f"nnUNet_preprocessed is not set: before training, copy {here} to its {self.target.name}"
        if file.exists():
            present = file.read_bytes()
            replaceable = self.overwrite and here.exists() and present == here.read_bytes()
            if present != text.encode() and not replaceable:
                return f"{file} was there and is kept, nnU-Net uses it: to use the new splits, copy {here} over it"
        new = file.with_name(_NEW_SPLITS_FILE)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            new.write_text(text, encoding="utf-8")
            new.replace(file)
        except OSError as error:  # no reason to give up the dataset, which lies elsewhere
            return f"{file} cannot be written ({error.strerror or error}): before training, copy {here} there"
        return f"nnU-Net uses {file}"

    @contextmanager
    def work(self) -> Iterator[WorkFolder]:
        """Give a folder beside the target, which is made when first used and is gone at the end.

        Raises:
            UserError: something cannot be written; nothing is left.
        """
        folder = WorkFolder(self)
        try:
            yield folder
        except OSError as error:
            raise UserError(f"cannot write {self.target}: {error.strerror or error}. Nothing was converted") from error
        finally:
            folder.remove()


class WorkFolder:
    """A folder beside a dataset's place to build it in; a lock tells a run that goes on from one that was killed.

    Args:
        place: of the dataset.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        # the name is new each time, so what a killed run left is never in the way
        self._folder = place.raw / f"{_WORK_PREFIX}{place.target.name}_{uuid.uuid4().hex[:8]}"
        self._lock: int | None = None

    def subfolder(self, name: str) -> Path:
        """Return a new folder in it.

        Raises:
            OSError: it cannot be made.
        """
        if not self._folder.exists():
            self._place.raw.mkdir(parents=True, exist_ok=True)
            with _only_one(self._place.raw):
                _restore_and_clean(self._place.raw)
                self._folder.mkdir()
                self._lock = _try_lock(self._folder)
        folder = self._folder / name
        folder.mkdir()
        return folder

    def publish(self, dataset: Path) -> None:
        """Make a folder of this one the dataset, in place of the one to be overwritten, if there is one.

        Raises:
            UserError: someone else took the id meanwhile.
            OSError: it cannot be renamed.
        """
        target = self._place.target
        old = target.with_name(_REPLACED_PREFIX + target.name)
        with _only_one(self._place.raw):
            self._place.check_is_free()
            if target.exists():
                target.rename(old)
            # killed here, the next run brings the old one back
            dataset.rename(target)
            if old.exists():
                # to be removed with the rest
                old.rename(self._folder / "replaced")

    def remove(self) -> None:
        """Remove it with all that is in it."""
        shutil.rmtree(self._folder, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _restore_and_clean(raw: Path) -> None:
    """Bring back a dataset that a killed run had moved aside, and remove what killed runs left."""
    for old in raw.glob(f"{_REPLACED_PREFIX}*"):
        target = old.with_name(old.name.removeprefix(_REPLACED_PREFIX))
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            with suppress(OSError):  # that of another user
                old.rename(target)
    for folder in raw.glob(f"{_WORK_PREFIX}*"):
        lock = _try_lock(folder)
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def _try_lock(folder: Path) -> int | None:
    """Lock a folder and return the descriptor that holds the lock, None if that cannot be done."""
    if not fcntl:
        return None
    with suppress(OSError):  # another process has it, or another user's folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except OSError:
            os.close(descriptor)
    return None


@contextmanager
def _only_one(raw: Path) -> Iterator[None]:
    """Let one run at a time do this to nnUNet_raw."""
    if not fcntl:
        yield
        return
    descriptor = os.open(raw, os.O_RDONLY)
    try:
        # where locks are not to be had, the chance that two runs meet here is taken
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
