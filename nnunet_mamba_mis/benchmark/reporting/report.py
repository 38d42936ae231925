"""Read, score and compare what was trained, and write the report."""

from __future__ import annotations

import csv
import importlib.util
import io
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from nnunet_mamba_mis.benchmark.evaluation import folds as results
from nnunet_mamba_mis.benchmark.evaluation.folds import Fold, Found, Model, Truth
from nnunet_mamba_mis.benchmark.evaluation.metrics import METRICS
from nnunet_mamba_mis.benchmark.evaluation.scores import MEAN, Scores, score_all
from nnunet_mamba_mis.benchmark.evaluation.settings import Training, read_training, unfair
from nnunet_mamba_mis.benchmark.evaluation.statistics import RESAMPLES, Comparison, compare_all, estimate
from nnunet_mamba_mis.benchmark.evaluation.test_predictions import find_tests
from nnunet_mamba_mis.benchmark.reporting import figures, overlay_cases, tables
from nnunet_mamba_mis.benchmark.reporting.document import Block, Heading, Picture, Text, Warnings, to_html, to_markdown
from nnunet_mamba_mis.utils.atomic_write import atomic_write
from nnunet_mamba_mis.utils.errors import UserError

# compared pair by pair; the first is the one that is spoken of
_COMPARED = ("dice", "nsd", "hd95")
_TEST_SETS = (
    "Mean Dice of the cases, and mean IoU below it. In cross-validation a case is predicted with one fold, in a test "
    "set with the mean of all folds' probabilities. Each test set has a section of its own below."
)
# two-sided, with five observations, Wilcoxon's p cannot be below 0.0625
_FEWEST_GROUPS = 6

# of a dataset's models: kind of cost → model → number
Costs = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Evaluated:
    """A dataset's results.

    Args:
        truth: the dataset.
        found: folds and what is missing.
        trainings: of each fold.
        scores: of the cases that all models have.
        names: short ones of the models, the baseline first.
        costs: further ones: kind → model → number.
    """

    truth: Truth
    found: Found
    trainings: Mapping[Fold, Training]
    scores: Scores
    names: tables.Names
    costs: Costs

    @property
    def main_row(self) -> str:
        """What is spoken of: the only class, or the mean of all."""
        return self.scores.rows[-1]

    @property
    def group_of(self) -> Mapping[str, str]:
        """The group of cases that share one."""
        return self.truth.group_of

    def compare(self, metric: str) -> list[Comparison]:
        """Compare every pair of models."""
        values = {name: self.scores.values(model, metric, self.main_row) for model, name in self.names.items()}
        return compare_all(values, self.group_of)


def make_report(
    datasets: Sequence[str],
    roots: Sequence[Path] | None,
    trainers: Sequence[str] | None,
    output: Path,
    tolerance: float,
    processes: int = 1,
    measure: Callable[[str, Sequence[Model]], Costs] | None = None,
    overlays: bool = True,
) -> None:
    """Write report.html, report.md, cases.csv and figures.

    Args:
        datasets: ids or names.
        roots: folders like nnUNet_results; that of the environment by default.
        trainers: to compare, the baseline first; all by default.
        output: folder to write; its other files are left alone.
        tolerance: of the normalised surface Dice, in the unit of the spacing.
        processes: to score with.
        measure: takes dataset and models, returns costs beyond those in the logs.
        overlays: whether there are pictures of cases.

    Raises:
        UserError: something is missing or contradictory.
    """
    _check(tolerance, processes)
    raw, preprocessed, stock_results = (
        Path(os.environ[name]) if os.environ.get(name) else None
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
    )
    roots = roots or ([stock_results] if stock_results else [])
    _check_roots(roots)
    _make_folder(output)
    truths = [results.find_truth(dataset, raw, preprocessed) for dataset in dict.fromkeys(datasets)]
    found = [results.find_folds(truth, roots, trainers) for truth in truths]
    evaluated: list[Evaluated] = []
    blocks = _introduction(tolerance)
    for truth, of_dataset in zip(truths, found, strict=True):
        tests, problems = find_tests(truth, roots, of_dataset.models, raw)
        of_dataset.problems.extend(problems)
        costs = measure(truth.name, of_dataset.models) if measure else {}
        validated = _evaluate(truth, of_dataset, tolerance, processes, costs)
        if nothing := _nothing_in_common(validated):
            raise UserError(f"{nothing}; choose with --trainers")
        tested = []
        for test in (_evaluate(*one, tolerance, processes, {}) for one in tests):
            if nothing := _nothing_in_common(test):
                of_dataset.problems.append(nothing)
            else:
                tested.append(test)
        evaluated += [validated, *tested]
        blocks += _dataset(validated, tested, output, overlays)
    title = "Benchmark: " + ", ".join(truth.name for truth in truths)
    blocks.insert(0, Heading(1, title))
    for name, content in {
        "cases.csv": _cases(evaluated),
        "report.md": to_markdown(blocks),
        "report.html": to_html(title, blocks),
    }.items():
        with atomic_write(output / name) as file:
            file.write(content.encode())
    print(f"{output / 'report.html'}, report.md and cases.csv are written")


