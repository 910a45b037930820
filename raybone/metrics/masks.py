"""Metrics of segmentation: pixels pooled over all scans as the papers do and scan by scan, lesions,
and distances.

Categories are never pooled: a metric is the mean over those that there are, as COCO has it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from scipy.spatial import KDTree

from raybone.metrics.lesions import FOUND
from raybone.types import Array


@dataclass(frozen=True)
class MaskScore:
    """What is counted of one category on one scan; of what lies in crowds, nothing is.

    pixels_3: true positive, false positive and false negative pixels. found, lesions: lesions that
    were found, of how many; hits, findings: components that found one, of how many. hd95_mm: 95th
    percentile Hausdorff distance, NaN where truth or prediction is empty or the pixel's size
    unknown.
    """

    pixels_3: Array
    found: int
    lesions: int
    hits: int
    findings: int
    hd95_mm: float


def mask_score(
    truth_HW: Array,
    lesions: Sequence[Array],
    predicted_HW: Array,
    pixel_mm: float | None,
    crowd_HW: Array | None = None,
) -> MaskScore:
    """Compare one category of one scan.

    A finding is an 8-connected component of the prediction; a lesion is found by one that overlaps
    its own mask with an IoU of at least ``FOUND``. A component that finds none and lies in crowds
    by a share of ``FOUND`` is no finding.

    Args:
        truth_HW, predicted_HW: boolean masks of the category.
        lesions: boolean mask (H, W) of each lesion of it.
        crowd_HW: pixels that count neither way; outside ``truth_HW``.
    """
    count, labels_HW = cv2.connectedComponents(predicted_HW.astype(np.uint8), connectivity=8)
    open_HW = np.ones_like(predicted_HW) if crowd_HW is None else ~crowd_HW
    hidden_C = np.bincount(labels_HW[~open_HW], minlength=count)
    predicted_HW = predicted_HW & open_HW
    area_C = np.bincount(labels_HW[open_HW], minlength=count)
    found, hit_C = 0, np.zeros(count, bool)
    for mask_HW in lesions:
        both_C = np.bincount(labels_HW[mask_HW], minlength=count)
        hits_C = both_C >= FOUND * (area_C + int(mask_HW.sum()) - both_C)
        hits_C[0] = False
        found += bool(hits_C.any())
        hit_C |= hits_C
    ignored_C = ~hit_C & (hidden_C > 0) & (hidden_C >= FOUND * (hidden_C + area_C))
    distance = hausdorff95(truth_HW, predicted_HW) * (pixel_mm or math.nan)
    return MaskScore(
        pixel_counts(truth_HW, predicted_HW),
        found,
        len(lesions),
        int(hit_C.sum()),
        count - 1 - int(ignored_C[1:].sum()),
        distance,
    )


def mask_metrics(scores: Sequence[MaskScore]) -> dict[str, float]:
    """Metrics of one category's masks of all scans.

    dice (= F1), iou, precision, sensitivity: of the pixels pooled over all scans. scan_*: of one
    scan, mean over scans with a lesion. lesion_sensitivity and lesion_precision: detection rate of
    the lesions, and share of the findings that are one. hd95_mm: mean over the scans that have it.
    NaN where there is no lesion to find.
    """
    pixels_N3 = np.array([s.pixels_3 for s in scores])
    sick_N = pixels_N3[:, 0] + pixels_N3[:, 2] > 0
    each = weighted_overlap(pixels_N3[sick_N], np.eye(int(sick_N.sum())))
    lesions, findings = sum(s.lesions for s in scores), sum(s.findings for s in scores)
    distances = [s.hd95_mm for s in scores if math.isfinite(s.hd95_mm)]
    return {
        **overlap_metrics(pixels_N3.sum(0)),
        **{
            f"scan_{name}": float(value_N.mean()) if len(value_N) else math.nan
            for name, value_N in each.items()
        },
        "lesion_sensitivity": sum(s.found for s in scores) / lesions if lesions else math.nan,
        "lesion_precision": sum(s.hits for s in scores) / max(findings, 1) if lesions else math.nan,
        "hd95_mm": float(np.mean(distances)) if distances else math.nan,
    }


def over_categories(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The mean of each metric over the categories that have it, and of several categories theirs,
    as ``dice[bone]``.

    Args:
        metrics: ``mask_metrics`` by category.
    """
    names, several = list(next(iter(metrics.values()))), len(metrics) > 1
    means = {
        name: _mean_known(np.array([[found[name]] for found in metrics.values()])).item()
        for name in names
    }
    return means | {
        f"{name}[{category}]": found[name]
        for category, found in metrics.items()
        for name in names
        if several
    }


