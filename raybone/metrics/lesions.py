"""Lesion- and patient-level metrics. The two rules by which things are counted stand here, and hold
everywhere.

A lesion is found by a detection of its category that overlaps it with an IoU of at least ``FOUND``,
matched as COCO does: best score first, one detection to one lesion. What has a score or probability
of at least ``THRESHOLD``, or of the operating point of a bundle, is a finding, where findings are
counted rather than ranked.
"""

from __future__ import annotations

import math

import numpy as np

from raybone.types import Array

FOUND = 0.5
THRESHOLD = 0.5
RATES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


def froc(score_D: Array, hit_D: Array, lesions: int, scans: int) -> Array:
    """Sensitivity at 1/4, 1/2, 1, 2, 4 and 8 false positives a scan, shape (6,); NaN without
    lesions.

    Each is that of the lowest threshold with no more false positives; detections of one score are
    taken together.

    Args:
        score_D: scores of the detections on all scans; hit_D: whether each found a lesion.
        lesions, scans: their number.
    Source: Bunch et al. 1978 (free-response ROC), at the rates of Setio et al. 2017
    (arXiv:1612.08012) from 1/4 on.
    """
    if not lesions:
        return np.full(len(RATES), math.nan)
    _, true_T, false_T = operating_points(score_D, hit_D)
    return np.array([true_T[false_T <= rate * scans].max(initial=0) / lesions for rate in RATES])


def operating_points(score_D: Array, hit_D: Array) -> tuple[Array, Array, Array]:
    """Each score that occurs, from the highest on, and how many hits and false alarms score at
    least so much, (T,).

    What PR, FROC and ROC curves are drawn from.

    Args:
        score_D: scores of detections or cases; hit_D: whether each is a hit.
    """
    order_D = np.argsort(-score_D, kind="stable")
    last_D = np.append(np.diff(score_D[order_D]) != 0, True)[: len(order_D)]
    return (
        score_D[order_D][last_D],
        np.cumsum(hit_D[order_D])[last_D],
        np.cumsum(~hit_D[order_D])[last_D],
    )


def lesion_metrics(
    score_D: Array, hit_D: Array, lesions: int, scans: int, threshold: float = THRESHOLD
) -> dict[str, float]:
    """FROC (mean sensitivity at the six rates), and sensitivity and precision of what scores at
    least the threshold.

    Each is in [0, 1]; all NaN without lesions, precision 0 without findings.
    """
    finding_D = score_D >= threshold
    hits = float((hit_D & finding_D).sum())
    return {
        "FROC": float(froc(score_D, hit_D, lesions, scans).mean()),
        "sensitivity": hits / lesions if lesions else math.nan,
        "precision": hits / max(int(finding_D.sum()), 1) if lesions else math.nan,
    }


def patient_metrics(called_P: Array, sick_P: Array) -> dict[str, float]:
    """Sensitivity and precision (PPV) of calling a patient with any finding sick; NaN without sick
    patients.

    Args:
        called_P: whether a scan of the patient has a finding; sick_P: whether one has a lesion.
    """
    hits, sick = float((called_P & sick_P).sum()), int(sick_P.sum())
    return {
        "patient_sensitivity": hits / sick if sick else math.nan,
        "patient_precision": hits / max(int(called_P.sum()), 1) if sick else math.nan,
    }


def classification_metrics(
    score_N: Array, truth_N: Array, threshold: float = THRESHOLD
) -> dict[str, float]:
    """``weighted_classification`` of each sample once."""
    found = weighted_classification(score_N, truth_N, np.ones((1, len(score_N))), threshold)
    return {name: value_B.item() for name, value_B in found.items()}


def weighted_classification(
    score_N: Array, truth_N: Array, weights_BN: Array, threshold: float = THRESHOLD
) -> dict[str, Array]:
    """AUC, accuracy, sensitivity, specificity, PPV and NPV of B weighted samples at once, each of
    shape (B,).

    Positive is called what has a probability of at least the threshold. All are in [0, 1], or NaN
    where there is nothing to divide by: AUC without positives or negatives, PPV when nothing is
    called positive.

    Args:
        score_N: probability of being positive; truth_N: whether it is.
        weights_BN: how many copies of n sample b holds.
    """
    called_N, positive_BN, negative_BN = (
        score_N >= threshold,
        weights_BN * truth_N,
        weights_BN * ~truth_N,
    )
    hit_B, false_B = (positive_BN * called_N).sum(1), (negative_BN * called_N).sum(1)
    sick_B, well_B = (
        np.where(total_B > 0, total_B, math.nan)
        for total_B in (positive_BN.sum(1), negative_BN.sum(1))
    )
    right_B = hit_B + negative_BN.sum(1) - false_B
    called_B = hit_B + false_B
    cleared_B = weights_BN.sum(1) - called_B
    return {
        "AUC": _auc(score_N, positive_BN, negative_BN) / (sick_B * well_B),
        "accuracy": right_B / np.where(called_B + cleared_B > 0, called_B + cleared_B, math.nan),
        "sensitivity": hit_B / sick_B,
        "specificity": 1 - false_B / well_B,
        "PPV": hit_B / np.where(called_B > 0, called_B, math.nan),
        "NPV": (right_B - hit_B) / np.where(cleared_B > 0, cleared_B, math.nan),
    }


def _auc(score_N: Array, positive_BN: Array, negative_BN: Array) -> Array:
    """Weight of the pairs in which the positive scores higher, ties by half (Mann & Whitney 1947),
    shape (B,).
    """
    if not len(score_N):
        return np.zeros(len(positive_BN))
    order_N = np.argsort(score_N, kind="stable")
    starts_L = np.flatnonzero(np.append(True, np.diff(score_N[order_N]) != 0))
    positive_BL, negative_BL = (
        np.add.reduceat(w[:, order_N], starts_L, axis=1) for w in (positive_BN, negative_BN)
    )
    return (positive_BL * (np.cumsum(negative_BL, 1) - negative_BL / 2)).sum(1)
