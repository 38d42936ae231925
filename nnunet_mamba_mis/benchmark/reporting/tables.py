"""The report's tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from nnunet_mamba_mis.benchmark.evaluation.calibration import Reliability
from nnunet_mamba_mis.benchmark.evaluation.evaluate import Costs
from nnunet_mamba_mis.benchmark.evaluation.folds import Fold
from nnunet_mamba_mis.benchmark.evaluation.metrics import METRICS, total
from nnunet_mamba_mis.benchmark.evaluation.scores import Scores
from nnunet_mamba_mis.benchmark.evaluation.statistics import Comparison, Estimate, estimate
from nnunet_mamba_mis.benchmark.evaluation.training_records import TrainingRecord, settings_of
from nnunet_mamba_mis.benchmark.model import Model
from nnunet_mamba_mis.benchmark.reporting.document import Table
from nnunet_mamba_mis.utils.text import one_line

SECONDS_PER_EPOCH = "seconds per epoch"
HOURS_OF_TRAINING = "hours of training, all folds"

Names = Mapping[Model, str]


def training_table(names: Names, records: Mapping[Fold, TrainingRecord]) -> Table:
    """Return a table of each model's training settings."""
    settings = {model: settings_of(model, records) for model in names}
    kinds = list(dict.fromkeys(kind for known in settings.values() for kind in known))
    header = ["", *(_wrapped_name(name) for name in names.values())]
    rows = [["plans", *(one_line(model.plans) for model in names)]]
    rows.append(["configuration", *(one_line(model.configuration) for model in names)])
    rows += [[kind, *(one_line(known.get(kind, "unknown")) for known in settings.values())] for kind in kinds]
    seeds = [sorted({fold.seed for fold in records if fold.model == model} - {""}) for model in names]
    if any(seeds):
        rows.append(["seeds", *(", ".join(numbers) for numbers in seeds)])
    folds = [sorted({fold.number for fold in records if fold.model == model}) for model in names]
    rows.append(["validated folds", *(", ".join(map(str, numbers)) for numbers in folds)])
    return Table(header, rows)


def score_table(scores: Scores, names: Names, row: str, group_of: Mapping[str, str]) -> Table:
    """Return mean ± SD over cases with a 95% interval of every metric, for a class or the mean of all classes."""
    rows = []
    for model, name in names.items():
        estimates = {metric: estimate(scores.values(model, metric, row), group_of) for metric in METRICS}
        cells = [estimate_cell(value, digits(metric)) for metric, value in estimates.items()]
        rows.append([_wrapped_name(name), str(estimates["dice"].cases), *cells])
    return Table(["", "cases", *METRICS.values()], rows)


def empty_table(scores: Scores, names: Names) -> Table:
    """Return how often each class is in neither mask, only in the ground truth, or only in the prediction."""
    rows = []
    for name in scores.classes:
        for model, shown in names.items():
            counts = scores.counts(model, name)
            missed = sum(pixels.tp + pixels.fp == 0 < pixels.fn for pixels in counts)
            spurious = sum(pixels.tp + pixels.fn == 0 < pixels.fp for pixels in counts)
            neither = sum(pixels.both_empty for pixels in counts)
            rows.append([*_class_and_model(scores, name, shown), *map(str, (len(counts), neither, missed, spurious))])
    return Table([*_class_and_model(scores, "class", ""), "predictions", "in neither", "missed", "spurious"], rows)


def pixel_table(scores: Scores, names: Names) -> Table:
    """Return scores of all pixels together, as in papers on skin lesions and polyps."""
    rows = []
    for name in scores.classes:
        for model, shown in names.items():
            together = total(scores.counts(model, name))
            values = (together.dice, together.iou, together.mean_iou)
            rows.append([*_class_and_model(scores, name, shown), *(f"{value:.3f}" for value in values)])
    columns = ["global-pixel Dice", "global-pixel IoU", "global-pixel mean IoU (foreground and background)"]
    return Table([*_class_and_model(scores, "class", ""), *columns], rows)


def calibration_table(reliability: Mapping[str, Mapping[str, Reliability]]) -> Table:
    """Return the expected calibration error and bias of each model.

    Args:
        reliability: Class → model → reliability.
    """
    several = len(reliability) > 1
    rows = [
        [*[one_line(name)] * several, _wrapped_name(model), f"{known.error:.4f}", f"{known.bias:+.4f}"]
        for name, by_model in reliability.items()
        for model, known in by_model.items()
    ]
    header = ["expected calibration error", "mean probability minus frequency"]
    return Table([*["class"] * several, "", *header], rows)


def seed_table(scores: Scores, names: Names, row: str) -> Table:
    """Return the mean Dice of each seed, and mean ± SD of these means."""
    seeds = sorted({run.seed for run in scores.runs})
    rows = []
    for model, name in names.items():
        means = np.array([estimate(scores.values(model, "dice", row, seed=seed), {}).mean for seed in seeds])
        last = f"{means.mean():.3f} ± {means.std(ddof=1):.3f}"
        rows.append([_wrapped_name(name), *(f"{mean:.3f}" for mean in means), last])
    return Table(["", *(f"seed {seed or 'none'}" for seed in seeds), "mean ± SD of seeds"], rows)


def fold_table(scores: Scores, names: Names, row: str) -> Table:
    """Return the mean Dice of each fold, and mean ± SD of these means."""
    folds = sorted({run.fold for run in scores.runs})
    sizes = {fold: len({run.case for run in scores.runs if run.fold == fold}) for fold in folds}
    rows = []
    for model, name in names.items():
        means = [estimate(scores.values(model, "dice", row, fold), {}).mean for fold in folds]
        over = np.array([mean for mean in means if not np.isnan(mean)])
        deviation = f" ± {over.std(ddof=1):.3f}" if over.size > 1 else ""
        last = f"{over.mean():.3f}{deviation}" if over.size else "none"
        rows.append([_wrapped_name(name), *(f"{mean:.3f}" for mean in means), last])
    return Table(["", *(f"fold {fold}\n{sizes[fold]} cases" for fold in folds), "mean ± SD of folds"], rows)


