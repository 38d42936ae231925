"""Intervals and tests, compared with scipy and with hand calculations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from nnunet_mamba_mis.benchmark.evaluation.statistics import compare_all, estimate, holm, rank_biserial, wilcoxon_p

# heights of self- and cross-fertilised plants (Darwin 1876), the textbook example of paired differences
DARWIN = np.array([49.0, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48])


def sample(seed, size=40):
    generator = np.random.default_rng(seed)
    return {f"case{i}": value for i, value in enumerate(generator.beta(8, 2, size))}


def test_interval_agrees_with_scipys_bootstrap():
    values = sample(0)
    ours = estimate(values, {})
    theirs = stats.bootstrap(
        (list(values.values()),), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(1)
    ).confidence_interval
    width = theirs.high - theirs.low
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.03 * width)
    assert ours.mean == pytest.approx(np.mean(list(values.values())))
    assert ours.sd == pytest.approx(np.std(list(values.values()), ddof=1))
    assert (ours.cases, ours.groups) == (40, 40)


def test_the_same_values_give_the_same_interval():
    assert estimate(sample(3), {}) == estimate(sample(3), {})


def test_frames_of_a_sequence_count_as_one_observation():
    """Ten copies of each case give no more evidence than one."""
    single = sample(0)
    copies = {f"{case} {i}": value for case, value in single.items() for i in range(10)}
    groups = {name: name.split()[0] for name in copies}
    grouped, naive = estimate(copies, groups), estimate(copies, {})
    assert grouped.groups == 40 and naive.groups == 400
    once = estimate(single, {})
    assert (grouped.low, grouped.high) == pytest.approx((once.low, once.high), abs=1e-9)
    assert naive.high - naive.low < 0.5 * (grouped.high - grouped.low)


def test_large_groups_weigh_more_as_the_mean_is_over_cases():
    values = {"a": 1.0, "b": 1.0, "c": 1.0, "d": 0.0}
    assert estimate(values, {"a": "video", "b": "video", "c": "video"}).mean == 0.75


def test_a_group_named_like_another_case_stays_separate():
    assert estimate({"a": 1.0, "b": 0.0}, {"b": "a"}).groups == 2


def test_undefined_values_are_left_out_and_not_counted():
    assert estimate({"a": 1.0, "b": math.nan, "c": 0.0}, {}).cases == 2
    assert estimate({"a": 1.0, "b": math.nan, "c": 0.0}, {}).mean == 0.5


def test_wilcoxon_agrees_with_scipy_and_with_the_textbook():
    assert wilcoxon_p(DARWIN) == stats.wilcoxon(DARWIN).pvalue
    assert wilcoxon_p(DARWIN) == pytest.approx(0.0413, abs=5e-4)


def test_rank_biserial_agrees_with_scipys_rank_sums():
    higher = stats.wilcoxon(DARWIN, alternative="greater").statistic
    everything = 15 * 16 / 2
    assert rank_biserial(DARWIN) == pytest.approx((higher - (everything - higher)) / everything)
    assert rank_biserial(np.array([1.0, 2, 3])) == 1
    # ranks 1, 2, 3: (3 - 1 - 2) / 6
    assert rank_biserial(np.array([-1.0, -2, 3, 0])) == 0


def test_holm_matches_a_hand_calculation():
    # in order: 0.005 × 4, 0.01 × 3, 0.03 × 2, 0.04 × 1, each raised to the one before if that is larger
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1, 1]
    assert holm([]) == []


def test_wins_losses_and_effect_of_a_pair():
    first = {"a": 0.5, "b": 0.6, "c": 0.7, "d": 0.8}
    second = {"a": 0.6, "b": 0.8, "c": 0.6, "d": 0.8}
    (pair,) = compare_all({"stock": first, "ours": second}, {})
    assert (pair.first, pair.second) == ("stock", "ours")
    assert (pair.wins, pair.losses, pair.ties) == (2, 1, 1)
    assert pair.difference.mean == pytest.approx(0.05)
    # |d| = 0.1, 0.2, 0.1: ranks 1.5, 3, 1.5
    assert pair.effect == pytest.approx((1.5 + 3 - 1.5) / 6)


def test_tests_compare_groups_not_their_frames():
    """Ten frames of each video give no more evidence than the video."""
    videos = {f"v{i}": d for i, d in enumerate(DARWIN)}
    frames = {f"{video} {i}": d for video, d in videos.items() for i in range(10)}
    zero = dict.fromkeys(frames, 0.0)
    (pair,) = compare_all({"stock": zero, "ours": frames}, {frame: frame.split()[0] for frame in frames})
    assert pair.p == stats.wilcoxon(DARWIN).pvalue
    assert (pair.wins, pair.losses) == (13, 2)


def test_p_values_are_adjusted_for_all_pairs():
    values = {name: sample(seed) for seed, name in enumerate("abc")}
    pairs = compare_all(values, {})
    assert [(pair.first, pair.second) for pair in pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert [pair.p_holm for pair in pairs] == holm([pair.p for pair in pairs])
    differences = np.array(list(values["b"].values())) - np.array(list(values["a"].values()))
    assert pairs[0].p == pytest.approx(stats.wilcoxon(differences).pvalue)


def test_no_test_without_two_trainers_on_the_same_cases():
    assert compare_all({"alone": sample(0)}, {}) == []
    assert compare_all({"one": {"a": 1.0}, "other": {"b": 1.0}}, {}) == []


def test_equal_trainers_do_not_differ():
    (pair,) = compare_all({"one": sample(0), "same": sample(0)}, {})
    assert (pair.p, pair.effect, pair.ties) == (1, 0, 40)
