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
    return {name: value.item() for name, value in weighted_overlap(counts_3[None], np.ones((1, 1))).items()}


def weighted_overlap(counts_N3: Array, weights_BN: Array) -> dict[str, Array]:
    """``overlap_metrics`` of B weighted samples of N scans or patients at once, each of shape (B,).

    Args:
        counts_N3: pixel counts of each.
        weights_BN: how many copies of n sample b holds.
    """
    hit_B, false_B, missed_B = (weights_BN @ counts_N3).astype(float).T
    hit_B = np.where(hit_B + missed_B > 0, hit_B, math.nan)
    return {"dice": 2 * hit_B / (2 * hit_B + false_B + missed_B), "precision": hit_B / np.maximum(hit_B + false_B, 1),
            "sensitivity": hit_B / (hit_B + missed_B)}
