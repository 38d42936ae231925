"""Build the report's blocks: an introduction, then the sections of each dataset."""

from __future__ import annotations

from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path

from nnunet_mamba_mis.benchmark.evaluation.calibration import BINS
from nnunet_mamba_mis.benchmark.evaluation.evaluate import DatasetEvaluation, Evaluation
from nnunet_mamba_mis.benchmark.evaluation.scores import MEAN
from nnunet_mamba_mis.benchmark.evaluation.statistics import RESAMPLES, estimate
from nnunet_mamba_mis.benchmark.model import Model
from nnunet_mamba_mis.benchmark.reporting import figures, overlay_cases, tables
from nnunet_mamba_mis.benchmark.reporting.document import Block, Heading, Picture, Text, Warnings

# metrics to compare pair by pair
_COMPARED = ("dice", "nsd", "hd95")
# with five observations, the two-sided p of Wilcoxon's test cannot be below 0.0625
_FEWEST_GROUPS = 6


def introduction(tolerance: float) -> list[Block]:
    """Return the explanations that apply to all tables.

    Args:
        tolerance: Tolerance of the normalised surface Dice, in units of the spacing.
    """
    packages = ", ".join(f"{name} {version(name)}" for name in ("nnunet-mamba-mis", "nnunetv2", "torch", "monai"))
    return [
        Text(
            "This report covers cross-validation, in which nnU-Net predicts each case with the fold that was not "
            "trained on it, and test sets, predicted with the average of a model's folds. Each test set has its own "
            "section. In every table, all models are compared on the same cases; warnings list what was left out."
        ),
        Text(
            "Scores are means over cases ± standard deviation. [Brackets] are 95% intervals of the mean: percentiles "
            f"of {RESAMPLES:,} bootstrap samples, which draw whole groups (patients, lesions, sequences) if the "
            "dataset's conversion recorded them, and single cases otherwise. A case in which a class is in neither "
            "ground truth nor prediction has no score and is counted separately. HD95 and NSD compare surfaces with "
            f"subvoxel accuracy. HD95 and the tolerance of NSD ({tolerance:g}) are in units of the images' spacing "
            "(pixels for PNGs). If one mask is empty, HD95 is the image's diagonal and NSD is 0."
        ),
        Text(f"Made with {packages}."),
    ]


def dataset_sections(dataset: DatasetEvaluation, output: Path, overlays: bool) -> list[Block]:
    """Return the sections of cross-validation and of each test set.

    Args:
        dataset: Results of the dataset's models.
        output: Folder for the figures.
        overlays: Whether to draw pictures of cases.
    """
    validated = dataset.validated
    blocks = [
        *_head(validated),
        *_scores(validated),
        Text(f"Mean Dice of each fold{_of_row(validated)}:"),
        tables.fold_table(validated.scores, validated.names, validated.main_row),
        *_seeds(validated),
        *_pixels(validated),
        *_calibration(validated, output),
        *_comparisons(validated, output),
        *_cost(validated, output),
        Heading(3, "Training settings"),
        tables.training_table(validated.names, validated.records),
        *_curves(validated, output),
        *(_overlays(validated, output) if overlays else ()),
        *_all_sets(dataset),
    ]
    for test in dataset.tested:
        blocks += [*_head(test), *_scores(test), *_seeds(test), *_pixels(test)]
        blocks += [*_calibration(test, output), *_comparisons(test, output)]
        if overlays:
            blocks += _overlays(test, output)
    return blocks


def _head(evaluation: Evaluation) -> list[Block]:
    blocks: list[Block] = [
        Heading(2, evaluation.truth.title),
        Text(_what_was_compared(evaluation)),
        Warnings(evaluation.warnings),
    ]
    if len(evaluation.names) > figures.MOST_MODELS:
        blocks.append(Text(f"Figures show the first {figures.MOST_MODELS} of {len(evaluation.names)} models."))
    if len(evaluation.names) > 1:
        blocks.append(Text(" ".join(tables.verdicts(evaluation.compare("dice"), "dice", evaluation.names))))
    return blocks


