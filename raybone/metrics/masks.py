"""Pixel-level metrics of segmentation, pooled over all scans as the papers do."""

from __future__ import annotations

import math

import numpy as np

from raybone.records import Array


def pixel_counts(truth_HW: Array, predicted_HW: Array) -> Array:
    """(true positive, false positive, false negative) pixels of two boolean masks of shape (H, W)."""
    return np.array([(truth_HW & predicted_HW).sum(), (~truth_HW & predicted_HW).sum(),
                     (truth_HW & ~predicted_HW).sum()], np.int64)


def overlap_metrics(counts_3: Array) -> dict[str, float]:
    """Dice (= F1), precision and sensitivity from pooled pixel counts.

    Each is in [0, 1]; NaN where it is undefined: Dice and sensitivity without any lesion pixel in the truth.
    Precision is 0 when nothing was predicted although there was something to find.
    """
    hit, false, missed = (int(v) for v in counts_3)
    if hit + missed == 0:
        return {"dice": math.nan, "precision": math.nan, "sensitivity": math.nan}
    return {"dice": 2 * hit / (2 * hit + false + missed), "precision": hit / (hit + false) if hit + false else 0.0,
            "sensitivity": hit / (hit + missed)}