def _check(tolerance: float, processes: int) -> None:
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise UserError(f"--tolerance {tolerance:g}: it must be a distance, 0 or more")
    if processes < 1:
        raise UserError(f"-np {processes}: it must be 1 or more")
    if importlib.util.find_spec("monai") is None:
        raise UserError("distances between surfaces need monai: pip install 'nnunet-mamba-mis[benchmark]'")


def _check_roots(roots: Sequence[Path]) -> None:
    if not roots:
        raise UserError("nnUNet_results is not set: export nnUNet_results=/path, or name folders with --results")
    for root in roots:
        if not root.is_dir():
            raise UserError(f"there is no folder {root}: --results takes folders like nnUNet_results")


def _make_folder(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"-o {output}: the folder cannot be made: {error.strerror}") from None


def _evaluate(truth: Truth, found: Found, tolerance: float, processes: int, costs: Costs) -> Evaluated:
    trainings = {} if truth.test_set else {fold: read_training(fold) for fold in found.folds}
    scores = score_all(truth, found, tolerance, processes, print)
    names = results.short_names(found.models)
    named = {
        kind: {name: of_model[str(model)] for model, name in names.items() if str(model) in of_model}
        for kind, of_model in costs.items()
    }
    return Evaluated(truth, found, trainings, scores, names, named)


def _nothing_in_common(one: Evaluated) -> str:
    """Why nothing can be compared; empty if something can."""
    if one.scores.runs:
        return ""
    have = "; ".join(f"{model}: folds {_folds(one.found, model)}" for model in one.found.models)
    reasons = "\n  ".join(["", *one.found.problems, *one.scores.problems])
    return f"{one.truth.title}: the models have no case in common, so nothing can be compared ({have}){reasons}"


def _folds(found: Found, model: Model) -> str:
    return ", ".join(str(fold.number) for fold in found.folds if fold.model == model)


def _introduction(tolerance: float) -> list[Block]:
    packages = ", ".join(f"{name} {version(name)}" for name in ("nnunet-mamba-mis", "nnunetv2", "torch", "monai"))
    return [
        Text(
            "Validation cases of cross-validation, predicted by nnU-Net with the fold that was not trained on them; "
            "and test sets that were predicted with the mean of a model's folds, each in a section of its own. "
            "Every number in a table is over the same cases for all models; what was left out is named."
        ),
        Text(
            "Scores are means over cases ± standard deviation. [Brackets] are 95% intervals of the mean: percentiles "
            f"of {RESAMPLES:,} bootstrap samples that draw whole groups (patients, lesions, sequences) where the "
            "dataset's conversion recorded them, cases otherwise. A case in which a class is in neither ground truth "
            "nor prediction has no score and is counted below. HD95 and NSD are between surfaces with subvoxels, in "
            f"the unit of the images' spacing (pixels for PNGs); NSD's tolerance is {tolerance:g}; where one mask is "
            "empty, HD95 is the image's diagonal and NSD 0."
        ),
        Text(f"Made with {packages}."),
    ]


