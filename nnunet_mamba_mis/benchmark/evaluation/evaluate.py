"""Find, read and score all results of a dataset, for reports and tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_mamba_mis.benchmark.evaluation.folds import Fold, FoldSet, Truth, find_folds, find_truth, short_names
from nnunet_mamba_mis.benchmark.evaluation.scores import Scores, score_all
from nnunet_mamba_mis.benchmark.evaluation.statistics import Comparison, compare_all
from nnunet_mamba_mis.benchmark.evaluation.test_predictions import find_tests
from nnunet_mamba_mis.benchmark.evaluation.training_records import (
    TrainingRecord,
    comparability_warnings,
    read_training,
)
from nnunet_mamba_mis.benchmark.model import Model
from nnunet_mamba_mis.nnunet.paths import folder_if_set
from nnunet_mamba_mis.utils.errors import UserError

# costs of a dataset's models: kind of cost → model → number
Costs = Mapping[str, Mapping[Model, float]]


@dataclass(frozen=True)
class Evaluation:
    """Results of a dataset's models, in cross-validation or on a test set.

    Args:
        truth: Ground truth of the dataset or test set.
        fold_set: Folds, and descriptions of missing ones.
        records: Record of each fold's training; empty for a test set.
        scores: Scores of the cases that all models predicted.
        costs: Costs in addition to those in the records: kind → model → number.
    """

    truth: Truth
    fold_set: FoldSet
    records: Mapping[Fold, TrainingRecord]
    scores: Scores
    costs: Costs

    @property
    def names(self) -> dict[Model, str]:
        """Short names of the models, the baseline first."""
        return short_names(self.fold_set.models)

    @property
    def main_row(self) -> str:
        """The row to compare models by: the only class, or the mean of all classes."""
        return self.scores.rows[-1]

    @property
    def warnings(self) -> list[str]:
        """Warnings about differences between models, missing results, and results left out."""
        warnings = [*comparability_warnings(self.records), *self.fold_set.problems, *self.scores.problems]
        if len({run.seed for run in self.scores.runs}) == 1:
            warnings.append(
                "One seed: the variation of scores between training runs is unknown, and no interval includes it."
            )
        return warnings

    def values(self, metric: str) -> dict[str, dict[str, float]]:
        """Return a metric of the main row: model name → case → value."""
        return {name: self.scores.values(model, metric, self.main_row) for model, name in self.names.items()}

    def compare(self, metric: str) -> list[Comparison]:
        """Compare every pair of models."""
        return compare_all(self.values(metric), self.truth.group_of)

    def problem_without_common_case(self) -> str:
        """Return the reason why nothing can be compared, or "" if models can be compared."""
        if self.scores.runs:
            return ""
        folds = {
            model: ", ".join(str(fold.number) for fold in self.fold_set.folds if fold.model == model)
            for model in self.fold_set.models
        }
        predicted = "; ".join(f"{model}: folds {numbers}" for model, numbers in folds.items())
        reasons = "; ".join(["", *self.fold_set.problems, *self.scores.problems])
        return (
            f"{self.truth.title}: no case was predicted by all models, so there is nothing to compare ({predicted})"
            f"{reasons}"
        )


@dataclass(frozen=True)
class DatasetEvaluation:
    """All results of a dataset's models.

    Args:
        validated: Results of cross-validation.
        tested: Results on each test set that the models predicted.
    """

    validated: Evaluation
    tested: Sequence[Evaluation]

    @property
    def all(self) -> list[Evaluation]:
        """Cross-validation, then the test sets."""
        return [self.validated, *self.tested]


def evaluate_datasets(
    datasets: Sequence[str],
    roots: Sequence[Path],
    trainers: Sequence[str] | None,
    tolerance: float,
    processes: int,
    measure: Callable[[str, Sequence[Model]], Costs] | None,
) -> list[DatasetEvaluation]:
    """Find the results of all datasets, then score them.

    Args:
        datasets: Ids or names of datasets.
        roots: Folders like nnUNet_results.
        trainers: Trainers to compare, the baseline first; all by default.
        tolerance: Tolerance of the normalised surface Dice, in units of the spacing.
        processes: Number of processes for scoring.
        measure: Function that takes a dataset and its models, and returns costs that are not in the logs.

    Raises:
        UserError: Results are missing or contradictory.
    """
    raw, preprocessed = folder_if_set("nnUNet_raw"), folder_if_set("nnUNet_preprocessed")
    truths = [find_truth(dataset, raw, preprocessed) for dataset in dict.fromkeys(datasets)]
    fold_sets = [find_folds(truth, roots, trainers) for truth in truths]

    def evaluate(truth: Truth, fold_set: FoldSet, costs: Costs) -> Evaluation:
        records = {} if truth.test_set else {fold: read_training(fold) for fold in fold_set.folds}
        scores = score_all(truth, fold_set, tolerance, processes)
        return Evaluation(truth, fold_set, records, scores, costs)

    evaluations = []
    for truth, fold_set in zip(truths, fold_sets, strict=True):
        tests, problems = find_tests(truth, roots, fold_set.models, raw)
        fold_set.problems.extend(problems)
        costs = measure(truth.name, fold_set.models) if measure else {}
        validated = evaluate(truth, fold_set, costs)
        if problem := validated.problem_without_common_case():
            raise UserError(f"{problem}; select trainers with --trainers")
        tested = []
        for test in tests:
            evaluation = evaluate(*test, costs={})
            if problem := evaluation.problem_without_common_case():
                fold_set.problems.append(problem)
            else:
                tested.append(evaluation)
        evaluations.append(DatasetEvaluation(validated, tested))
    return evaluations
