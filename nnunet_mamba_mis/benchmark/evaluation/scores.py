"""Score every prediction of every fold, and keep the cases that all models have."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnunet_mamba_mis.benchmark.evaluation.folds import Found, Model, Truth, shortened
from nnunet_mamba_mis.benchmark.evaluation.metrics import Counts, Mask, Score, score, total

if TYPE_CHECKING:
    from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

# the name under which the mean of a case's classes is reported
MEAN = "mean of classes"

Label = int | tuple[int, ...]


class Run(NamedTuple):
    """What a prediction of a case can be told apart by, besides its model: the seed and the fold."""

    seed: str
    fold: int | str
    case: str

    def __str__(self) -> str:
        return f"{self.case} (fold {self.fold}{f', seed {self.seed}' if self.seed else ''})"


@dataclass(frozen=True)
class Labels:
    """The foreground classes or regions of a dataset.json.

    Args:
        of_class: label, or labels of a region, of each class.
        ignored: label of pixels that do not count, if there is one.
        file_ending: of label maps.
        reader: nnU-Net's class that reads them.
    """

    of_class: Mapping[str, Label]
    ignored: int | None
    file_ending: str
    reader: type[BaseReaderWriter]

    @classmethod
    def of(cls, description: Mapping[str, Any]) -> Labels:
        """Read dataset.json, where regions are lists of labels."""
        from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

        labels = {name: _label(value) for name, value in description["labels"].items()}
        ignored = labels.pop("ignore", None)
        foreground = {name: value for name, value in labels.items() if value not in (0, (0,))}
        assert ignored is None or isinstance(ignored, int)
        reader = determine_reader_writer_from_dataset_json(dict(description), verbose=False)
        return cls(foreground, ignored, description["file_ending"], reader)


@dataclass(frozen=True)
class Scores:
    """Scores of a dataset's validation cases.

    Args:
        classes: in their order.
        of_model: for each model, of each run of a case, of each class. All models have the same runs.
        problems: what was left out, in words.
    """

    classes: Sequence[str]
    of_model: Mapping[Model, Mapping[Run, Mapping[str, Score]]]
    problems: Sequence[str]

    @property
    def rows(self) -> list[str]:
        """The classes, and their mean if there is more than one."""
        return [*self.classes, MEAN] if len(self.classes) > 1 else list(self.classes)

    @property
    def runs(self) -> list[Run]:
        """That every model has."""
        return sorted(next(iter(self.of_model.values()), ()))

    @property
    def cases(self) -> list[str]:
        """That every model has."""
        return sorted({run.case for run in self.runs})

    def values(self, model: Model, metric: str, row: str, fold: int | str | None = None) -> dict[str, float]:
        """Return a metric of each case, the mean over seeds if there are several; NaN where it is undefined.

        Args:
            model: whose scores.
            metric: of METRICS.
            row: a class, or MEAN for the mean of a case's classes that have a value.
            fold: only the cases of this one.
        """
        classes = self.classes if row == MEAN else [row]
        of_case: dict[str, list[float]] = {}
        for run, scored in self.of_model[model].items():
            if fold in (None, run.fold):
                of_case.setdefault(run.case, []).append(_mean([scored[name].value(metric) for name in classes]))
        return {case: _mean(values) for case, values in sorted(of_case.items())}

    def counts(self, model: Model, name: str) -> list[Counts]:
        """Return the pixels of a class of all runs."""
        return [scored[name].counts for scored in self.of_model[model].values()]

    def global_counts(self, model: Model, name: str) -> Counts:
        """Return the pixels of a class of all runs together."""
        return total(self.counts(model, name))


def score_all(truth: Truth, found: Found, tolerance: float, processes: int, say: Callable[[str], None]) -> Scores:
    """Score all predictions, and keep what every model has.

    Args:
        truth: of the dataset.
        found: its folds.
        tolerance: of the normalised surface Dice.
        processes: to score with.
        say: takes a line of progress.
    """
    labels = Labels.of(truth.description)
    problems: list[str] = []
    of_model: dict[Model, dict[Run, dict[str, Score]]] = {model: {} for model in found.models}
    with _mapping(processes) as apply:
        for fold in found.folds:
            say(f"{truth.title}: {fold}, {len(fold.predictions)} cases")
            jobs = [
                Job(truth.labels / f"{case}{labels.file_ending}", file, labels, tolerance)
                for case, file in fold.predictions.items()
            ]
            for case, result in zip(fold.predictions, apply(score_case, jobs), strict=True):
                if isinstance(result, str):
                    problems.append(f"{fold}, case {case} is left out: {result}")
                else:
                    of_model[fold.model][Run(fold.seed, fold.number, case)] = result
    common = set.intersection(*(set(runs) for runs in of_model.values()))
    problems += _left_out(of_model, common)
    kept = {model: {run: runs[run] for run in sorted(common)} for model, runs in of_model.items()}
    return Scores(list(labels.of_class), kept, problems)


class Job(NamedTuple):
    """Files of a case to score."""

    truth: Path
    prediction: Path
    labels: Labels
    tolerance: float


def score_case(job: Job) -> dict[str, Score] | str:
    """Return the score of each class, or why there is none."""
    try:
        (truth, spacing), (prediction, _) = (read_label_map(path, job.labels) for path in (job.truth, job.prediction))
    except ValueError as error:
        return str(error)
    if truth.shape != prediction.shape:
        return f"{job.prediction} has shape {prediction.shape}, the ground truth {truth.shape}"
    counted = None if job.labels.ignored is None else truth != job.labels.ignored
    return {
        name: score(mask_of(truth, label), mask_of(prediction, label), spacing, job.tolerance, counted)
        for name, label in job.labels.of_class.items()
    }


def read_label_map(path: Path, labels: Labels) -> tuple[NDArray[Any], tuple[float, ...]]:
    """Read a label map with nnU-Net's reader.

    Returns:
        (H, W), or (D, H, W) if there are several slices, and the spacing of the axes.

    Raises:
        ValueError: the file cannot be read.
    """
    if not path.is_file():
        raise ValueError(f"there is no {path}")
    try:
        values, properties = labels.reader().read_seg(str(path))
    except Exception as error:  # every library that nnU-Net reads with has exceptions of its own
        raise ValueError(f"{path} cannot be read: {type(error).__name__} {error}") from None
    volume, spacing = values[0], tuple(float(size) for size in properties["spacing"])
    return (volume[0], spacing[1:]) if len(volume) == 1 else (volume, spacing)


def mask_of(label_map: NDArray[Any], label: Label) -> Mask:
    """Return where a label map has a label, or one of a region's."""
    return np.isin(label_map, label)


def _label(value: int | Sequence[int]) -> Label:
    return value if isinstance(value, int) else tuple(value)


def _mean(values: Sequence[float]) -> float:
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")


def _left_out(of_model: Mapping[Model, Mapping[Run, object]], common: set[Run]) -> Iterator[str]:
    """Name the runs that only some of the models have."""
    for model, runs in of_model.items():
        if further := sorted(set(runs) - common):
            cases = shortened(
                [f"{run.case} (fold {run.fold}{f', seed {run.seed}' * bool(run.seed)})" for run in further]
            )
            yield (
                f"{len(further)} of {len(runs)} predictions of {model} are left out of every table, as other models do "
                f"not have them: {cases}"
            )


@contextmanager
def _mapping(processes: int) -> Iterator[Callable[[Callable[[Job], Any], Sequence[Job]], Iterable[Any]]]:
    """Yield map, or one that works in processes."""
    if processes == 1:
        yield map
        return
    # forked processes can hang where torch has threads
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        yield lambda function, jobs: pool.map(function, jobs, chunksize=8)
