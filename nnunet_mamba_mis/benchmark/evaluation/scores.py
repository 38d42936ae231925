"""Score every prediction of every fold, and keep the cases that all models predicted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial, reduce
from multiprocessing import get_context
from operator import add
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nnunet_mamba_mis.benchmark.evaluation.calibration import Reliability
from nnunet_mamba_mis.benchmark.evaluation.folds import FoldSet, Truth
from nnunet_mamba_mis.benchmark.evaluation.metrics import Counts, Score, score
from nnunet_mamba_mis.benchmark.label_maps import Labels, probabilities_file, read_label_map, read_probabilities
from nnunet_mamba_mis.benchmark.model import Model
from nnunet_mamba_mis.utils.text import one_line, shortened

# name of the row with the mean over a case's classes
MEAN = "mean of classes"


class Run(NamedTuple):
    """The identity of a model's prediction: seed, fold and case."""

    seed: str
    fold: int | str
    case: str

    def __str__(self) -> str:
        return f"{self.case} (fold {self.fold}{f', seed {self.seed}' if self.seed else ''})"


@dataclass(frozen=True)
class Scores:
    """Scores of the validation cases of a dataset, or of the cases of a test set.

    Args:
        classes: The classes in their order.
        by_model: Model → run → class → score. All models have the same runs.
        problems: Descriptions of what was left out.
    """

    classes: Sequence[str]
    by_model: Mapping[Model, Mapping[Run, Mapping[str, Score]]]
    problems: Sequence[str]

    @property
    def rows(self) -> list[str]:
        """Rows of tables: the classes, and their mean if there are several."""
        return [*self.classes, MEAN] if len(self.classes) > 1 else list(self.classes)

    @property
    def runs(self) -> list[Run]:
        """The runs, which are the same for all models."""
        return sorted(next(iter(self.by_model.values()), ()))

    @property
    def cases(self) -> list[str]:
        """The cases, which are the same for all models."""
        return sorted({run.case for run in self.runs})

    def values(
        self, model: Model, metric: str, row: str, fold: int | str | None = None, seed: str | None = None
    ) -> dict[str, float]:
        """Return a metric of each case, averaged over seeds; NaN if it is undefined.

        Args:
            model: The model.
            metric: A key of METRICS.
            row: A class, or MEAN for the mean over a case's classes that have a value.
            fold: Restrict to the cases of this fold.
            seed: Restrict to the runs of this seed.
        """
        classes = self.classes if row == MEAN else [row]
        by_case: dict[str, list[float]] = {}
        for run, scored in self.by_model[model].items():
            if fold in (None, run.fold) and seed in (None, run.seed):
                by_case.setdefault(run.case, []).append(mean_of_defined(scored[name].value(metric) for name in classes))
        return {case: mean_of_defined(values) for case, values in sorted(by_case.items())}

    def counts(self, model: Model, name: str) -> list[Counts]:
        """Return the pixel counts of a class for all runs."""
        return [scored[name].counts for scored in self.by_model[model].values()]

    def reliability(self, model: Model, name: str) -> Reliability | None:
        """Return the reliability of a class's probabilities over all runs; None unless all runs have probabilities."""
        of_runs = [scored[name].reliability for scored in self.by_model[model].values()]
        known = [reliability for reliability in of_runs if reliability is not None]
        return reduce(add, known) if known and len(known) == len(of_runs) else None


def score_all(truth: Truth, fold_set: FoldSet, tolerance: float, processes: int) -> Scores:
    """Score all predictions, and keep the cases that every model predicted.

    Args:
        truth: Ground truth of the dataset or test set.
        fold_set: Folds of the dataset, or ensembles of folds that predicted the test set.
        tolerance: Tolerance of the normalised surface Dice, in units of the spacing.
        processes: Number of processes for scoring.
    """
    labels = truth.classes
    score_files = partial(score_case, labels=labels, tolerance=tolerance)
    problems: list[str] = []
    by_model: dict[Model, dict[Run, dict[str, Score]]] = {model: {} for model in fold_set.models}
    with _mapping(processes) as apply:
        for fold in fold_set.folds:
            print(one_line(f"{truth.title}: {fold}, {len(fold.predictions)} cases"))
            truths = [truth.labels / f"{case}{labels.file_ending}" for case in fold.predictions]
            results = apply(score_files, truths, fold.predictions.values())
            for case, result in zip(fold.predictions, results, strict=True):
                if isinstance(result, str):
                    problems.append(f"{fold}, case {case} is left out: {result}")
                else:
                    by_model[fold.model][Run(fold.seed, fold.number, case)] = result
    common = set.intersection(*(set(runs) for runs in by_model.values()))
    problems += _not_in_all_models(by_model, common)
    kept = {model: {run: runs[run] for run in sorted(common)} for model, runs in by_model.items()}
    return Scores(list(labels.of_class), kept, problems)


def score_case(truth_file: Path, predicted_file: Path, labels: Labels, tolerance: float) -> dict[str, Score] | str:
    """Return the score of each class, or the reason why the case cannot be scored."""
    try:
        (truth, spacing), (prediction, _) = (read_label_map(file, labels) for file in (truth_file, predicted_file))
    except ValueError as error:
        return str(error)
    if truth.shape != prediction.shape:
        return f"{predicted_file} has shape {prediction.shape}, but the ground truth has {truth.shape}"
    counted = None if labels.ignored is None else truth != labels.ignored
    masks, predicted = labels.masks(truth), labels.masks(prediction)
    scores = {name: score(mask, predicted[name], spacing, tolerance, counted) for name, mask in masks.items()}
    saved = probabilities_file(predicted_file, labels.file_ending)
    if not saved.is_file():
        return scores
    try:
        probabilities = read_probabilities(saved, labels, truth.shape)
    except ValueError as error:
        return str(error)
    return {
        name: replace(scored, reliability=Reliability.measure(probabilities[name], masks[name], counted))
        for name, scored in scores.items()
    }


def mean_of_defined(values: Iterable[float]) -> float:
    """Return the mean of the values that are not NaN; NaN without such values."""
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")


def _not_in_all_models(by_model: Mapping[Model, Mapping[Run, object]], common: set[Run]) -> Iterator[str]:
    """Yield, for each model with runs that another model lacks, a description of these runs."""
    for model, runs in by_model.items():
        if further := sorted(set(runs) - common):
            cases = shortened(list(map(str, further)))
            yield (
                f"{len(further)} of {len(runs)} predictions of {model} are left out of every table, as other models "
                f"lack them: {cases}"
            )


@contextmanager
def _mapping(processes: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """Provide map, or a version of it that uses several processes."""
    if processes == 1:
        yield map
        return
    # forked processes can hang if torch has threads
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        yield partial(pool.map, chunksize=8)
