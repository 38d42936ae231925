"""Predict images and videos in files, into a folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_mamba_mis.prediction.cases import Case, Inputs, find_inputs
from nnunet_mamba_mis.prediction.model import Model
from nnunet_mamba_mis.prediction.outputs import OutputFolder, frame_name
from nnunet_mamba_mis.prediction.reading import ReadImage, read_images
from nnunet_mamba_mis.utils.errors import UserError
from nnunet_mamba_mis.utils.pipeline import Ahead

if TYPE_CHECKING:
    from nnunet_mamba_mis.prediction.predictor import Image, Outcome, Predictor

# images that wait in memory for the one that prepares them
_READ_AHEAD = 16


@dataclass(frozen=True)
class Options:
    """How to predict files.

    Args:
        folds: Numbers of folds, or "all"; their mean is predicted.
        device: "cpu", "cuda", "cuda:1", "mps"; None: a GPU of Nvidia's if there is one, else the CPU.
        mirroring: Whether to predict mirrored copies too.
        probabilities: Whether to write these.
        overlays: Whether to write outlines on the images.
        resume: Whether to keep what an earlier run has finished.
        bits: What pictures with 16 bits a channel are scaled from; None: what the brightest of them needs.
        every: Of a video, which frames are predicted: every one, every second …
        frame_labels: Whether to write the labels of frames.
    """

    folds: Sequence[int | str]
    device: str | None = None
    mirroring: bool = True
    probabilities: bool = False
    overlays: bool = False
    resume: bool = False
    bits: int | None = None
    every: int = 1
    frame_labels: bool = False


@dataclass(frozen=True)
class Predicted:
    """A step of the work that is done.

    Args:
        name: Of an image, or of a video that has a further frame.
        problem: Why it was skipped or ended early, in words.
    """

    name: str
    problem: str = ""


class _ReadingError(Exception):
    """An image that could not be read."""


class FilePrediction:
    """Images and videos to predict into a folder.

    Args:
        model_folder: The trained model.
        sources: Files and folders.
        output: The folder to write.
        options: How.

    Attributes:
        images: How many images are left to predict.
        videos: Videos that are left to predict.
        problems: What cannot be used, in words.

    Raises:
        UserError: The model or a source cannot be used, or the output folder is a source.
    """

    def __init__(self, model_folder: Path, sources: Sequence[Path], output: Path, options: Options) -> None:
        self._model = Model.read(model_folder)
        inputs: Inputs = find_inputs(sources, self._model)
        folders = {(source if source.is_dir() else source.parent).resolve() for source in sources}
        if output.resolve() in folders:
            raise UserError(f"-o {output} is the folder of the images: label maps could replace them; name another")
        self._options = options
        self._output = OutputFolder(output, self._model, options.probabilities, options.overlays, options.resume)
        self._cases = [case for case in inputs.cases if not self._output.is_done(case.identifier)]
        self.images = len(self._cases)
        self.videos = [video for video in inputs.videos if not self._output.is_done(frame_name(video.name, 0))]
        self.problems = inputs.problems
        if self.videos:
            _check_videos(self.videos[0], self._model)

    def run(self) -> Iterator[Predicted]:
        """Predict, and yield what is done.

        Raises:
            UserError: The weights cannot be used, or nothing can be written any more; what was yielded is complete.
        """
        if not (self._cases or self.videos):
            return
        # processes that read start now, while torch is imported
        with closing(Ahead(read_images(self._cases, self._model, self._options.bits), _READ_AHEAD)) as images:
            import torch

            from nnunet_mamba_mis.prediction.predictor import Predictor

            options = self._options
            device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
            predictor = Predictor(self._model.folder, options.folds, device, options.mirroring)
            self._output.begin()
            with closing(predictor.stream(images, _image, finish=self._finish)) as predicted:
                yield from predicted
        for video in self.videos:
            yield from self._video(predictor, video)

    def _finish(self, outcome: Outcome[ReadImage]) -> Predicted:
        read = outcome.item
        if outcome.result is None or read.data is None:
            return Predicted(read.case.identifier, _in_words(read.case, outcome.error))
        self._output.write(read.case.identifier, outcome.result, read.data, read.seconds + outcome.seconds)
        return Predicted(read.case.identifier)

    def _video(self, predictor: Predictor, video: Path) -> Iterator[Predicted]:
        from nnunet_mamba_mis.prediction.video import predict_video

        options = self._options
        for problem in predict_video(predictor, video, self._output, options.every, options.frame_labels):
            yield Predicted(video.name, problem)


def _check_videos(first: Path, model: Model) -> None:
    if not model.is_of_pictures:
        raise UserError(f"{first} is a video, which a model of pictures with one or three channels takes alone")
    if find_spec("av") is None:
        raise UserError(f"{first} is a video, which needs PyAV: pip install 'nnunet-mamba-mis[video]'")


def _image(read: ReadImage) -> Image:
    if read.data is None:
        raise _ReadingError(read.problem)
    return read.data, read.properties


def _in_words(case: Case, error: Exception | None) -> str:
    if isinstance(error, _ReadingError):
        return f"{case.files[0]} {error}"
    return f"{case.files[0]} cannot be predicted: {type(error).__name__} {' '.join(str(error).split())}"
