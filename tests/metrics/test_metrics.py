"""Metrics against hand-made cases and outside implementations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score, precision_recall_curve, precision_score, recall_score

from raybone.metrics.boxes import box_metrics, lesion_hits
from raybone.metrics.intervals import corrected_interval, corrected_p
from raybone.metrics.lesions import RATES, froc, lesion_metrics, operating_points, patient_metrics
from raybone.metrics.masks import overlap_metrics, pixel_counts
from raybone.types import Prediction


def truth(*boxes: tuple[float, float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(boxes, np.float32).reshape(-1, 4), np.zeros(len(boxes), np.int64)


def found(*rows: tuple[float, float, float, float, float]) -> Prediction:
    table = np.array(rows, np.float32).reshape(-1, 5)
    return Prediction(table[:, :4], table[:, 4], np.zeros(len(table), np.int64))


def test_perfect_boxes_have_ap_1_and_none_have_0() -> None:
    images = [truth((0, 0, 10, 20)), truth()]
    perfect, nothing = (
        box_metrics(images, [p, found()], 1) for p in (found((0, 0, 10, 20, 0.9)), found())
    )
    everywhere = set(perfect) - {"AP_small", "AP_large"}  # 200 square pixels is of medium size
    assert [perfect[name] for name in everywhere] == pytest.approx([1.0] * len(everywhere))
    assert {nothing[name] for name in everywhere} == {0.0}
    assert all(math.isnan(m[name]) for m in (perfect, nothing) for name in ("AP_small", "AP_large"))


def test_overlap_of_two_thirds_counts_at_the_four_thresholds_up_to_065() -> None:
    """IoU 20x10 in 20x15 = .667: found at .5, .55, .6 and .65 of ten thresholds."""
    scores = box_metrics([truth((0, 0, 20, 15))], [found((0, 0, 20, 10, 0.5))], 1)
    assert (scores["AP"], scores["AP50"], scores["AP75"]) == pytest.approx((0.4, 1.0, 0.0))


def test_a_false_alarm_before_the_hit_halves_precision_and_one_after_it_costs_nothing() -> None:
    image = [truth((0, 0, 10, 10))]
    before = box_metrics(image, [found((0, 0, 10, 10, 0.5), (50, 50, 60, 60, 0.9))], 1)
    after = box_metrics(image, [found((0, 0, 10, 10, 0.9), (50, 50, 60, 60, 0.5))], 1)
    assert before["AP50"] == pytest.approx(0.5)
    assert after["AP50"] == pytest.approx(1.0)


def test_a_lesion_counts_once_and_one_of_two_gives_half_the_recall() -> None:
    image = [truth((0, 0, 10, 10), (30, 30, 40, 40))]
    twice = box_metrics(image, [found((0, 0, 10, 10, 0.9), (0, 0, 10, 10, 0.8))], 1)
    # 101 recall points, of which 0 .. .50 are reached with precision 1.
    assert twice["AP50"] == pytest.approx(51 / 101)


def test_box_metrics_are_undefined_without_lesions() -> None:
    assert all(
        math.isnan(v) for v in box_metrics([truth()], [found((0, 0, 5, 5, 0.9))], 1).values()
    )


def test_froc_is_the_best_sensitivity_of_all_thresholds_that_keep_to_the_rate() -> None:
    """Against the definition, threshold by threshold; few levels of scores make ties."""
    rng = np.random.default_rng(1)
    for levels, count in ((4, 60), (1000, 60), (3, 0)):
        score_D, hit_D = rng.integers(1, levels + 1, count) / levels, rng.random(count) < 0.3
        expected = [
            max(
                (
                    hit_D[score_D >= t].sum() / 40
                    for t in score_D
                    if (~hit_D[score_D >= t]).sum() <= rate * 5
                ),
                default=0,
            )
            for rate in RATES
        ]
        assert froc(score_D, hit_D, 40, 5) == pytest.approx(expected)
    assert np.isnan(froc(score_D, hit_D, 0, 5)).all()


def test_lesion_metrics_equal_scikit_learns_where_every_detection_is_a_case() -> None:
    rng = np.random.default_rng(2)
    score_D, hit_D = rng.random(80), rng.random(80) < 0.4
    ours = lesion_metrics(score_D, hit_D, int(hit_D.sum()), 10)
    assert ours["sensitivity"] == pytest.approx(recall_score(hit_D, score_D >= 0.5))
    assert ours["precision"] == pytest.approx(precision_score(hit_D, score_D >= 0.5))


def test_patient_metrics_equal_scikit_learns() -> None:
    rng = np.random.default_rng(3)
    called_P, sick_P = rng.random(30) < 0.5, rng.random(30) < 0.3
    ours = patient_metrics(called_P, sick_P)
    assert ours == pytest.approx(
        {
            "patient_sensitivity": recall_score(sick_P, called_P),
            "patient_precision": precision_score(sick_P, called_P),
        }
    )
    assert patient_metrics(called_P & False, sick_P) == {
        "patient_sensitivity": 0.0,
        "patient_precision": 0.0,
    }
    assert all(math.isnan(v) for v in patient_metrics(called_P, sick_P & False).values())


def test_a_lesion_is_found_once_and_counts_at_any_iou_from_one_half() -> None:
    image = [truth((0, 0, 10, 10), (30, 30, 40, 40))]
    scores = box_metrics(
        image, [found((0, 0, 10, 5.1, 0.9), (0, 0, 10, 10, 0.8), (30, 30, 40, 40, 0.4))], 1
    )
    assert (scores["sensitivity"], scores["precision"]) == (0.5, 0.5)
    assert scores["FROC"] == pytest.approx((0.5 + 0.5 + 4 * 1.0) / 6)


def test_overlap_metrics_equal_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    truth_HW, predicted_HW = rng.random((64, 32)) < 0.2, rng.random((64, 32)) < 0.3
    scores = overlap_metrics(pixel_counts(truth_HW, predicted_HW))
    flat = truth_HW.ravel(), predicted_HW.ravel()
    assert scores["dice"] == pytest.approx(f1_score(*flat))
    assert scores["precision"] == pytest.approx(precision_score(*flat))
    assert scores["sensitivity"] == pytest.approx(recall_score(*flat))


def test_overlap_without_lesion_is_undefined_and_without_prediction_is_zero() -> None:
    assert math.isnan(overlap_metrics(np.array([0, 5, 0]))["dice"])
    assert overlap_metrics(np.array([0, 0, 5])) == dict.fromkeys(
        ("dice", "iou", "precision", "sensitivity"), 0.0
    )


def test_the_corrected_interval_is_wider_than_the_plain_one_by_the_known_factor() -> None:
    folds_K = np.array([0.61, 0.55, 0.7, 0.58, 0.64])
    low, high = corrected_interval(folds_K)
    plain = stats.t.interval(0.95, 4, folds_K.mean(), stats.sem(folds_K))
    assert (low + high) / 2 == pytest.approx(folds_K.mean())
    assert (high - low) / (plain[1] - plain[0]) == pytest.approx((1 + 5 / 4) ** 0.5)
    assert all(math.isnan(v) for v in corrected_interval(np.array([0.5])))
    # With a test fold each fold trains on three parts of five, and says less of others.
    low, high = corrected_interval(folds_K, trained=3)
    assert (high - low) / (plain[1] - plain[0]) == pytest.approx((1 + 5 / 3) ** 0.5)


def test_folds_that_are_equal_say_nothing_of_others() -> None:
    for folds_K in (np.ones(3), np.zeros(5), np.array([0.1 + 0.2, 0.3, 0.3])):
        assert all(math.isnan(v) for v in corrected_interval(folds_K))
    # Nor does a gap that is the same everywhere, also but for rounding.
    a, b = np.array([0.9, 0.8, 0.7]), np.array([0.8, 0.7, 0.6])
    assert math.isnan(corrected_p(b, a))
    assert math.isnan(corrected_p(np.full(3, 0.75), np.ones(3)))


def test_the_corrected_p_is_larger_than_the_paired_t_tests() -> None:
    a, b = np.array([0.61, 0.55, 0.7, 0.58, 0.64]), np.array([0.6, 0.5, 0.66, 0.57, 0.6])
    plain = stats.ttest_rel(a, b)
    expected = 2 * stats.t.sf(plain.statistic / (1 + 5 / 4) ** 0.5, 4)
    assert corrected_p(b, a) == pytest.approx(expected)
    assert corrected_p(b, a) > plain.pvalue
    wider = 2 * stats.t.sf(plain.statistic / (1 + 5 / 3) ** 0.5, 4)
    assert corrected_p(b, a, trained=3) == pytest.approx(wider)
    assert corrected_p(a, a) == 1.0


def test_curves_are_scikit_learns_and_those_of_boxes_have_pycocotools_ap() -> None:
    rng = np.random.default_rng(0)
    score, hit = np.round(rng.random(200), 1), rng.random(200) < 0.4
    _, true, false = operating_points(score, hit)
    precision, recall, _ = precision_recall_curve(hit, score)
    np.testing.assert_allclose(true / (true + false), precision[-2::-1])
    np.testing.assert_allclose(true / hit.sum(), recall[-2::-1])
    assert [len(part) for part in operating_points(score[:0], hit[:0])] == [0, 0, 0]

    images = [
        truth(*((x, y, x + 9, y + 9) for x, y in rng.integers(0, 90, (3, 2)))) for _ in range(12)
    ]
    said = [
        found(
            *(
                (*(box + rng.normal(0, 1, 4)), s)
                for box, s in zip([*boxes, [1, 1, 8, 8]], rng.random(4))
            )
        )
        for boxes, _ in images
    ]
    _, true, false = operating_points(*lesion_hits(images, said, 1))
    best = np.append(np.maximum.accumulate((true / (true + false))[::-1])[::-1], 0)
    steps = best[np.searchsorted(true / 36, np.linspace(0, 1, 101))]
    assert steps.mean() == pytest.approx(box_metrics(images, said, 1)["AP50"])
    assert 0.2 < steps.mean() < 1