def _dataset(validated: Evaluated, tested: Sequence[Evaluated], output: Path, overlays: bool) -> list[Block]:
    """Cross-validation, then each test set."""
    one = validated
    blocks = [*_head(one), *_scores(one)]
    blocks += [Text(f"Mean Dice of each fold{_of_row(one)}:"), tables.fold_table(one.scores, one.names, one.main_row)]
    blocks += [*_pixels(one), *_comparisons(one, output), *_cost(one, output)]
    blocks += [Heading(3, "How they were trained"), tables.training_table(one.names, one.trainings)]
    blocks += _curves(one, output)
    if overlays:
        blocks += _overlays(one, output)
    if tested:
        all_scores = {one.truth.test_set or "cross-validation": (one.scores, one.main_row) for one in (one, *tested)}
        blocks += [Heading(3, "Test sets"), Text(_TEST_SETS), tables.test_table(one.names, all_scores)]
    for test in tested:
        blocks += [*_head(test), *_scores(test), *_pixels(test), *_comparisons(test, output)]
        if overlays:
            blocks += _overlays(test, output)
    return blocks


def _head(one: Evaluated) -> list[Block]:
    blocks: list[Block] = [Heading(2, one.truth.title), Text(_what_was_compared(one)), Warnings(_warnings(one))]
    if len(one.names) > 1:
        blocks.append(Text(" ".join(tables.verdicts(one.compare("dice"), "dice", one.names))))
    return blocks


def _scores(one: Evaluated) -> list[Block]:
    blocks: list[Block] = [Heading(3, "Scores")]
    for row in one.scores.rows:
        if len(one.scores.rows) > 1:
            blocks.append(Text(f"{row[0].upper()}{row[1:]}:"))
        blocks.append(tables.score_table(one.scores, one.names, row, one.group_of))
    return blocks


def _pixels(one: Evaluated) -> list[Block]:
    return [
        Text("Empty masks: the class is in neither ground truth nor prediction, only in the one, only in the other."),
        tables.empty_table(one.scores, one.names),
        Text(
            "All pixels of all cases together, as papers on skin lesions and polyps print them under the names Dice, "
            "IoU and mIoU. Large objects dominate these; they are not to be compared with means over cases."
        ),
        tables.pixel_table(one.scores, one.names),
    ]


def _what_was_compared(one: Evaluated) -> str:
    cases = one.scores.cases
    grouped = {one.group_of[case] for case in cases if case in one.group_of}
    units = len(grouped) + sum(case not in one.group_of for case in cases)
    groups = f" in {units} groups" if grouped else " (no groups are recorded: each case is one of its own)"
    seeds = sorted({run.seed for run in one.scores.runs})
    of_seeds = f", seeds {', '.join(seed or 'none' for seed in seeds)}" if seeds != [""] else ""
    folds = ", ".join(map(str, sorted({run.fold for run in one.scores.runs})))
    return f"{len(cases)} cases{groups}, folds {folds}{of_seeds}, baseline {next(iter(one.names.values()))}."


def _warnings(one: Evaluated) -> list[str]:
    found = [*unfair(one.trainings), *one.found.problems, *one.scores.problems]
    if len({run.seed for run in one.scores.runs}) == 1:
        found.append("One seed: how much scores vary from training to training is not known, and in no interval.")
    return found


def _of_row(one: Evaluated) -> str:
    return f" ({MEAN})" if one.main_row == MEAN else ""


