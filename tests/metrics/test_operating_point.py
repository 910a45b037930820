"""Scores that a rule chooses, beside scikit-learn's curves, and what is to be expected of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import precision_recall_curve, roc_curve

from raybone.data.dataset import open_dataset
from raybone.errors import WrongInput
from raybone.metrics.operating_point import (
    Cases,
    Rule,
    counted,
    operating_point,
    together,
)
from raybone.tasks import task_named
from raybone.tasks.base import Outcome
from raybone.tasks.operating import operated_in_short

RNG = np.random.default_rng(4)


def cases(number: int, scans: int = 0, missed: int = 0) -> Cases:
    """Scores of which the higher are right more often; of boxes where there are scans."""
    score_N = RNG.random(number).round(2)  # with ties
    truth_N = (RNG.random(number) < score_N).astype(float)
    once_N = np.ones(number)
    return Cases(score_N, truth_N, once_N, truth_N.sum() + missed, scans, scans > 0)


def test_the_largest_f1_is_that_of_scikit_learn() -> None:
    some = cases(400)
    precision_T, recall_T, score_T = precision_recall_curve(some.truth_N, some.score_N)
    f1_T = 2 * precision_T * recall_T / np.maximum(precision_T + recall_T, 1e-12)
    best = int(f1_T[:-1].argmax())
    threshold = Rule().choose(some)
    assert threshold is not None
    assert counted(some, threshold).figures()["f1"] == pytest.approx(f1_T[best], abs=1e-6)
    below = np.unique(some.score_N)
    assert threshold == pytest.approx((score_T[best] + below[below < score_T[best]][-1]) / 2)


def test_a_sensitivity_and_a_specificity_are_kept_by_the_nearest_score_of_the_roc_curve() -> None:
    some = cases(500)
    false_T, true_T, _ = roc_curve(some.truth_N, some.score_N, drop_intermediate=False)
    for name, asked in (("sensitivity", 0.9), ("specificity", 0.8)):
        threshold = Rule(name, asked).choose(some)
        assert threshold is not None
        found = counted(some, threshold).figures()
        if name == "sensitivity":
            first = int(np.argmax(true_T >= asked))
            assert found[name] == pytest.approx(true_T[first], abs=1e-6)
            assert found["specificity"] == pytest.approx(1 - false_T[first], abs=1e-6)
        else:
            last = int(np.flatnonzero(1 - false_T >= asked)[-1])
            assert found["sensitivity"] == pytest.approx(true_T[last], abs=1e-6)


def test_false_positives_a_scan_are_a_limit_and_missed_lesions_count() -> None:
    some = cases(300, scans=50, missed=40)
    threshold = Rule("fp_per_scan", 1.0).choose(some)
    assert threshold is not None
    called_N = some.score_N >= threshold
    found = counted(some, threshold).figures()
    assert found["fp_per_scan"] == pytest.approx((called_N & (some.truth_N == 0)).sum() / 50)
    assert found["fp_per_scan"] <= 1
    hits = (called_N & (some.truth_N == 1)).sum()
    assert found["sensitivity"] == pytest.approx(hits / (some.truth_N.sum() + 40), abs=1e-6)
    assert "specificity" not in found
    lower = counted(some, np.unique(some.score_N[some.score_N < threshold])[-1]).figures()
    assert lower["fp_per_scan"] > 1


def test_groups_of_pixels_count_as_many_times_as_they_are() -> None:
    score_N, share_N, size_N = (
        np.array([0.2, 0.5, 0.9]),
        np.array([0.1, 0.5, 1]),
        np.array([10, 4, 6]),
    )
    groups = Cases(score_N, share_N, size_N, float(share_N @ size_N), 0)
    truth_N = np.repeat([1, 0, 1, 0, 1], [1, 9, 2, 2, 6]).astype(float)
    every = Cases(np.repeat(score_N, size_N), truth_N, np.ones(20), truth_N.sum(), 0)
    assert Rule().choose(groups) == Rule().choose(every)
    assert counted(groups, 0.5) == counted(every, 0.5)


def test_each_fold_is_judged_by_what_the_others_choose() -> None:
    folds = [cases(100, scans=20, missed=5) for _ in range(3)]
    told = operating_point(Rule(), folds)
    assert told["threshold"] == pytest.approx(Rule().choose(together(folds)))
    for k, threshold in enumerate(told["folds"]):
        others = [f for n, f in enumerate(folds) if n != k]
        assert threshold == pytest.approx(Rule().choose(together(others)))
    parts = [counted(f, t) for f, t in zip(folds, told["folds"])]
    hits, false = sum(p.true for p in parts), sum(p.false for p in parts)
    positives = sum(f.positives for f in folds)
    assert told["sensitivity"] == pytest.approx(hits / positives, abs=1e-6)
    assert told["fp_per_scan"] == pytest.approx(false / 60, abs=1e-6)
    assert told["f1"] == pytest.approx(2 * hits / (hits + false + positives), abs=1e-6)


@pytest.mark.parametrize(
    ("rule", "folds", "reason"),
    [
        ("sensitivity=0.95", [cases(50, scans=10, missed=100) for _ in range(2)], "at best"),
        ("specificity=0.9", [cases(50, scans=10) for _ in range(2)], "cannot be counted"),
        ("fp_per_scan=1", [cases(50) for _ in range(2)], "cannot be counted"),
        (
            "max_f1",
            [Cases(np.array([0.3, 0.2]), np.zeros(2), np.ones(2), 4.0, n, True) for n in (5, 6)],
            "comes to 0 at best",
        ),
        (
            "max_f1",
            [Cases(*[np.zeros(0)] * 3, 3.0, n, True) for n in (5, 6)],
            "no out-of-fold scores",
        ),
    ],
)
def test_a_rule_that_cannot_be_kept_says_why(rule: str, folds: list[Cases], reason: str) -> None:
    told = operating_point(Rule.of(rule), folds)
    assert told["threshold"] == 0.5
    assert reason in told["reason"]


@pytest.mark.parametrize(
    "text",
    ["", "f1", "sensitivity", "sensitivity=", "sensitivity=2", "fp_per_scan=-1", "score=nan"],
)
def test_what_is_no_rule_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(WrongInput, match=r"--operate .*must be max_f1, or a value of"):
        Rule.of(text)


def test_a_detector_with_low_scores_has_patients_at_its_own_point_and_none_at_a_half(
    dataset: Path,
) -> None:
    """What is right scores 0.3, what is wrong 0.1: the other folds say where to cut."""
    opened, task = open_dataset(dataset), task_named("detection")
    outcomes = []
    for fold in range(opened.folds):
        scans, findings = opened.validation(fold), []
        for scan in scans:
            right = [[*le.box_xyxy] for le in scan.lesions if le.category == "malignant"]
            boxes = [*right, [0.0, 0.0, 4.0, 4.0]]
            scores, labels = [0.3] * len(right) + [0.1], [0] * len(boxes)
            findings.append(
                {"scan_id": scan.scan_id, "boxes": boxes, "scores": scores, "labels": labels}
            )
        outcomes.append(Outcome(findings, scans, ["malignant"]))
    found = operated_in_short(task, outcomes)
    assert found == {
        "operating_threshold": pytest.approx(0.2),
        "operating_sensitivity": 1.0,
        "operating_precision": 1.0,
        "operating_f1": 1.0,
        "operating_fp_per_scan": 0.0,
        "operating_patient_sensitivity": 1.0,
        "operating_patient_precision": 1.0,
    }
    assert [task.score(outcome)["patient_sensitivity"] for outcome in outcomes] == [0.0] * 3
    none = [
        replace(
            o,
            findings=[
                {"scan_id": s.scan_id, "boxes": [], "scores": [], "labels": []} for s in o.scans
            ],
        )
        for o in outcomes
    ]
    assert operated_in_short(task, none) == {}
