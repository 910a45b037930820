"""Calibration against scikit-learn, and on scores whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from raybone.metrics.calibration import calibrated, calibration_error, platt


@pytest.mark.parametrize("seed", range(3))
def test_platt_is_the_logistic_regression_of_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    score_N = rng.random(500)
    truth_N = rng.random(500) < expit(0.5 * logit(score_N) - 1)
    # Platt's targets are not 0 and 1; a soft target is two weighted samples.
    target_N = np.where(
        truth_N, (truth_N.sum() + 1) / (truth_N.sum() + 2), 1 / ((~truth_N).sum() + 2)
    )
    theirs = LogisticRegression(C=1e9, tol=1e-9).fit(
        np.tile(logit(score_N), 2)[:, None],
        np.r_[np.ones(500), np.zeros(500)],
        np.r_[target_N, 1 - target_N],
    )
    assert platt(score_N, truth_N) == pytest.approx(
        (theirs.coef_[0, 0], theirs.intercept_[0]), abs=1e-3
    )


def test_a_group_counts_as_its_members() -> None:
    score_N, truth_N = (
        np.repeat([0.2, 0.6, 0.9], [10, 20, 30]),
        np.r_[np.zeros(8), np.ones(32), np.zeros(20)],
    )
    shares = [truth_N[score_N == s].mean() for s in (0.2, 0.6, 0.9)]
    grouped = platt(np.array([0.2, 0.6, 0.9]), np.array(shares), np.array([10, 20, 30]))
    assert grouped == pytest.approx(platt(score_N, truth_N), abs=1e-5)
    assert calibration_error(
        np.array([0.2, 0.6, 0.9]), np.array(shares), np.array([10, 20, 30])
    ) == pytest.approx(calibration_error(score_N, truth_N))


def test_calibrated_scores_mean_what_they_say() -> None:
    rng = np.random.default_rng(1)
    sure_N = rng.random(20_000)
    truth_N = rng.random(20_000) < expit(0.3 * logit(sure_N) - 2)
    right_N = calibrated(sure_N, *platt(sure_N, truth_N))
    assert calibration_error(right_N, truth_N) < 0.01 < calibration_error(sure_N, truth_N)
    assert (np.argsort(right_N) == np.argsort(sure_N)).all()


def test_a_few_separable_scores_are_not_certain() -> None:
    score_N, truth_N = np.array([0.3, 0.4, 0.45, 0.55, 0.6, 0.7]), np.array([0, 0, 0, 1, 1, 1])
    assert calibrated(np.array([0.6]), *platt(score_N, truth_N))[0] < 0.97


def test_the_error_by_hand_and_without_anything() -> None:
    assert calibration_error(np.array([0.1, 0.9]), np.array([0, 1])) == pytest.approx(0.1)
    assert calibration_error(np.array([1.0, 1.0]), np.array([0, 1])) == pytest.approx(0.5)
    assert np.isnan(calibration_error(np.zeros(0), np.zeros(0)))


@pytest.mark.parametrize("truth", [True, False])
def test_of_one_kind_alone_nothing_is_learned(truth: bool) -> None:
    assert platt(np.array([0.0, 0.5, 1.0]), np.full(3, truth)) == (1.0, 0.0)