def test_table(names: Names, scores: Mapping[str, tuple[Scores, str]]) -> Table:
    """Return the mean Dice and IoU of each model on each set of cases.

    Args:
        names: Names of the models.
        scores: Scores of each set, and the row to show.
    """
    rows = []
    for model, name in names.items():
        cells = []
        for set_scores, row in scores.values():
            dice, iou = (
                (estimate(set_scores.values(model, metric, row), {}).mean for metric in ("dice", "iou"))
                if model in set_scores.by_model
                else (float("nan"),) * 2
            )
            cells.append("not predicted" if np.isnan(dice) else f"{dice:.3f}\nIoU {iou:.3f}")
        rows.append([_wrapped_name(name), *cells])
    return Table(
        ["", *(f"{one_line(name)}\n{len(set_scores.cases)} cases" for name, (set_scores, _) in scores.items())], rows
    )


def comparison_table(comparisons: Sequence[Comparison], metric: str) -> Table:
    """Return the difference, wins and losses, effect size and p values of each pair of models."""
    rows = [
        [
            f"{pair.second}\nminus {pair.first}",
            estimate_cell(pair.difference, digits(metric), signed=True),
            f"{pair.wins} / {pair.losses} / {pair.ties}",
            f"{pair.effect:+.2f}",
            p_value(pair.p),
            p_value(pair.p_holm),
        ]
        for pair in comparisons
    ]
    header = [METRICS[metric], "mean difference ± SD", "higher / lower / equal", "rank-biserial r", "p", "p (Holm)"]
    return Table(header, rows)


def cost_table(names: Names, costs: Costs, hardware: Mapping[Model, str]) -> Table:
    """Return all known costs of each model, and its hardware."""
    rows = [
        [
            _wrapped_name(name),
            *(number(by_model[model]) if model in by_model else "unknown" for by_model in costs.values()),
            one_line(hardware[model]) or "unknown",
        ]
        for model, name in names.items()
    ]
    return Table(["", *costs, "hardware"], rows)


def training_costs(models: Iterable[Model], records: Mapping[Fold, TrainingRecord]) -> dict[str, dict[Model, float]]:
    """Return seconds per epoch (median over folds) and hours of training (sum over folds) of models with logs."""
    costs: dict[str, dict[Model, float]] = {}
    for model in models:
        logged = [record for fold, record in records.items() if fold.model == model and record.epochs]
        if logged:
            seconds = float(np.median([record.seconds_per_epoch for record in logged]))
            costs.setdefault(SECONDS_PER_EPOCH, {})[model] = seconds
            costs.setdefault(HOURS_OF_TRAINING, {})[model] = sum(record.seconds for record in logged) / 3600
    return costs


def hardware(models: Iterable[Model], records: Mapping[Fold, TrainingRecord]) -> dict[Model, str]:
    """Return the hardware that each model was trained on; "" if unknown."""
    return {
        model: "; ".join(dict.fromkeys(r.hardware for fold, r in records.items() if fold.model == model and r.hardware))
        for model in models
    }


def verdicts(comparisons: Sequence[Comparison], metric: str, names: Names) -> Iterator[str]:
    """Yield a sentence for each comparison with the baseline."""
    baseline = next(iter(names.values()))
    for pair in comparisons:
        if pair.first != baseline:
            continue
        mean = pair.difference
        significant = pair.p_holm < 0.05
        result = "significant" if significant else "not significant"
        if significant and mean.low <= 0 <= mean.high:
            result += ", though the mean's interval includes 0: most groups differ one way, a few strongly the other"
        yield (
            f"{pair.second} against {pair.first}: {METRICS[metric]} {mean.mean:+.3f}, 95% interval {mean.low:+.3f} to "
            f"{mean.high:+.3f}; Wilcoxon's test at 5%, Holm-adjusted: {result}."
        )


def estimate_cell(value: Estimate, places: int, signed: bool = False) -> str:
    """Return "0.874 ± 0.101" and the interval on a second line."""
    if not value.cases:
        return "none"
    sign = "+" if signed else ""
    deviation = "" if np.isnan(value.sd) else f" ± {value.sd:.{places}f}"
    interval = "" if np.isnan(value.low) else f"\n[{value.low:{sign}.{places}f}, {value.high:{sign}.{places}f}]"
    return f"{value.mean:{sign}.{places}f}{deviation}{interval}"


def digits(metric: str) -> int:
    """Return the number of decimals: 2 for distances (in pixels or millimetres), 3 for values between 0 and 1."""
    return 2 if metric == "hd95" else 3


def p_value(p: float) -> str:
    """Return p with two significant digits, but never 0."""
    return "< 0.001" if p < 0.001 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def number(value: float) -> str:
    """Return a number with three significant digits, and a prefix if it is large: 23.4 M."""
    for size, prefix in ((1e12, " T"), (1e9, " G"), (1e6, " M")):
        if abs(value) >= size:
            return f"{value / size:.3g}{prefix}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _class_and_model(scores: Scores, name: str, model: str) -> list[str]:
    """Return the first columns: the model, preceded by the class if there are several."""
    return [one_line(name), _wrapped_name(model)] if len(scores.classes) > 1 else [_wrapped_name(model)]


def _wrapped_name(name: str) -> str:
    """Return a name with the trainer on the first line, and plans and configuration, if any, on the second."""
    return name.replace(" ", "\n", 1)
