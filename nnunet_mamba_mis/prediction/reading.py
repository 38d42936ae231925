"""Read images in separate processes, with the model's reader or as `mamba_mis convert` reads pictures."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_mamba_mis.dataset_conversion.decoding import BadFileError, captured_output
from nnunet_mamba_mis.dataset_conversion.workers import KILLED, Workers, workers
from nnunet_mamba_mis.prediction.cases import Case
from nnunet_mamba_mis.prediction.model import NATURAL_READER, Model
from nnunet_mamba_mis.utils.subprocesses import count_cores
from nnunet_mamba_mis.utils.text import counted

# images per chunk: enough to keep the processes busy, and few enough to fit in memory
_CHUNK = 16
_MAX_PROCESSES = 4
# offset of the bit depth in a PNG file
_PNG_DEPTH = 24


@dataclass(frozen=True)
class ReadImage:
    """An image in the form that nnU-Net's readers return, or the reason why it could not be read.

    Args:
        case: Case of the image.
        data: (channels, slices, H, W), or None.
        properties: The reader's properties.
        problem: Why reading failed, as a predicate that follows the file's path in a message.
        seconds: Time spent on reading.
    """

    case: Case
    data: NDArray[Any] | None = None
    properties: dict[str, Any] = field(default_factory=dict)
    problem: str = ""
    seconds: float = 0.0


def read_images(cases: Sequence[Case], model: Model, bits: int | None = None) -> Iterator[ReadImage]:
    """Yield images in the order of their cases.

    Args:
        cases: Cases to read.
        model: Model that the images are for.
        bits: Bit depth that 16-bit pictures are scaled from; None means the depth that the brightest picture needs.
    """
    processes = max(1, min(_MAX_PROCESSES, count_cores() // 2))
    # isolated, as decoders print, crash and use much memory
    with workers(processes, isolated=True) as pool:
        if bits is None:
            bits = _bits_of_all(cases, pool)
        read = partial(_read, model, bits)
        for start in range(0, len(cases), _CHUNK):
            yield from pool.map(read, cases[start : start + _CHUNK], None, partial(ReadImage, problem=KILLED))


def _bits_of_all(cases: Sequence[Case], pool: Workers) -> int:
    deep = [case.files[0] for case in cases if not case.is_stock and _may_be_deep(case.files[0])]
    return max(pool.map(_bits, deep, None, lambda _: 0), default=0)


def _may_be_deep(path: Path) -> bool:
    if path.suffix.lower() != ".png":
        return path.suffix.lower() in (".tif", ".tiff")
    try:
        with path.open("rb") as file:
            return file.read(_PNG_DEPTH + 1)[_PNG_DEPTH:] == bytes([16])
    except OSError:
        return False


def _bits(path: Path) -> int:
    from nnunet_mamba_mis.dataset_conversion.images import SourceImage

    try:
        return SourceImage(path).bits
    except BadFileError:
        return 0


def _read(model: Model, bits: int, case: Case) -> ReadImage:
    start = time.perf_counter()
    data, properties, problem = _by_the_model(model, case) if case.is_stock else (None, {}, "")
    # even a file named like the model's images may have a palette or an alpha channel
    if data is None and model.is_of_pictures and len(case.files) == 1:
        data, properties, problem = _as_picture(model, bits, case.files[0])
    return ReadImage(case, data, properties, problem, time.perf_counter() - start)


def _by_the_model(model: Model, case: Case) -> tuple[NDArray[Any] | None, dict[str, Any], str]:
    """Read an image as nnU-Net does."""
    try:
        with captured_output():
            data, properties = model.reader_writer().read_images([str(file) for file in case.files])
    except Exception as error:  # each library that nnU-Net reads with raises exceptions of its own
        return None, {}, f"cannot be read: {type(error).__name__}: {' '.join(str(error).split())}"
    if len(data) != model.channels:
        return None, {}, f"has {counted(len(data), 'channel')}, but the model takes {model.channels}"
    if data.ndim != 4 or not data.size or not np.isfinite(data).all():
        return None, {}, "is empty, or holds NaN or infinite values"
    if model.plans.image_reader_writer == NATURAL_READER and data.min() >= 0 and data.max() <= 255:
        # nnU-Net converts 8-bit pixels to float, which is four times as much to send between processes
        small = data.astype(np.uint8)
        data = small if np.array_equal(small, data) else data
    return data, properties, ""


def _as_picture(model: Model, bits: int, path: Path) -> tuple[NDArray[Any] | None, dict[str, Any], str]:
    """Read a picture as `mamba_mis convert` does: upright, with 8 bits per channel."""
    # imported only in the reading process, so that the predicting process starts sooner
    from nnunet_mamba_mis.dataset_conversion.images import SourceImage, upright

    try:
        image = SourceImage(path)
        image.check()
        picture = np.asarray(upright(image.rgb(bits or image.bits), image.orientation))
    except BadFileError as error:
        return None, {}, str(error)
    if model.channels == 1:
        if (picture != picture[..., :1]).any():
            return None, {}, "has colours, but the model takes grey images: convert it to grey"
        picture = picture[..., :1]
    # nnU-Net's reader returns this spacing for every picture
    return np.ascontiguousarray(picture.transpose(2, 0, 1)[:, None]), {"spacing": (999, 1, 1)}, ""