def _what_was_compared(evaluation: Evaluation) -> str:
    runs, cases, group_of = evaluation.scores.runs, evaluation.scores.cases, evaluation.truth.group_of
    grouped = {group_of[case] for case in cases if case in group_of}
    units = len(grouped) + sum(case not in group_of for case in cases)
    groups = f" in {units} groups" if grouped else " (no groups are recorded, so each case is its own group)"
    seeds = sorted({run.seed for run in runs})
    seed_list = f", seeds {', '.join(seed or 'none' for seed in seeds)}" if seeds != [""] else ""
    folds = ", ".join(map(str, sorted({run.fold for run in runs})))
    return f"{len(cases)} cases{groups}, folds {folds}{seed_list}, baseline {_baseline(evaluation)}."


def _scores(evaluation: Evaluation) -> list[Block]:
    blocks: list[Block] = [Heading(3, "Scores")]
    for row in evaluation.scores.rows:
        if len(evaluation.scores.rows) > 1:
            blocks.append(Text(f"{row[:1].upper()}{row[1:]}:"))
        blocks.append(tables.score_table(evaluation.scores, evaluation.names, row, evaluation.truth.group_of))
    return blocks


def _seeds(evaluation: Evaluation) -> list[Block]:
    if len({run.seed for run in evaluation.scores.runs}) < 2:
        return []
    return [
        Text(f"Mean Dice of each seed{_of_row(evaluation)}:"),
        tables.seed_table(evaluation.scores, evaluation.names, evaluation.main_row),
    ]


def _calibration(evaluation: Evaluation, output: Path) -> list[Block]:
    scores, names = evaluation.scores, evaluation.names
    reliability = {
        label: {name: known for model, name in names.items() if (known := scores.reliability(model, label))}
        for label in scores.classes
    }
    with_probabilities = reliability[scores.classes[0]]
    if not with_probabilities:
        return []
    blocks: list[Block] = [
        Heading(3, "Calibration"),
        Text(
            f"Predicted probabilities compared with the frequency of the class, in {BINS} bins of equal width, over "
            "all pixels of all cases. Easy pixels dominate the expected calibration error, while the figure shows all "
            "bins equally. Below the diagonal, probabilities are too high."
        ),
        Warnings(
            [f"{name}: not all probabilities were saved." for name in names.values() if name not in with_probabilities]
        ),
        tables.calibration_table(reliability),
    ]
    drawn = set(_drawn(evaluation).values())
    curves = {
        label: {name: of_class[name].curve for name in of_class if name in drawn}
        for label, of_class in islice(reliability.items(), figures.MOST_CLASSES)
    }
    draw = partial(figures.draw_reliability, curves, list(_drawn(evaluation).values()))
    caption = "Frequency of the class against its predicted probability. Dotted line: perfect calibration."
    return [*blocks, Picture(_figure(evaluation, output, "calibration"), caption, draw)]


def _pixels(evaluation: Evaluation) -> list[Block]:
    return [
        Text(
            "Empty masks: number of predictions in which the class is in neither ground truth nor prediction, only in "
            "the ground truth (missed), or only in the prediction (spurious)."
        ),
        tables.empty_table(evaluation.scores, evaluation.names),
        Text(
            "Scores over the pixels of all cases together, which papers on skin lesions and polyps report as Dice, IoU "
            "and mIoU. Large objects dominate them, so do not compare them with means over cases."
        ),
        tables.pixel_table(evaluation.scores, evaluation.names),
    ]


def _comparisons(evaluation: Evaluation, output: Path) -> list[Block]:
    blocks: list[Block] = [Heading(3, "Paired comparison")]
    compared = {metric: evaluation.compare(metric) for metric in _COMPARED}
    if not compared["dice"]:
        return [*blocks, Text("No two models have scores on the same cases, so there is nothing to test.")]
    blocks.append(
        Text(
            "Differences are computed on the same cases. Wilcoxon's two-sided signed-rank test compares the means of "
            "groups, or single cases if no groups are recorded; the column higher / lower / equal counts these. The "
            "effect size is the matched-pairs rank-biserial correlation: 1 if the model named first is higher "
            "everywhere, -1 if it is lower everywhere. Holm's adjustment covers all pairs of a table. For HD95, lower "
            "is better. Folds share training images, which these tests do not account for."
            f"{_of_row(evaluation)}"
        )
    )
    fewest = min(pair.difference.groups for pairs in compared.values() for pair in pairs)
    if fewest < _FEWEST_GROUPS:
        blocks.append(Warnings([f"With {fewest} groups, no difference can be significant at 5%, however large."]))
    blocks += [tables.comparison_table(pairs, metric) for metric, pairs in compared.items()]
    baseline, dice = _baseline(evaluation), evaluation.values("dice")
    drawn = set(_drawn(evaluation).values())
    differences = {
        pair.second: (pair, {case: value - dice[baseline][case] for case, value in dice[pair.second].items()})
        for pair in compared["dice"]
        if pair.first == baseline and pair.second in drawn
    }
    if not differences:
        return blocks
    caption = "Difference in Dice from the baseline, case by case. Dashed line: mean; grey band: its 95% interval."
    draw = partial(figures.draw_paired_differences, differences, "Dice", baseline)
    return [*blocks, Picture(_figure(evaluation, output, "differences"), caption, draw)]


