"""Whether a scan looks like those that a model was trained on, by a few properties that a person
can check.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from raybone.data.ingest.steps import body_mask
from raybone.data.preprocess import to_intensity
from raybone.types import Array, Scan

# Interquartile ranges beyond the quartiles: "far out" (Tukey 1977, Exploratory Data Analysis)
FAR = 3.0
SLACK = {
    "aspect": 0.02,
    "log2 of the 99.9 percentile": 1.0,
    "share of body": 0.05,
    "brightness": 0.03,
    "brightness of the border": 0.03,
    "correlation with the mean scan": 0.05,
}
SMALL = (32, 16)  # rows and columns of the mean scan


def likeness_of(scans: Sequence[Scan], counts_of: Callable[[Scan], Array]) -> dict[str, Any]:
    """What scans have in common, ready for JSON: their mean, and the usual range [low, high] of
    each property.
    """
    mean_HW = np.mean([thumbnail(counts_of(s), s.high) for s in scans], axis=0)
    seen = [_properties(counts_of(s), s.high, mean_HW) for s in scans]
    usual = {}
    for name, slack in SLACK.items():
        values_N = np.array([p[name] for p in seen])
        first, third = np.quantile(values_N, (0.25, 0.75))
        reach = FAR * (third - first)
        usual[name] = [
            round(float(min(first - reach, values_N.min()) - slack), 4),
            round(float(max(third + reach, values_N.max()) + slack), 4),
        ]
    return {"mean": np.round(mean_HW, 3).tolist(), "usual": usual}


def oddities(counts_HW: Array, high: float, known: Mapping[str, Any]) -> list[str]:
    """In what a scan is unlike those of ``likeness_of``: property, value and the usual range."""
    properties = _properties(counts_HW, high, np.array(known["mean"], np.float32))
    return [
        f"{name} is {properties[name]:.3g}, usual is {low:.3g} to {top:.3g}"
        for name, (low, top) in known["usual"].items()
        if not low <= properties[name] <= top
    ]


def _properties(counts_HW: Array, high: float, mean_HW: Array) -> dict[str, float]:
    small_HW, body_HW = thumbnail(counts_HW, high, mean_HW.shape), body_mask(counts_HW)
    border_N = np.concatenate([small_HW[:, 0], small_HW[:, -1]])
    values = (
        counts_HW.shape[0] / counts_HW.shape[1],
        np.log2(max(high, 1.0)),
        body_HW.mean(),
        small_HW.mean(),
        np.median(border_N),
        correlation(small_HW, mean_HW),
    )
    return {name: float(value) for name, value in zip(SLACK, values)}


def thumbnail(counts_HW: Array, high: float, shape: tuple[int, ...] = SMALL) -> Array:
    """Intensities of a scan as a small image."""
    return np.asarray(
        cv2.resize(to_intensity(counts_HW, high), shape[::-1], interpolation=cv2.INTER_AREA)
    )


def correlation(a_HW: Array, b_HW: Array) -> float:
    """Pearson's r of two images of one shape; 0 of one that is flat."""
    a_N, b_N = (v.ravel() - v.mean() for v in (a_HW, b_HW))
    return float(a_N @ b_N / max(float(np.linalg.norm(a_N) * np.linalg.norm(b_N)), 1e-9))
