"""Means with intervals, and paired tests, over cases some of which belong together.

The unit is the group: a patient, lesion or sequence. Frames of one video are no independent observations, so the
bootstrap draws whole groups, and paired tests compare groups' means. A case without a group is one of its own.
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
    """Mean over cases, with the sample's standard deviation and a 95% interval; NaN where there is too little.

    Args:
        mean: Of the cases that have a value.
        sd: Of the same.
        low: Lower end of the interval.
        high: Upper end.
        cases: That have a value.
        groups: They belong to.
    """

    mean: float
    sd: float
    low: float
    high: float
    cases: int
    groups: int


@dataclass(frozen=True)
class Comparison:
    """A metric of one trainer against that of another, on the same cases.

    Args:
        first: The trainer that is compared with.
        second: The one whose gain it is.
        difference: Second less first, mean over cases with its interval.
        wins: Groups in which the second's value is higher.
        losses: In which it is lower.
        ties: In which they are equal.
        effect: matched-pairs rank-biserial correlation, -1 to 1: positive where the second's values are higher.
        p: two-sided, of Wilcoxon's signed-rank test.
        p_holm: The same, adjusted for all pairs of trainers.
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
        values: Of each case; NaN is left out.
        group_of: The group of cases that have one.
    """
    defined = {case: value for case, value in values.items() if not np.isnan(value)}
    array = np.array(list(defined.values()))
    mean = float(array.mean()) if array.size else float("nan")
    sd = float(array.std(ddof=1)) if array.size > 1 else float("nan")
    sums, sizes = _by_group(defined, group_of)
    low, high = _interval(sums, sizes)
    return Estimate(mean, sd, low, high, array.size, sums.size)


def compare_all(values: Mapping[str, Mapping[str, float]], group_of: Mapping[str, str]) -> list[Comparison]:
    """Compare every pair of trainers; the p values are adjusted for the number of pairs.

    Args:
        values: Of each trainer, of each case; cases that are not defined for both of a pair are left out of it.
        group_of: The group of cases that have one.

    Returns:
        The pairs that have cases in common; none for fewer than two trainers.
    """
    pairs = [
        comparison
        for first, second in combinations(values, 2)
        if (comparison := _compare(first, second, values[first], values[second], group_of)).difference.cases
    ]
    adjusted = holm([pair.p for pair in pairs])
    return [replace(pair, p_holm=p) for pair, p in zip(pairs, adjusted, strict=True)]


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p values for how many there are: Holm's step-down (1979)."""
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    steps = np.maximum.accumulate(np.asarray(p_values)[order] * factors)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(steps, 1)
    return adjusted.tolist()


def rank_biserial(differences: NDArray[np.float64]) -> float:
    """Matched-pairs rank-biserial correlation (Kerby 2014).

    (R⁺ - R⁻) / (R⁺ + R⁻), with the sums of ranks of the positive and negative differences; zeros are dropped.
    """
    from scipy.stats import rankdata

    differences = differences[differences != 0]
    if not differences.size:
        return 0.0
    ranks = rankdata(np.abs(differences))
    return float((ranks * np.sign(differences)).sum() / ranks.sum())


def wilcoxon_p(differences: NDArray[np.float64]) -> float:
    """Two-sided p of Wilcoxon's signed-rank test; zeros are dropped, and 1 is returned if nothing is left.

    Exact up to 50 differences without ties and zeros, else the normal approximation, as scipy decides.
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
    # equal values, summed in another order, differ in the last digits
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
    """Sum of the values of each group, and how many they are."""
    groups: dict[tuple[bool, str], list[float]] = {}
    for case, value in values.items():
        # a group may have the name of a case that is not in it
        key = (True, group_of[case]) if case in group_of else (False, case)
        groups.setdefault(key, []).append(value)
    members = list(groups.values())
    return np.array([sum(group) for group in members]), np.array([len(group) for group in members], dtype=float)


def _interval(sums: NDArray[np.float64], sizes: NDArray[np.float64]) -> tuple[float, float]:
    if sums.size < 2:
        return float("nan"), float("nan")
    # the same numbers for every metric and trainer, and every time
    generator = np.random.default_rng(_SEED)
    means = []
    # in parts, as thousands of groups would need gigabytes
    part = max(1, 10_000_000 // sums.size)
    for start in range(0, RESAMPLES, part):
        drawn = generator.integers(sums.size, size=(min(part, RESAMPLES - start), sums.size))
        means.append(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(np.concatenate(means), [tail, 100 - tail])
    return float(low), float(high)
