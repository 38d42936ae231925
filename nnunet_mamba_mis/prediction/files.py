"""Predict image and video files into a folder."""

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

# images read ahead, which wait in memory for preprocessing
_READ_AHEAD = 16


@dataclass(frozen=True)
class Options:
    """Options for predicting files.

    Args:
        folds: Fold numbers, or "all"; the prediction is the mean over folds.
        device: "cpu", "cuda", "cuda:1" or "mps"; None means "cuda" if available, else "cpu".
        mirroring: Whether to predict mirrored copies too.
        probabilities: Whether to write probabilities.
        overlays: Whether to write the images with outlines.
        resume: Whether to skip images that an earlier run has finished.
        bits: Bit depth that 16-bit pictures are scaled from; None means the depth that the brightest picture needs.
        every: Predict every Nth frame of a video.
        frame_labels: Whether to write the label maps of video frames.
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
    """A finished step: one image, or one frame of a video.

    Args:
        name: Name of the image or video.
        problem: Why the image was skipped or the video ended early; empty on success.
    """

    name: str
    problem: str = ""


class _ReadingError(Exception):
    """An image that could not be read."""


class FilePrediction:
    """A prediction of image and video files into a folder.

    Args:
        model_folder: Folder of the trained model.
        sources: Image and video files, and folders of them.
        output: Folder to write.
        options: How to predict.

    Attributes:
        images: Number of images left to predict.
        videos: Videos left to predict.
        problems: A message for each input that cannot be used.

    Raises:
        UserError: The model or a source cannot be used, or the output folder holds input files.
    """

    def __init__(self, model_folder: Path, sources: Sequence[Path], output: Path, options: Options) -> None:
        self._model = Model.read(model_folder)
        inputs: Inputs = find_inputs(sources, self._model)
        folders = {(source if source.is_dir() else source.parent).resolve() for source in sources}
        if output.resolve() in folders:
            raise UserError(
                f"-o {output} holds the input images, which label maps could overwrite: choose another folder"
            )
        self._options = options
        self._output = OutputFolder(output, self._model, options.probabilities, options.overlays, options.resume)
        self._cases = [case for case in inputs.cases if not self._output.is_done(case.identifier)]
        self.images = len(self._cases)
        self.videos = [video for video in inputs.videos if not self._output.is_done(frame_name(video.name, 0))]
        self.problems = inputs.problems
        if self.videos:
            _check_videos(self.videos[0], self._model)

    def run(self) -> Iterator[Predicted]:
        """Predict all inputs, and yield each finished step.

        Raises:
            UserError: The weights cannot be used, or writing fails; the files of yielded images are complete.
        """
        if not (self._cases or self.videos):
            return
        # start the reading processes while torch is imported
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
            return Predicted(read.case.identifier, _problem_text(read.case, outcome.error))
        self._output.write(read.case.identifier, outcome.result, read.data, read.seconds + outcome.seconds)
        return Predicted(read.case.identifier)

    def _video(self, predictor: Predictor, video: Path) -> Iterator[Predicted]:
        from nnunet_mamba_mis.prediction.video import predict_video

        options = self._options
        for problem in predict_video(predictor, video, self._output, options.every, options.frame_labels):
            yield Predicted(video.name, problem)


def _check_videos(first: Path, model: Model) -> None:
    if not model.is_of_pictures:
        raise UserError(
            f"{first} is a video, but this model was not trained on pictures with one or three channels: "
            "leave videos out of -i"
        )
    if find_spec("av") is None:
        raise UserError(f"{first} is a video, and reading it needs PyAV: pip install 'nnunet-mamba-mis[video]'")


def _image(read: ReadImage) -> Image:
    if read.data is None:
        raise _ReadingError(read.problem)
    return read.data, read.properties


def _problem_text(case: Case, error: Exception | None) -> str:
    if isinstance(error, _ReadingError):
        return f"{case.files[0]} {error}"
    return f"{case.files[0]} cannot be predicted: {type(error).__name__}: {' '.join(str(error).split())}"
