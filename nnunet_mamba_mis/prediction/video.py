"""Predict a video: write a copy with outlines drawn on its frames and, on request, label maps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from nnunet_mamba_mis.prediction.outputs import OutputFolder, frame_name
from nnunet_mamba_mis.prediction.predictor import Outcome, Predictor
from nnunet_mamba_mis.utils.atomic_write import atomic_files
from nnunet_mamba_mis.utils.errors import UserError
from nnunet_mamba_mis.utils.overlays import with_outlines

_QUALITY = {"crf": "18", "preset": "veryfast"}


@dataclass(frozen=True)
class Frame:
    """A frame of a video.

    Args:
        index: Number of the frame, from 0.
        picture: RGB (H, W, 3), upright.
        time: Time since the first frame, in units of the video's time base.
    """

    index: int
    picture: NDArray[np.uint8]
    time: int


class _Video:
    """An input video.

    Args:
        path: Video file.

    Attributes:
        problem: Why reading ended early; empty on success.

    Raises:
        UserError: The file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.problem = ""
        try:
            self._container = av.open(str(path))
            self._stream = self._container.streams.video[0]
        except (av.FFmpegError, OSError, IndexError) as error:
            raise UserError(f"{path} cannot be read as a video: {error}") from None
        self._stream.thread_type = "AUTO"
        self.rate = self._stream.average_rate or Fraction(25)
        self.time_base = self._stream.time_base or 1 / self.rate

    def __iter__(self) -> Iterator[Frame]:
        index, first = -1, 0
        try:
            for index, frame in enumerate(self._container.decode(self._stream)):
                if index == 0:
                    first = frame.pts or 0
                time = round(index / self.rate / self.time_base) if frame.pts is None else frame.pts - first
                picture = frame.to_ndarray(format="rgb24")
                turns = getattr(frame, "rotation", 0) // 90
                yield Frame(index, np.ascontiguousarray(np.rot90(picture, turns)), time)
        except av.FFmpegError as error:
            self.problem = f"{self._path} is damaged after frame {index}, and was predicted up to there: {error}"
        if index < 0 and not self.problem:
            self.problem = f"{self._path} has no frames"

    def close(self) -> None:
        self._container.close()


class _Overlay:
    """An output video of frames with outlines.

    Args:
        path: File to write; not created without frames.
        video: Input video that the frames come from.
    """

    def __init__(self, path: Path, video: _Video) -> None:
        self._path, self._video = path, video
        self._container: Any = None
        self._stream: Any = None

    def add(self, frame: Frame, labels: NDArray[Any]) -> None:
        drawn = with_outlines(frame.picture, labels)
        if self._container is None:
            self._open(*drawn.shape[:2])
        image = av.VideoFrame.from_ndarray(drawn, format="rgb24")
        image.pts, image.time_base = frame.time, self._video.time_base
        self._container.mux(self._stream.encode(image))

    def close(self) -> None:
        if self._container is not None:
            self._container.mux(self._stream.encode())
            self._container.close()

    def _open(self, height: int, width: int) -> None:
        codec, options = ("libx264", _QUALITY) if "libx264" in av.codecs_available else ("mpeg4", {"qscale": "2"})
        self._container = av.open(str(self._path), "w")
        self._stream = self._container.add_stream(codec, rate=self._video.rate, options=options)
        self._stream.height, self._stream.width = height, width
        # yuv420p plays everywhere, but only yuv444p allows odd sizes
        self._stream.pix_fmt = "yuv420p" if height % 2 == width % 2 == 0 else "yuv444p"
        self._stream.codec_context.time_base = self._video.time_base


def predict_video(
    predictor: Predictor, path: Path, output: OutputFolder, every: int = 1, labels: bool = False
) -> Iterator[str]:
    """Predict a video into a folder; the files appear there once all readable frames are done.

    Args:
        predictor: Predictor with a model for pictures.
        path: Video file.
        output: Folder to write.
        every: Predict every Nth frame; frames in between repeat the last outlines.
        labels: Whether to write a label map for each predicted frame.

    Yields:
        An empty string for each finished frame; at the end, if the video could not be read completely, the reason.

    Raises:
        UserError: A frame cannot be predicted, or writing fails.
    """
    try:
        video = _Video(path)
    except UserError as error:
        yield str(error)
        return
    with closing(video), output.user_errors(), atomic_files(output.folder) as files:
        overlay = _Overlay(files / output.overlay_of(path.name).name, video)
        folder = files / f"{path.stem}_labels"
        last: list[Any] = []

        def read(frame: Frame) -> Any:
            return None if frame.index % every else predictor.from_array(_in_model_channels(frame.picture, predictor))

        def finish(outcome: Outcome[Frame]) -> str:
            frame = outcome.item
            if outcome.error is not None:
                raise UserError(f"{path}: frame {frame.index} cannot be predicted: {outcome.error}")
            if outcome.result is not None:
                last[:] = [outcome.result.labels[0]]
                if labels:
                    folder.mkdir(exist_ok=True)
                    name = f"{path.stem}_{frame.index:06d}{predictor.model.dataset.file_ending}"
                    output.write_labels(folder / name, outcome.result)
                output.summarize(frame_name(path.name, frame.index), outcome.result, outcome.seconds)
            overlay.add(frame, last[0])
            return ""

        with closing(predictor.stream(video, read, together=every == 1, finish=finish)) as done:
            yield from done
        overlay.close()
        if video.problem:
            yield video.problem


def _in_model_channels(picture: NDArray[np.uint8], predictor: Predictor) -> NDArray[np.uint8]:
    """Return an RGB picture unchanged, or as brightness for a one-channel model."""
    if predictor.model.channels == 3:
        return picture
    return (picture @ np.array([0.299, 0.587, 0.114])).round().astype(np.uint8)
