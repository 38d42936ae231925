"""Means with intervals, and paired tests, over cases that may belong to groups.

The statistical unit is the group: a patient, lesion or sequence. Frames of one video are not independent observations,
so the bootstrap draws whole groups, and paired tests compare group means. A case without a group is its own group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
CONFIDENCE = 0.95
_SEED = 20240415


@dataclass(frozen=True)
class Estimate:
    """Mean over cases, with the sample standard deviation and a 95% interval; NaN if there are too few cases.

    Args:
        mean: Mean over the cases that have a value.
        sd: Standard deviation over the same cases.
        low: Lower end of the interval.
        high: Upper end of the interval.
        cases: Number of cases that have a value.
        groups: Number of groups that these cases belong to.
    """

    mean: float
    sd: float
    low: float
    high: float
    cases: int
    groups: int


@dataclass(frozen=True)
class Comparison:
    """Comparison of a metric between two trainers on the same cases.

    Args:
        first: The reference trainer.
        second: The trainer whose gain over the first is measured.
        difference: Second minus first, mean over cases with its interval.
        wins: Number of groups in which the second's value is higher.
        losses: Number of groups in which the second's value is lower.
        ties: Number of groups in which both values are equal.
        effect: Matched-pairs rank-biserial correlation, -1 to 1; positive if the second's values tend to be higher.
        p: Two-sided p value of Wilcoxon's signed-rank test.
        p_holm: The p value adjusted for all pairs of trainers.
    """

    first: str
    second: str
    difference: Estimate
    wins: int
    losses: int
    ties: int
    effect: float
    p: float
    p_holm: float


def estimate(values: Mapping[str, float], group_of: Mapping[str, str]) -> Estimate:
    """Return mean, standard deviation and bootstrap interval (percentiles of means over resampled groups).

    Args:
        values: Value of each case; NaN is left out.
        group_of: Group of each case that has one.
    """
    defined = {case: value for case, value in values.items() if not np.isnan(value)}
    array = np.array(list(defined.values()))
    mean = float(array.mean()) if array.size else float("nan")
    sd = float(array.std(ddof=1)) if array.size > 1 else float("nan")
    sums, sizes = _by_group(defined, group_of)
    low, high = _interval(sums, sizes)
    return Estimate(mean, sd, low, high, array.size, sums.size)


def compare_all(values: Mapping[str, Mapping[str, float]], group_of: Mapping[str, str]) -> list[Comparison]:
    """Compare every pair of trainers, and adjust the p values for the number of pairs.

    Args:
        values: Trainer → case → value. A comparison leaves out cases whose value is undefined for either trainer.
        group_of: Group of each case that has one.

    Returns:
        A comparison for each pair with common cases; none for fewer than two trainers.
    """
    pairs = [
        comparison
        for first, second in combinations(values, 2)
        if (comparison := _compare(first, second, values[first], values[second], group_of)).difference.cases
    ]
    adjusted = holm([pair.p for pair in pairs])
    return [replace(pair, p_holm=p) for pair, p in zip(pairs, adjusted, strict=True)]


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p values for multiple comparisons with Holm's step-down method (1979)."""
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    steps = np.maximum.accumulate(np.asarray(p_values)[order] * factors)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(steps, 1)
    return adjusted.tolist()


def rank_biserial(differences: NDArray[np.float64]) -> float:
    """Return the matched-pairs rank-biserial correlation (Kerby 2014).

    This is (R⁺ - R⁻) / (R⁺ + R⁻), where R⁺ and R⁻ are the rank sums of positive and negative differences. Zeros are
    dropped.
    """
    from scipy.stats import rankdata

    differences = differences[differences != 0]
    if not differences.size:
        return 0.0
    ranks = rankdata(np.abs(differences))
    return float((ranks * np.sign(differences)).sum() / ranks.sum())


def wilcoxon_p(differences: NDArray[np.float64]) -> float:
    """Return the two-sided p value of Wilcoxon's signed-rank test without zeros; 1 if all differences are zero.

    For at most 50 differences without ties, scipy's test is exact. Otherwise, the method depends on scipy's version and
    the number of differences.
    """
    from scipy.stats import wilcoxon

    differences = differences[differences != 0]
    return float(wilcoxon(differences).pvalue) if differences.size else 1.0


def _compare(
    first: str,
    second: str,
    first_values: Mapping[str, float],
    second_values: Mapping[str, float],
    group_of: Mapping[str, str],
) -> Comparison:
    difference = {case: second_values[case] - first_values[case] for case in first_values if case in second_values}
    difference = {case: value for case, value in difference.items() if not np.isnan(value)}
    sums, sizes = _by_group(difference, group_of)
    # sums of the same values in a different order differ in the last digits
    means = np.round(sums / sizes, 12)
    return Comparison(
        first,
        second,
        estimate(difference, group_of),
        wins=int((means > 0).sum()),
        losses=int((means < 0).sum()),
        ties=int((means == 0).sum()),
        effect=rank_biserial(means),
        p=wilcoxon_p(means),
        p_holm=float("nan"),
    )


def _by_group(
    values: Mapping[str, float], group_of: Mapping[str, str]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the sum and the number of the values of each group."""
    groups: dict[tuple[bool, str], list[float]] = {}
    for case, value in values.items():
        # a group and a case that belongs to no group may have the same name
        key = (True, group_of[case]) if case in group_of else (False, case)
        groups.setdefault(key, []).append(value)
    members = list(groups.values())
    return np.array([sum(group) for group in members]), np.array([len(group) for group in members], dtype=float)


def _interval(sums: NDArray[np.float64], sizes: NDArray[np.float64]) -> tuple[float, float]:
    if sums.size < 2:
        return float("nan"), float("nan")
    # the same random numbers for every metric, trainer and run
    generator = np.random.default_rng(_SEED)
    means = []
    # in parts, as thousands of groups would need gigabytes at once
    part = max(1, 10_000_000 // sums.size)
    for start in range(0, RESAMPLES, part):
        drawn = generator.integers(sums.size, size=(min(part, RESAMPLES - start), sums.size))
        means.append(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(np.concatenate(means), [tail, 100 - tail])
    return float(low), float(high)
