"""Uncertainty of cross-validated scores: folds share training patients, so plain t-tests are too
sure.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy import special  # scipy.stats takes a second to import, in every process of a search

from raybone.types import Array

REPLICATES = 1000
EQUAL = 1e-9  # spread, as a share of what is spread, that is rounding


def corrected_interval(
    folds_K: Array, trained: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Confidence interval of the mean of K fold scores with the corrected resampled variance.

    The variance of the mean is s^2 (1/K + 1/trained), as each fold tests one part and trains on
    others. NaN for fewer than two folds, and where they are equal, which says nothing of others.

    Args:
        trained: parts that a fold trains on; 0 stands for all other folds that are here.
    Source: Nadeau & Bengio 2003, Machine Learning 52:239.
    """
    mean, error = _mean_and_error(folds_K, trained)
    half = _quantile(level, len(folds_K) - 1) * error if error > 0 else float("nan")
    return mean - half, mean + half


def _mean_and_error(folds_K: Array, trained: int) -> tuple[float, float]:
    """Of fold scores; the error is 0 where they are equal but for rounding, NaN for K < 2."""
    count = len(folds_K)
    if count < 2:
        return float("nan"), float("nan")
    mean, sd = float(np.mean(folds_K)), float(np.std(folds_K, ddof=1))
    sd = 0.0 if sd <= EQUAL * float(np.abs(folds_K).max()) else sd
    return mean, sd * (1 / count + 1 / (trained or count - 1)) ** 0.5


@lru_cache(maxsize=256)
def _quantile(level: float, freedom: float) -> float:
    """Of Student's t, two-sided; a table asks for the same ones again and again."""
    return float(special.stdtrit(freedom, (1 + level) / 2))


def corrected_p(folds_K: Array, best_K: Array, trained: int = 0) -> float:
    """Two-sided p of the corrected resampled t-test on paired fold scores; 1 when they are equal,
    NaN for K < 2, and where all folds differ by the same: a t-test has nothing to go by.

    Args:
        trained: as for ``corrected_interval``.
    """
    gap_K = np.asarray(folds_K, float) - np.asarray(best_K, float)
    mean, error = _mean_and_error(gap_K, trained)
    if error == 0:
        return 1.0 if not gap_K.any() else float("nan")
    return float(2 * special.stdtr(len(gap_K) - 1, -abs(mean / error)))


def holm(p_N: Array) -> Array:
    """p of N tests, adjusted for their number, so that 5 % bounds the chance of one wrong finding
    among all, float, shape (N,); NaN stays, and is not counted.

    Source: Holm 1979, Scandinavian Journal of Statistics 6:65.
    """
    adjusted_N = np.array(p_N, float)
    known = [n for n in np.argsort(adjusted_N, kind="stable") if np.isfinite(adjusted_N[n])]
    scaled = adjusted_N[known] * np.arange(len(known), 0, -1)
    adjusted_N[known] = np.minimum(np.maximum.accumulate(scaled), 1)
    return adjusted_N


def patient_draws(
    fold_P: Array, lesion_P: Array, seed: int | list[int], count: int = REPLICATES
) -> Array:
    """How often each patient is drawn in each replicate of a bootstrap stratified by fold, int,
    shape (count, P).

    Of the n patients of a fold n - 1 are drawn with replacement, which makes the variance of a
    fold's mean unbiased where n is small (McCarthy & Snowden 1985, Vital Health Stat 2(95)). A
    fold's draw without a lesion is drawn again, as no metric is defined there.

    Args:
        fold_P: fold of each patient.
        lesion_P: whether a patient has a lesion.
    Raises:
        ValueError: a fold with fewer than 2 patients, whose spread is unknown, or without a
            lesion.
    """
    rng = np.random.default_rng(seed)
    draws_BP = np.zeros((count, len(fold_P)), np.int64)
    for fold in np.unique(fold_P):
        inside_P = fold_P == fold
        many = int(inside_P.sum())
        if many < 2 or not lesion_P[inside_P].any():
            raise ValueError(
                f"fold {fold}: a bootstrap needs 2 patients and a lesion, got {many} patient(s) "
                f"and {int(lesion_P[inside_P].sum())} with a lesion; use Nadeau & Bengio's interval"
            )
        wanting_B = np.ones(count, bool)
        while wanting_B.any():
            draws_BP[np.ix_(wanting_B, inside_P)] = rng.multinomial(
                many - 1, np.full(many, 1 / many), wanting_B.sum()
            )
            wanting_B = draws_BP[:, inside_P & lesion_P].sum(1) == 0
    return draws_BP


def freedom(replicates_KB: Array, patients_K: Array) -> float:
    """Degrees of freedom of the bootstrap variance of a mean over K folds (Satterthwaite 1946,
    Biometrics 2:110).

    Args:
        replicates_KB: bootstrap replicates of each fold's score.
        patients_K: patients of each fold, at least 2.
    """
    variance_K = np.nanvar(replicates_KB, axis=1)
    total = float((variance_K**2 / (patients_K - 1)).sum())
    return float(variance_K.sum()) ** 2 / total if total > 0 else float(np.sum(patients_K - 1))


def bootstrap_interval(
    value: float, replicates_B: Array, freedom: float, level: float = 0.95
) -> tuple[float, float]:
    """Confidence interval of a score: value -+ t times the standard deviation of its bootstrap
    replicates.

    Replicates that are not finite are left out; NaN when fewer than two are left, or all are equal,
    which says nothing of others. The t quantile
    allows for few patients (Efron & Tibshirani 1993, An Introduction to the Bootstrap, section
    12.4). On cohorts of 24 to 200 patients (benchmarks/coverage.py) it held 92 to 95 % of the
    scores that the same fold models have on folds of that size on average, where percentiles held
    85 to 94 % and BCa 83 to 93 %. AP of few patients is too high: of AP50 on everybody it held 87
    to 90 %, as all bootstraps do about, and Nadeau & Bengio's wider interval 94 to 97 %.
    """
    half = float(special.stdtrit(freedom, (1 + level) / 2)) * (_spread(replicates_B) or np.nan)
    return value - half, value + half


def bootstrap_p(delta: float, replicates_B: Array, freedom: float) -> float:
    """Two-sided p of a paired difference from its bootstrap replicates, below 0.05 where the
    interval leaves out 0; 1 where there is none, NaN where it is the same in all replicates.
    """
    spread = _spread(replicates_B)
    if spread == 0:
        return 1.0 if delta == 0 else float("nan")
    return float(2 * special.stdtr(freedom, -abs(delta) / spread))


def _spread(replicates_B: Array) -> float:
    finite = np.asarray(replicates_B, float)
    finite = finite[np.isfinite(finite)]
    if len(finite) < 2:
        return float("nan")
    spread = float(finite.std(ddof=1))
    return 0.0 if spread <= EQUAL * float(np.abs(finite).max()) else spread


def corrected_winner(folds_CK: Array) -> float:
    """The winner's score without the curse of this choice: for each fold choose on the others,
    score on it, average.

    Rows that a race has let through were chosen on some of these folds before; that part of the
    curse stays, about half of it (``benchmarks/schedulers.py``).

    Args:
        folds_CK: score of C configurations on K folds, higher is better; NaN is worse than
            anything.
    """
    total_C = folds_CK.sum(1)
    chosen_K = [np.nan_to_num(total_C - fold_C, nan=-np.inf).argmax() for fold_C in folds_CK.T]
    return float(folds_CK[chosen_K, np.arange(folds_CK.shape[1])].mean())