def _comparisons(one: Evaluated, output: Path) -> list[Block]:
    blocks: list[Block] = [Heading(3, "Paired comparison")]
    compared = {metric: one.compare(metric) for metric in _COMPARED}
    if not compared["dice"]:
        return [*blocks, Text("There are no two models with scores on the same cases, so nothing is tested.")]
    blocks.append(
        Text(
            "Differences on the same cases. Wilcoxon's signed-rank test, two-sided, compares the means of groups, or "
            "cases where there are none; higher / lower / equal counts them. The effect size is the matched-pairs "
            "rank-biserial correlation: 1 if the first named is higher everywhere, -1 if it is lower. Holm's "
            "adjustment is for all pairs of a table. For HD95, lower is better. Folds share training images, which "
            f"no such test accounts for.{_of_row(one)}"
        )
    )
    fewest = min(pair.difference.groups for pairs in compared.values() for pair in pairs)
    if fewest < _FEWEST_GROUPS:
        blocks.append(Warnings([f"With {fewest} groups, no difference can be significant at 5%, however large."]))
    blocks += [tables.comparison_table(pairs, metric) for metric, pairs in compared.items()]
    baseline = next(iter(one.names.values()))
    dice = {name: one.scores.values(model, "dice", one.main_row) for model, name in one.names.items()}
    differences = {
        pair.second: (pair, {case: value - dice[baseline][case] for case, value in dice[pair.second].items()})
        for pair in compared["dice"]
        if pair.first == baseline
    }
    file = figures.draw_paired_differences(differences, "Dice", baseline, output / f"{one.truth.stem}_differences.png")
    caption = "Difference in Dice to the baseline, case by case. Dashed: mean; grey: its 95% interval."
    return [*blocks, Picture(file, caption)]


def _cost(one: Evaluated, output: Path) -> list[Block]:
    costs = {**tables.training_costs(one.names, one.trainings), **one.costs}
    if not costs:
        return []
    hardware = {
        name: "; ".join(
            dict.fromkeys(t.hardware for fold, t in one.trainings.items() if fold.model == model and t.hardware)
        )
        for model, name in one.names.items()
    }
    dice = {name: estimate(one.scores.values(m, "dice", one.main_row), one.group_of) for m, name in one.names.items()}
    plotted = {tables.SECONDS_PER_EPOCH: costs.get(tables.SECONDS_PER_EPOCH, {}), **one.costs}
    file = figures.draw_cost(
        dice, {kind: known for kind, known in plotted.items() if known}, output / f"{one.truth.stem}_cost.png"
    )
    return [
        Heading(3, "Cost"),
        Text(
            "Times are nnU-Net's own, from the logs; they compare only on the same hardware with nothing else running."
        ),
        tables.cost_table(one.names, costs, hardware),
        Picture(file, "Mean Dice against cost."),
    ]


def _curves(one: Evaluated, output: Path) -> list[Block]:
    epochs = {
        name: [training.epochs for fold, training in one.trainings.items() if fold.model == model and training.epochs]
        for model, name in one.names.items()
    }
    known = {name: folds for name, folds in epochs.items() if folds}
    if not known:
        return []
    file = figures.draw_training_curves(known, output / f"{one.truth.stem}_training.png")
    return [Picture(file, "Course of training from nnU-Net's logs. Thin: folds; thick: their mean.")]


def _overlays(one: Evaluated, output: Path) -> list[Block]:
    chosen = overlay_cases.choose(one.scores, one.names, one.main_row)
    if not chosen:
        return []
    shown = overlay_cases.panels(chosen, one.truth, one.found.folds, one.scores, list(one.names))
    file = figures.draw_overlays(shown, list(one.names.values()), output / f"{one.truth.stem}_overlays.png")
    rule = (
        "Cases are chosen by rule: at fixed quantiles of the baseline's Dice, and each other model's largest gain and "
        "loss against it."
    )
    return [Heading(3, "Predictions"), Text(rule), Picture(file, "Ground truth and predictions.")]


def _cases(evaluated: Sequence[Evaluated]) -> str:
    """One row per case, fold, model, seed and class."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = ["dataset", "test_set", "case", "group", "fold", "trainer", "plans", "configuration", "seed", "class"]
    writer.writerow([*names, "tp", "fp", "fn", "tn", *METRICS])
    for one in evaluated:
        for model, runs in one.scores.of_model.items():
            for run, scored in runs.items():
                group = one.group_of.get(run.case, run.case)
                for name, score in scored.items():
                    counts = score.counts
                    pixels = [counts.tp, counts.fp, counts.fn, counts.tn]
                    values = [score.value(metric) for metric in METRICS]
                    cells = ["" if math.isnan(value) else f"{value:.6g}" for value in values]
                    which = [one.truth.name, one.truth.test_set, run.case, group, run.fold, *model, run.seed, name]
                    writer.writerow([*which, *pixels, *cells])
    return text.getvalue()
