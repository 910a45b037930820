"""What decisions by a score are worth: decision curves."""

from __future__ import annotations

import numpy as np

from raybone.types import Array

THRESHOLDS = np.arange(1, 100) / 100


def net_benefit(probability_N: Array, truth_N: Array, thresholds_T: Array = THRESHOLDS) -> Array:
    """True positives less false positives, weighed by the odds of the threshold, each as a share of
    all cases, (T,).

    Args:
        probability_N: of being positive; truth_N: whether it is. thresholds_T: probabilities from
            which on one would act, between 0 and 1.
    Source: Vickers and Elkin 2006, Medical Decision Making 26(6).
    """
    called_TN = probability_N[None] >= thresholds_T[:, None]
    true_T, false_T = ((called_TN & (truth_N == side)[None]).mean(1) for side in (True, False))
    return np.asarray(true_T - false_T * thresholds_T / (1 - thresholds_T))


def benefit_of_all(truth_N: Array, thresholds_T: Array = THRESHOLDS) -> Array:
    """The same of acting in every case, (T,)."""
    return net_benefit(np.ones(len(truth_N)), truth_N, thresholds_T)
