"""Decision curves beside dcurves', reliability beside scikit-learn's, subgroups beside
fairlearn's.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from dcurves import dca
from fairlearn.metrics import MetricFrame, count
from pretend import pretend
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, roc_auc_score

from raybone.data.dataset import open_dataset
from raybone.metrics.calibration import calibrated, crossed, platt, reliability
from raybone.metrics.decision import THRESHOLDS, benefit_of_all, net_benefit
from raybone.results.study_folder import StudyFolder
from raybone.results.winner import winner_groups, winner_of

RNG = np.random.default_rng(1)


def scores(number: int) -> tuple[np.ndarray, np.ndarray]:
    score_N = RNG.random(number)
    return score_N, RNG.random(number) < score_N**1.5


def test_net_benefit_is_that_of_dcurves() -> None:
    score_N, truth_N = scores(300)
    frame = pd.DataFrame({"truth": truth_N.astype(int), "model": score_N})
    found = dca(data=frame, outcome="truth", modelnames=["model"], thresholds=THRESHOLDS)
    for name, ours in (("model", net_benefit(score_N, truth_N)), ("all", benefit_of_all(truth_N))):
        theirs = found[found["model"] == name].sort_values("threshold")["net_benefit"].to_numpy()
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_reliability_is_that_of_scikit_learn() -> None:
    score_N, truth_N = scores(400)
    share_B, mean_B = calibration_curve(truth_N, score_N, n_bins=10)
    bins = reliability(score_N, truth_N)
    np.testing.assert_allclose([p for p, _, _ in bins], mean_B, atol=1e-6)
    np.testing.assert_allclose([share for _, share, _ in bins], share_B, atol=1e-6)
    assert sum(n for _, _, n in bins) == 400


def test_each_fold_is_calibrated_by_the_others() -> None:
    folds = [(s, t.astype(float), np.ones(len(s))) for s, t in (scores(80) for _ in range(3))]
    found = np.split(crossed(folds), 3)
    for k, (score_N, _, _) in enumerate(folds):
        others = [f for n, f in enumerate(folds) if n != k]
        known = platt(
            np.concatenate([o[0] for o in others]), np.concatenate([o[1] for o in others])
        )
        np.testing.assert_allclose(found[k], calibrated(score_N, *known))


@pytest.mark.parametrize(
    ("metric", "theirs"), [("accuracy", accuracy_score), ("AUC", roc_auc_score)]
)
def test_subgroups_score_as_fairlearn_says(
    metric: str, theirs: object, dataset: Path, tmp_path: Path
) -> None:
    pretend(tmp_path / "st", dataset, "AUC", search={"trials": 2})
    folder, opened = StudyFolder(tmp_path / "st"), open_dataset(dataset)
    best = folder.winner()
    assert best
    winner, why = winner_of(folder, best.record, opened)
    assert winner, why
    views = {s.scan_id: s.view for s in opened.scans}
    found = {g.name: g for g in winner_groups(winner, metric) if g.by == "view"}
    truth = [f["positive"] for f in winner.findings]
    score = np.array([f["score"] for f in winner.findings])
    groups = [views[f["scan_id"]] for f in winner.findings]
    said = score if metric == "AUC" else score >= 0.5
    frame = MetricFrame(
        metrics={"score": theirs, "count": count},
        y_true=truth,
        y_pred=said,
        sensitive_features=groups,
    )
    assert set(found) == set(groups)
    for name, row in frame.by_group.iterrows():
        assert found[str(name)].score.value == pytest.approx(row["score"], abs=1e-9)
        assert found[str(name)].score.low <= row["score"] <= found[str(name)].score.high
