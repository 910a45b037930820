"""Scores that mean what they say: of findings with a probability of 0.8, four in five should be
true.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logit

from raybone.types import Array

BINS = 15
SHOWN = 10  # bins of a reliability diagram
EDGE = 1e-6  # probabilities are kept this far from 0 and 1, where logits end


def platt(score_N: Array, truth_N: Array, weight_N: Array | None = None) -> tuple[float, float]:
    """Slope and intercept of the logistic regression of the truth on the logit of the score.

    Args:
        score_N: in [0, 1]; truth_N: whether each is true, or the share of truth of a group;
            weight_N: its size.
    Returns:
        (1, 0), which changes nothing, where all are true or none is.
    Source: Platt 1999, on logits, with his targets short of 0 and 1, so that a few separable scores
    are not certain.
    """
    weight_N = np.ones(len(score_N)) if weight_N is None else weight_N
    truth_N = np.asarray(truth_N, float)
    positive, negative = float((weight_N * truth_N).sum()), float((weight_N * (1 - truth_N)).sum())
    if not (positive and negative):
        return 1.0, 0.0
    truth_N = truth_N * (positive + 1) / (positive + 2) + (1 - truth_N) / (negative + 2)
    x_N = _logit(score_N)
    share_N = weight_N / weight_N.sum()

    def loss(ab: Array) -> tuple[float, Array]:
        z_N = ab[0] * x_N + ab[1]
        gap_N = share_N * (expit(z_N) - truth_N)
        return float((share_N * (np.logaddexp(0, z_N) - truth_N * z_N)).sum()), np.array(
            [gap_N @ x_N, gap_N.sum()]
        )

    slope, intercept = minimize(
        loss, np.array([1.0, 0.0]), jac=True, method="BFGS", options={"gtol": 1e-9}
    ).x
    return float(slope), float(intercept)


def calibrated(score_N: Array, slope: float, intercept: float) -> Array:
    """Scores as probabilities, by what ``platt`` gave."""
    return np.asarray(expit(slope * _logit(score_N) + intercept))


def crossed(folds: Sequence[tuple[Array, Array, Array]]) -> Array:
    """Scores of all folds, one after the other, each calibrated by what the others give.

    Args:
        folds: score_N, truth_N and weight_N of each, as ``platt`` takes them.
    """
    parts = []
    for place, (score_N, _, _) in enumerate(folds):
        others = [fold for number, fold in enumerate(folds) if number != place]
        parts.append(calibrated(score_N, *platt(*map(np.concatenate, zip(*others)))))
    return np.concatenate(parts)


def calibration_error(probability_N: Array, truth_N: Array, weight_N: Array | None = None) -> float:
    """Expected calibration error over 15 equal bins, in [0, 1]; NaN without any (Guo et al. 2017,
    arXiv:1706.04599).
    """
    weight_N = np.ones(len(probability_N)) if weight_N is None else weight_N
    if not weight_N.sum():
        return float("nan")
    place_N = np.minimum((probability_N * BINS).astype(int), BINS - 1)
    gap_B = np.bincount(place_N, weight_N * (probability_N - truth_N), BINS)
    return float(np.abs(gap_B).sum() / weight_N.sum())


def reliability(
    probability_N: Array, truth_N: Array, weight_N: Array | None = None
) -> list[tuple[float, float, int]]:
    """Mean probability, share that is true and number of the cases of each of 10 equal bins that
    has some: what a reliability diagram draws.
    """
    weight_N = np.ones(len(probability_N)) if weight_N is None else weight_N
    place_N = np.minimum((probability_N * SHOWN).astype(int), SHOWN - 1)
    sums = (np.bincount(place_N, weight_N * v_N, SHOWN) for v_N in (1, probability_N, truth_N))
    return [
        (round(p / n, 6), round(true / n, 6), int(n))
        for n, p, true in zip(*(v_B.tolist() for v_B in sums))
        if n
    ]


def _logit(score_N: Array) -> Array:
    return np.asarray(logit(np.clip(np.asarray(score_N, float), EDGE, 1 - EDGE)))
