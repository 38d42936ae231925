"""Write predictions into a folder: label maps as nnU-Net writes them, a summary, and optional files."""

from __future__ import annotations

import contextlib
import io
import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nnunet_mamba_mis.nnunet.paths import DATASET_FILE
from nnunet_mamba_mis.nnunet.results import PLANS_FILE
from nnunet_mamba_mis.prediction.model import Model
from nnunet_mamba_mis.prediction.preprocessing import Restored
from nnunet_mamba_mis.prediction.summary import Summary
from nnunet_mamba_mis.utils.atomic_write import atomic_files, remove_leftover_folders
from nnunet_mamba_mis.utils.errors import UserError
from nnunet_mamba_mis.utils.overlays import for_display, with_outlines

OVERLAYS = "overlays"


class OutputFolder:
    """The folder of predictions; each image's files are written atomically.

    Args:
        folder: Folder to write; created if missing.
        model: Model that predicts.
        probabilities: Whether to write probabilities, as `nnUNetv2_predict --save_probabilities` does.
        overlays: Whether to write PNGs of the images with outlines.
        resume: Whether to keep the results of an earlier run with the same options.

    Raises:
        UserError: The summary of the earlier run cannot be read or belongs to another model.
    """

    def __init__(
        self, folder: Path, model: Model, probabilities: bool = False, overlays: bool = False, resume: bool = False
    ) -> None:
        self.folder = folder
        self._model, self._probabilities, self._overlays = model, probabilities, overlays
        self._summary = Summary(folder, model.dataset, self._has_files if resume else None)
        self._reader_writer: Any = None

    def begin(self) -> None:
        """Create the folder if missing, and start the summary; existing label maps stay.

        Raises:
            UserError: The folder cannot be written to.
        """
        with self.user_errors():
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_leftover_folders(self.folder)
            # nnU-Net's commands that process predictions look for these files here
            with atomic_files(self.folder) as files:
                for name in (DATASET_FILE, PLANS_FILE):
                    shutil.copyfile(self._model.folder / name, files / name)
            self._summary.begin()

    def is_done(self, image: str) -> bool:
        """Return whether the earlier run, if it is resumed, has finished an image."""
        return image in self._summary

    def _has_files(self, image: str) -> bool:
        if video := _video_of(image):
            return self.overlay_of(video).is_file()
        names = [f"{image}{self._model.dataset.file_ending}"]
        names += [f"{image}.npz", f"{image}.pkl"] * self._probabilities
        names += [f"{OVERLAYS}/{image}.png"] * self._overlays
        return all((self.folder / name).is_file() for name in names)

    def overlay_of(self, video: str) -> Path:
        """Return the path of the overlay for a video of this name."""
        return self.folder / f"{Path(video).stem}_overlay.mp4"

    def summarize(self, image: str, prediction: Restored, seconds: float) -> None:
        """Add an image's row to the summary.

        Raises:
            OSError: The summary cannot be written.
        """
        self._summary.add(image, prediction, seconds)

    def write(self, identifier: str, prediction: Restored, data: NDArray[Any], seconds: float) -> None:
        """Write all files of an image atomically.

        Args:
            identifier: Name of the files, without file ending.
            prediction: Labels and probabilities.
            data: Image (channels, slices, H, W).
            seconds: Time spent on the image, for the summary.

        Raises:
            UserError: A file cannot be written; existing files are unchanged.
        """
        with self.user_errors(), atomic_files(self.folder) as files:
            if self._probabilities and prediction.probabilities is not None:
                np.savez_compressed(files / f"{identifier}.npz", probabilities=prediction.probabilities)
                (files / f"{identifier}.pkl").write_bytes(pickle.dumps(prediction.properties))
            if self._overlays:
                (files / OVERLAYS).mkdir()
                overlay = with_outlines(*_section(data, prediction.labels))
                Image.fromarray(overlay).save(files / OVERLAYS / f"{identifier}.png", compress_level=1)
            self.write_labels(files / f"{identifier}{self._model.dataset.file_ending}", prediction)
            self.summarize(identifier, prediction, seconds)

    def write_labels(self, path: Path, prediction: Restored) -> None:
        """Write a label map as nnU-Net does."""
        if self._reader_writer is None:
            self._reader_writer = self._model.reader_writer()
        with contextlib.redirect_stdout(io.StringIO()):
            self._reader_writer.write_seg(prediction.labels, str(path), prediction.properties)

    @contextmanager
    def user_errors(self) -> Iterator[None]:
        """Turn any exception raised while writing into a UserError."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # nnU-Net's writers raise exceptions of their own
            reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise UserError(f"cannot write to {self.folder}: {reason}") from None


def frame_name(video: str, index: int) -> str:
    """Return the name of a video frame in summaries; the colon distinguishes it from names of images."""
    return f"{video}:{index}"


def _video_of(name: str) -> str:
    return name.rpartition(":")[0]


def _section(data: NDArray[Any], labels: NDArray[Any]) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """Return the slice with the most foreground as a picture, and its labels."""
    index = int((labels > 0).sum(axis=(1, 2)).argmax())
    channels = data[:, index]
    return for_display(channels.transpose(1, 2, 0) if len(channels) == 3 else channels[0]), labels[index]