def pixel_counts(truth_HW: Array, predicted_HW: Array) -> Array:
    """(true positive, false positive, false negative) pixels of two boolean masks of shape (H,
    W).
    """
    return np.array(
        [
            (truth_HW & predicted_HW).sum(),
            (~truth_HW & predicted_HW).sum(),
            (truth_HW & ~predicted_HW).sum(),
        ],
        np.int64,
    )


def overlap_metrics(counts_3: Array) -> dict[str, float]:
    """Dice (= F1), IoU, precision and sensitivity from pooled pixel counts.

    Each is in [0, 1]; NaN where it is undefined: all but precision without any lesion pixel in the
    truth. Precision is 0 when nothing was predicted although there was something to find.
    """
    return {
        name: value.item()
        for name, value in weighted_overlap(counts_3[None], np.ones((1, 1))).items()
    }


def weighted_overlap(counts_N3: Array, weights_BN: Array) -> dict[str, Array]:
    """``overlap_metrics`` of B weighted samples of N scans or patients at once, each of shape (B,).

    Args:
        counts_N3: pixel counts of each.
        weights_BN: how many copies of n sample b holds.
    """
    hit_B, false_B, missed_B = (weights_BN @ counts_N3).astype(float).T
    hit_B = np.where(hit_B + missed_B > 0, hit_B, math.nan)
    return {
        "dice": 2 * hit_B / (2 * hit_B + false_B + missed_B),
        "iou": hit_B / (hit_B + false_B + missed_B),
        "precision": hit_B / np.maximum(hit_B + false_B, 1),
        "sensitivity": hit_B / (hit_B + missed_B),
    }


def weighted_means(counts_NC3: Array, weights_BN: Array) -> dict[str, Array]:
    """The means of ``weighted_overlap`` over the categories that a sample holds, each of shape
    (B,).

    Args:
        counts_NC3: pixel counts of each category of each.
    """
    found = [weighted_overlap(counts_N3, weights_BN) for counts_N3 in counts_NC3.transpose(1, 0, 2)]
    return {name: _mean_known(np.array([f[name] for f in found])) for name in found[0]}


def hausdorff95(truth_HW: Array, predicted_HW: Array) -> float:
    """The larger 95th percentile of distances from one outline to the other, in pixels; NaN for an
    empty mask.

    Outlines are the pixels of a mask with one of the four neighbours outside it. Source:
    Huttenlocher et al. 1993 (IEEE TPAMI 15:850), with percentiles as in Maier-Hein et al. 2024.
    """
    if not truth_HW.any() or not predicted_HW.any():
        return math.nan
    outlines = [np.argwhere(mask_HW & ~_eroded(mask_HW)) for mask_HW in (truth_HW, predicted_HW)]
    ways = (outlines, outlines[::-1])
    return max(float(np.percentile(KDTree(to_P2).query(from_P2)[0], 95)) for from_P2, to_P2 in ways)


def _mean_known(values_CB: Array) -> Array:
    """Mean over categories that are not NaN, (B,); NaN without any."""
    known_CB = np.isfinite(values_CB)
    count_B = known_CB.sum(0)
    return np.asarray(
        np.where(known_CB, values_CB, 0).sum(0) / np.where(count_B > 0, count_B, math.nan)
    )


def _eroded(mask_HW: Array) -> Array:
    padded_HW = np.pad(mask_HW, 1)
    return (
        padded_HW[:-2, 1:-1]
        & padded_HW[2:, 1:-1]
        & padded_HW[1:-1, :-2]
        & padded_HW[1:-1, 2:]
        & mask_HW
    )
