"""Scores of one case, compared with hand calculations and independent implementations."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import surface_distance
from sklearn import metrics as sklearn_metrics

from nnunet_mamba_mis.benchmark.evaluation.metrics import METRICS, Counts, count, score, total
from nnunet_mamba_mis.benchmark.evaluation.scores import score_case
from nnunet_mamba_mis.benchmark.label_maps import Labels
from support.convert_trees import write


def rectangle(shape, rows, columns):
    mask = np.zeros(shape, dtype=bool)
    mask[slice(*rows), slice(*columns)] = True
    return mask


def blobs(seed, shape):
    """Return smooth random shapes, some of which touch the border."""
    from scipy.ndimage import gaussian_filter

    noise = np.random.default_rng(seed).standard_normal(shape)
    return gaussian_filter(noise, 4) > 0.02


def test_overlap_matches_a_hand_calculation():
    # 4 × 4 against 4 × 4 pixels, half of them shared, in 10 × 10
    scored = score(rectangle((10, 10), (2, 6), (2, 6)), rectangle((10, 10), (2, 6), (4, 8)), (1, 1), 2)
    assert scored.counts == Counts(tp=8, fp=8, fn=8, tn=76)
    assert scored.value("dice") == 0.5
    assert scored.value("iou") == pytest.approx(1 / 3)
    assert scored.value("precision") == scored.value("sensitivity") == 0.5
    assert scored.value("specificity") == pytest.approx(76 / 84)


def test_distances_match_a_hand_calculation():
    """Compare a square with the same square 3 pixels to the right."""
    truth, moved = rectangle((20, 20), (5, 11), (4, 10)), rectangle((20, 20), (5, 11), (7, 13))
    assert score(truth, moved, (1, 1), 2.9).value("hd95") == 3
    assert score(truth, moved, (1, 2), 2.9).value("hd95") == 6
    # everything except the two moved sides is within the tolerance
    within = score(truth, moved, (1, 1), 2).value("nsd")
    assert 0 < within < 1
    assert score(truth, moved, (1, 1), 3).value("nsd") == 1
    assert score(truth, truth, (1, 1), 0).value("hd95") == 0
    assert score(truth, truth, (1, 1), 0).value("nsd") == 1


@pytest.mark.parametrize("metric", METRICS)
def test_a_class_in_neither_mask_has_no_score(metric):
    empty = np.zeros((8, 8), dtype=bool)
    scored = score(empty, empty, (1, 1), 2)
    assert scored.counts.both_empty
    assert math.isnan(scored.value(metric))


def test_one_empty_mask_scores_0_and_the_diagonal():
    empty, present = np.zeros((30, 40), dtype=bool), rectangle((30, 40), (3, 9), (3, 9))
    missed, spurious = score(present, empty, (2, 2), 2), score(empty, present, (2, 2), 2)
    for scored in (missed, spurious):
        assert scored.value("hd95") == 100
        assert scored.value("nsd") == scored.value("dice") == scored.value("precision") == 0
    assert missed.value("sensitivity") == 0
    assert math.isnan(spurious.value("sensitivity"))


def test_masks_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match=r"\(4, 4\).*\(4, 5\)"):
        score(np.ones((4, 4), dtype=bool), np.ones((4, 5), dtype=bool), (1, 1), 2)


def test_ignored_pixels_do_not_count():
    truth, prediction = rectangle((20, 20), (5, 11), (4, 10)), rectangle((20, 20), (5, 11), (4, 18))
    counted = rectangle((20, 20), (0, 20), (0, 10))
    scored = score(truth, prediction, (1, 1), 0, counted)
    assert scored.counts == Counts(tp=36, fp=0, fn=0, tn=164)
    assert scored.value("hd95") == 0


@pytest.mark.parametrize("seed", range(4))
def test_counts_agree_with_sklearn(seed):
    truth, prediction = blobs(seed, (40, 50)), blobs(seed + 100, (40, 50))
    counts = count(truth, prediction)
    flat = truth.ravel(), prediction.ravel()
    (tn, fp), (fn, tp) = sklearn_metrics.confusion_matrix(*flat)
    assert counts == Counts(tp, fp, fn, tn)
    assert counts.dice == pytest.approx(sklearn_metrics.f1_score(*flat))
    assert counts.iou == pytest.approx(sklearn_metrics.jaccard_score(*flat))
    assert counts.mean_iou == pytest.approx(sklearn_metrics.jaccard_score(*flat, average="macro"))
    assert counts.precision == pytest.approx(sklearn_metrics.precision_score(*flat))
    assert counts.sensitivity == pytest.approx(sklearn_metrics.recall_score(*flat))
    assert counts.specificity == pytest.approx(sklearn_metrics.recall_score(*flat, pos_label=False))


def test_global_scores_take_all_pixels_together():
    """A large good case outweighs a small bad one, unlike in the mean over cases."""
    large, small = Counts(tp=90, fp=10, fn=10, tn=90), Counts(tp=0, fp=5, fn=5, tn=190)
    together = total([large, small])
    assert together == Counts(90, 15, 15, 280)
    assert together.dice == pytest.approx(180 / 210)
    assert together.iou == pytest.approx(90 / 120)
    assert together.mean_iou == pytest.approx((90 / 120 + 280 / 310) / 2)
    assert (large.dice + small.dice) / 2 == pytest.approx(0.45)


@pytest.mark.parametrize("spacing", [(1, 1), (0.5, 0.8), (2.0, 1.0)], ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_distances_agree_with_surface_distance(seed, spacing):
    agree(blobs(seed, (48, 64)), blobs(seed + 50, (48, 64)), spacing)


def test_distances_of_nested_shapes_agree_with_surface_distance():
    """Typical segmentations: nearly correct, at the image border, or a single pixel."""
    lesion = rectangle((40, 40), (0, 20), (10, 40))
    for other in (rectangle((40, 40), (0, 18), (9, 40)), rectangle((40, 40), (3, 4), (12, 13))):
        agree(lesion, other, (1, 1))
        agree(other, lesion, (1, 1))


def test_distances_in_volumes_agree_with_surface_distance():
    agree(blobs(1, (16, 24, 24)), blobs(2, (16, 24, 24)), (3.0, 1.0, 1.5))


def agree(truth, prediction, spacing):
    ours = {tolerance: score(truth, prediction, spacing, tolerance) for tolerance in (0.9, 2.1)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = surface_distance.compute_surface_distances(truth, prediction, spacing)
    for tolerance, scored in ours.items():
        hd95 = surface_distance.compute_robust_hausdorff(theirs, 95)
        assert scored.value("hd95") == pytest.approx(hd95, rel=1e-5)
        nsd = surface_distance.compute_surface_dice_at_tolerance(theirs, tolerance)
        assert scored.value("nsd") == pytest.approx(nsd, rel=1e-5)


@pytest.mark.parametrize(
    ("of_class", "ignored", "named"),
    [({"polyp": 1}, None, "2, 3"), ({"polyp": 1, "tool": 2}, None, "3"), ({"both": (1, 2)}, 3, "")],
    ids=["two unknown", "one unknown", "region and ignored"],
)
@pytest.mark.parametrize("spoilt", ["truth", "prediction"])
def test_values_without_a_label_are_named(of_class, ignored, named, spoilt, tmp_path):
    from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO

    for name in ("truth", "prediction"):
        top = 3 if name == spoilt else 1
        write(tmp_path / name / "a.png", np.arange(64, dtype=np.uint8).reshape(8, 8) % (top + 1))
    truth, prediction = tmp_path / "truth" / "a.png", tmp_path / "prediction" / "a.png"

    labels = Labels(of_class, ignored, ".png", NaturalImage2DIO, has_regions="both" in of_class)
    result = score_case(truth, prediction, labels, tolerance=1)

    if named:
        assert f"{tmp_path / spoilt / 'a.png'} contains {named}" in result
    else:
        assert list(result) == list(of_class)
