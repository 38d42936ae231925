"""cases.csv: every score of every prediction."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable

from nnunet_mamba_mis.benchmark.evaluation.evaluate import Evaluation
from nnunet_mamba_mis.benchmark.evaluation.metrics import METRICS
from nnunet_mamba_mis.benchmark.model import Model
from nnunet_mamba_mis.utils.text import for_spreadsheet

_IDENTITY = ("dataset", "test_set", "case", "group", "fold", *Model._fields, "seed", "class")


def cases_csv(evaluations: Iterable[Evaluation]) -> str:
    """Return one row per case, fold, model, seed and class, with names escaped by `for_spreadsheet`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_IDENTITY, "tp", "fp", "fn", "tn", *METRICS, "ece"])
    for evaluation in evaluations:
        truth = evaluation.truth
        for model, runs in evaluation.scores.by_model.items():
            for run, scored in runs.items():
                group = truth.group_of.get(run.case, run.case)
                for name, score in scored.items():
                    identity = [truth.name, truth.test_set, run.case, group, run.fold, *model, run.seed, name]
                    counts = score.counts
                    values = [score.value(metric) for metric in METRICS]
                    values.append(score.reliability.error if score.reliability else math.nan)
                    cells = ["" if math.isnan(value) else f"{value:.6g}" for value in values]
                    names = [for_spreadsheet(str(value)) for value in identity]
                    writer.writerow([*names, counts.tp, counts.fp, counts.fn, counts.tn, *cells])
    return text.getvalue()