def _cost(evaluation: Evaluation, output: Path) -> list[Block]:
    costs = {**tables.training_costs(evaluation.names, evaluation.records), **evaluation.costs}
    if not costs:
        return []
    names, dice = _drawn(evaluation), evaluation.values("dice")
    estimates = {name: estimate(dice[name], evaluation.truth.group_of) for name in names.values()}
    plotted = {
        kind: {names[model]: value for model, value in costs[kind].items() if model in names}
        for kind in (tables.SECONDS_PER_EPOCH, *evaluation.costs)
        if costs.get(kind)
    }
    draw = partial(figures.draw_cost, estimates, plotted)
    return [
        Heading(3, "Cost"),
        Text("Times are from nnU-Net's logs. They are comparable only on the same hardware with nothing else running."),
        tables.cost_table(evaluation.names, costs, tables.hardware(evaluation.names, evaluation.records)),
        Picture(_figure(evaluation, output, "cost"), "Mean Dice against cost.", draw),
    ]


def _curves(evaluation: Evaluation, output: Path) -> list[Block]:
    epochs = {
        name: [record.epochs for fold, record in evaluation.records.items() if fold.model == model and record.epochs]
        for model, name in _drawn(evaluation).items()
    }
    logged = {name: folds for name, folds in epochs.items() if folds}
    if not logged:
        return []
    caption = "Training progress from nnU-Net's logs. Thin lines: folds; thick lines: their mean."
    return [Picture(_figure(evaluation, output, "training"), caption, partial(figures.draw_training_curves, logged))]


def _overlays(evaluation: Evaluation, output: Path) -> list[Block]:
    names = _drawn(evaluation)
    chosen = overlay_cases.choose(evaluation.scores, names, evaluation.main_row)
    if not chosen:
        return []

    def draw(file: Path) -> list[str]:
        folds = evaluation.fold_set.folds
        panels, problems = overlay_cases.panels(chosen, evaluation.truth, folds, evaluation.scores, list(names))
        figures.draw_overlays(panels, list(names.values()), file)
        return problems

    rule = (
        "A fixed rule selects the cases: quantiles of the baseline's Dice, and the largest gain and loss of each other "
        "model against the baseline."
    )
    picture = Picture(_figure(evaluation, output, "overlays"), "Ground truth and predictions.", draw)
    return [Heading(3, "Predictions"), Text(rule), picture]


def _all_sets(dataset: DatasetEvaluation) -> list[Block]:
    if not dataset.tested:
        return []
    scores = {
        evaluation.truth.test_set or "cross-validation": (evaluation.scores, evaluation.main_row)
        for evaluation in dataset.all
    }
    explanation = (
        "Mean Dice over cases, with the mean IoU below it. In cross-validation, one fold predicts each case; on test "
        "sets, the probabilities of all folds are averaged. Each test set has its own section below."
    )
    return [Heading(3, "Test sets"), Text(explanation), tables.test_table(dataset.validated.names, scores)]


def _drawn(evaluation: Evaluation) -> dict[Model, str]:
    """Return the models that figures show."""
    return dict(islice(evaluation.names.items(), figures.MOST_MODELS))


def _baseline(evaluation: Evaluation) -> str:
    return next(iter(evaluation.names.values()))


def _of_row(evaluation: Evaluation) -> str:
    return f" ({MEAN})" if evaluation.main_row == MEAN else ""


def _figure(evaluation: Evaluation, output: Path, name: str) -> Path:
    return output / f"{evaluation.truth.stem}_{name}.png"
