"""Metrics of masks and of classification against outside implementations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.metrics import compute_hausdorff_distance
from sklearn import metrics as outside

from raybone.metrics.lesions import classification_metrics, weighted_classification
from raybone.metrics.masks import hausdorff95, mask_metrics, mask_score
from raybone.metrics.subgroups import confusion, group_of_count, roc, subgroup_table


def spots(rng: np.random.Generator, count: int, shape: tuple[int, int] = (64, 48)) -> np.ndarray:
    """Some discs."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    mask = np.zeros(shape, bool)
    for _ in range(count):
        y, x, radius = rng.integers(0, shape[0]), rng.integers(0, shape[1]), rng.integers(2, 9)
        mask |= (rows - y) ** 2 + (columns - x) ** 2 < radius**2
    return mask


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("seed", range(5))
def test_the_hausdorff_distance_is_monais(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth, predicted = spots(rng, 3), spots(rng, 2)
    theirs = compute_hausdorff_distance(
        torch.tensor(predicted)[None, None],
        torch.tensor(truth)[None, None],
        include_background=True,
        percentile=95,
    )
    assert hausdorff95(truth, predicted) == pytest.approx(float(theirs), rel=1e-5)
    assert mask_score(truth, [truth], predicted, 2.5).hd95_mm == pytest.approx(
        2.5 * float(theirs), rel=1e-5
    )


def test_pixels_are_pooled_and_taken_scan_by_scan_as_scikit_learn_has_them() -> None:
    rng = np.random.default_rng(7)
    pairs = [(spots(rng, 2), spots(rng, 2)) for _ in range(4)] + [(spots(rng, 0), spots(rng, 1))]
    found = mask_metrics([mask_score(t, [t], p, 1.0) for t, p in pairs])
    truth, predicted = (np.concatenate([pair[i].ravel() for pair in pairs]) for i in (0, 1))
    ways = {
        "dice": outside.f1_score,
        "iou": outside.jaccard_score,
        "precision": outside.precision_score,
        "sensitivity": outside.recall_score,
    }
    for name, way in ways.items():
        assert found[name] == pytest.approx(way(truth, predicted), abs=1e-12)
        each = [way(t.ravel(), p.ravel()) for t, p in pairs[:4]]  # the last has nothing to find
        assert found[f"scan_{name}"] == pytest.approx(float(np.mean(each)), abs=1e-12)


def test_a_lesion_is_found_by_a_component_that_covers_half_of_their_union() -> None:
    first, second, predicted = (np.zeros((40, 40), bool) for _ in range(3))
    first[2:12, 2:12] = second[20:30, 20:30] = True
    predicted[2:12, 2:7] = predicted[20:30, 20:24] = predicted[35:38, 2:6] = (
        True  # IoU .5, .4, none
    )
    score = mask_score(first | second, [first, second], predicted, None)
    assert (score.found, score.lesions, score.hits, score.findings) == (1, 2, 1, 3)
    assert math.isnan(score.hd95_mm)
    found = mask_metrics([score])
    assert (found["lesion_sensitivity"], found["lesion_precision"]) == (0.5, pytest.approx(1 / 3))


def test_nothing_to_find_is_no_number_and_nothing_found_is_zero() -> None:
    empty, one = np.zeros((20, 20), bool), spots(np.random.default_rng(0), 1, (20, 20))
    nothing, missed = (
        mask_metrics([mask_score(t, [t] if t.any() else [], empty, 1.0)]) for t in (empty, one)
    )
    assert all(math.isnan(v) for v in nothing.values())
    assert math.isnan(missed.pop("hd95_mm"))
    assert set(missed.values()) == {0.0}


def classified(count: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Scores with ties, and a truth that they know something of."""
    rng = np.random.default_rng(1)
    score = np.round(rng.random(count), 2)
    return score, rng.random(count) < score


def test_classification_is_scikit_learns() -> None:
    score, truth = classified()
    called = score >= 0.5
    assert classification_metrics(score, truth) == pytest.approx(
        {
            "AUC": outside.roc_auc_score(truth, score),
            "accuracy": outside.accuracy_score(truth, called),
            "sensitivity": outside.recall_score(truth, called),
            "specificity": outside.recall_score(~truth, ~called),
            "PPV": outside.precision_score(truth, called),
            "NPV": outside.precision_score(~truth, ~called),
        },
        abs=1e-12,
    )


def test_weights_are_copies_of_samples() -> None:
    score, truth = classified(60)
    weights = np.random.default_rng(2).integers(0, 4, (5, 60))
    found = weighted_classification(score, truth, weights)
    for sample in range(5):
        copied = classification_metrics(
            np.repeat(score, weights[sample]), np.repeat(truth, weights[sample])
        )
        assert {name: value[sample] for name, value in found.items()} == pytest.approx(
            copied, abs=1e-12
        )


def test_one_class_alone_has_no_auc_and_none_at_all_has_nothing() -> None:
    alone = classification_metrics(np.array([0.2, 0.9]), np.array([True, True]))
    assert math.isnan(alone["AUC"])
    assert math.isnan(alone["specificity"])
    assert (alone["sensitivity"], alone["accuracy"], alone["PPV"], alone["NPV"]) == (
        0.5,
        0.5,
        1.0,
        0.0,
    )
    assert all(
        math.isnan(v) for v in classification_metrics(np.zeros(0), np.zeros(0, bool)).values()
    )


def test_roc_and_confusion_are_scikit_learns() -> None:
    score, truth = classified()
    false, hits, _ = outside.roc_curve(truth, score, drop_intermediate=False)
    np.testing.assert_allclose(roc(score, truth), np.column_stack([false, hits]), atol=1e-12)
    (tn, fp), (fn, tp) = outside.confusion_matrix(truth, score >= 0.5)
    assert confusion(score, truth) == {"tp": tp, "fp": fp, "fn": fn, "tn": tn}
    assert roc(score[truth], truth[truth]) == []


def test_the_chi_square_of_subgroups_is_pearsons() -> None:
    """Sensitivity 8/10 in one group and 4/10 in the other, expected 6 and 4 in each: 2 * 4/6 + 2 *
    4/4.
    """
    score = np.array([0.9] * 8 + [0.1] * 2 + [0.9] * 4 + [0.1] * 6)
    truth, groups = np.ones(20, bool), ["1-3"] * 10 + [">6"] * 10
    table = subgroup_table(score, truth, groups)
    assert list(table["groups"]) == ["1-3", ">6"]
    assert table["groups"][">6"]["confusion"] == {"tp": 4, "fp": 0, "fn": 6, "tn": 0}
    assert table["chi_square"]["sensitivity"]["statistic"] == pytest.approx(4 / 6 * 2 + 4 / 4 * 2)
    assert 0.05 < table["chi_square"]["sensitivity"]["p"] < 0.1
    assert math.isnan(table["chi_square"]["specificity"]["p"])
    assert [group_of_count(n) for n in (1, 3, 4, 6, 7, 90)] == [
        "1-3",
        "1-3",
        "4-6",
        "4-6",
        ">6",
        ">6",
    ]
