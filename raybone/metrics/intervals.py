"""Uncertainty of cross-validated scores: folds share training patients, so plain t-tests are too sure."""

from __future__ import annotations

import numpy as np
from scipy import stats

from raybone.records import Array


def corrected_interval(folds_K: Array, level: float = 0.95) -> tuple[float, float]:
    """Confidence interval of the mean of K fold scores with the corrected resampled variance.

    The variance of the mean is s^2 (1/K + 1/(K-1)), as each fold tests one part and trains on K-1.
    Source: Nadeau & Bengio 2003, Machine Learning 52:239; NaN for fewer than two folds.
    """
    count = len(folds_K)
    if count < 2:
        return float("nan"), float("nan")
    mean, sd = float(np.mean(folds_K)), float(np.std(folds_K, ddof=1))
    half = float(stats.t.ppf((1 + level) / 2, count - 1)) * sd * (1 / count + 1 / (count - 1)) ** 0.5
    return mean - half, mean + half


def corrected_p(folds_K: Array, best_K: Array) -> float:
    """Two-sided p of the corrected resampled t-test on paired fold scores; 1 when they are equal, NaN for K < 2."""
    count = len(folds_K)
    if count < 2:
        return float("nan")
    gap_K = np.asarray(folds_K, float) - np.asarray(best_K, float)
    sd = float(np.std(gap_K, ddof=1))
    if sd == 0:
        return 1.0 if float(gap_K.mean()) == 0 else 0.0
    t = float(gap_K.mean()) / (sd * (1 / count + 1 / (count - 1)) ** 0.5)
    return float(2 * stats.t.sf(abs(t), count - 1))
