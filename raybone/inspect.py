"""Look at a dataset with a sceptic's eyes: integrity, leakage, look-alikes, and what is in it."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from raybone.data.dataset import Dataset, open_dataset
from raybone.data.preprocess import to_intensity
from raybone.records import Array, Scan

# Correlation distance of thumbnails under which two patients count as the same person under two names.
NEAR = 0.02
THUMBNAIL = (16, 64)


def inspect(dataset: Path | str) -> dict[str, Any]:
    """Counts, problems, warnings, near_duplicates [[patient, patient, distance]] and fingerprint of a dataset.

    Raises:
        WrongInput: it cannot be opened.
    """
    opened = open_dataset(dataset)
    problems, readable = _problems(opened)
    counts, warnings = _counts(opened), list(opened.meta.get("warnings", ()))
    opened = replace(opened, scans=tuple(readable))
    repeated = [n for n in Counter(_digest(opened, s) for s in opened.scans).values() if n > 1]
    if repeated:
        warnings.append(f"{sum(repeated)} scans share their pixels with another scan")
    near = _near_duplicates(opened)
    across = [pair for pair in near if opened.fold_of[pair[0]] != opened.fold_of[pair[1]]]
    if across:
        warnings.append(f"{len(across)} pairs of patients look like one person and are in different folds")
    return {"counts": counts, "problems": problems, "warnings": warnings, "near_duplicates": near,
            "fingerprint": _fingerprint(opened), "hash": opened.hash}


def inspection_lines(found: dict[str, Any]) -> list[str]:
    """The findings as lines for people."""
    counts = found["counts"]
    lines = [f"{counts['scans']} scans of {counts['patients']} patients, {counts['lesions']} lesions "
             f"({', '.join(f'{n} {c}' for c, n in counts['categories'].items()) or 'none'}); hash {found['hash']}"]
    lines += [f"fold {k}: {v['patients']} patients, {v['scans']} scans, {v['lesions']} lesions"
              for k, v in counts["per_fold"].items()]
    lines += [f"{key}: {value}" for key, value in found["fingerprint"].items()]
    lines += [f"problem: {p}" for p in found["problems"]] + [f"warning: {w}" for w in found["warnings"]]
    lines += [f"near-duplicates: {a} and {b}, distance {d:.4f}" for a, b, d in found["near_duplicates"]]
    return lines if found["problems"] else [*lines, "no problems found"]


def _counts(dataset: Dataset) -> dict[str, Any]:
    categories = Counter(le.category for s in dataset.scans for le in s.lesions)
    return {**dataset.meta["counts"], "categories": dict(categories),
            "views": dict(Counter(s.view for s in dataset.scans)),
            "sites": dict(Counter(s.site for s in dataset.scans)), "per_fold": _per_fold(dataset)}


def _problems(dataset: Dataset) -> tuple[list[str], list[Scan]]:
    """What is broken, and the scans whose pixels can be read."""
    problems, readable = [], []
    for scan in dataset.scans:
        try:
            shape = dataset.counts(scan).shape
        except (OSError, ValueError, IndexError):
            problems.append(f"{scan.scan_id}: row {scan.row} of its pixel file is not there")
            continue
        if shape != (scan.height, scan.width):
            # The array was replaced by one of another shape.
            problems.append(f"{scan.scan_id}: pixels are {shape}, scans.csv says {(scan.height, scan.width)}")
            continue
        readable.append(scan)
        for lesion in scan.lesions:
            x1, y1, x2, y2 = lesion.box_xyxy
            if not (0 <= x1 < x2 <= scan.width and 0 <= y1 < y2 <= scan.height):
                problems.append(f"{scan.scan_id}: box {lesion.box_xyxy} is not inside the scan")
    return problems, readable


def _near_duplicates(dataset: Dataset) -> list[list[Any]]:
    """Pairs of patients with scans of the same view and shape that look alike, exact copies included."""
    groups: dict[tuple[str, int, int], list[Scan]] = defaultdict(list)
    for scan in dataset.scans:
        groups[scan.view, scan.height, scan.width].append(scan)
    closest: dict[tuple[str, str], float] = {}
    copies: dict[str, set[str]] = defaultdict(set)
    for scan in dataset.scans:
        copies[_digest(dataset, scan)].add(scan.patient_id)
    for patients in copies.values():
        closest.update({(a, b): 0.0 for a in patients for b in patients if a < b})
    for scans in groups.values():
        thumbs_ND = np.stack([_thumbnail(dataset.counts(s), s.high) for s in scans])
        distance_NN = 1 - thumbs_ND @ thumbs_ND.T
        for i, j in zip(*np.nonzero(np.triu(distance_NN < NEAR, 1))):
            first, second = sorted((scans[i].patient_id, scans[j].patient_id))
            if first != second:
                value = max(float(distance_NN[i, j]), 0.0)
                closest[first, second] = min(value, closest.get((first, second), 1.0))
    return [[a, b, round(d, 5)] for (a, b), d in sorted(closest.items(), key=lambda item: item[1])]


def _thumbnail(counts_HW: Array, high: float) -> Array:
    """A small, centred, normalised copy whose dot product with another is their correlation."""
    small = cv2.resize(to_intensity(counts_HW, high), THUMBNAIL, interpolation=cv2.INTER_AREA).ravel()
    small = small - small.mean()
    return small / max(float(np.linalg.norm(small)), 1e-9)


def _per_fold(dataset: Dataset) -> dict[str, dict[str, int]]:
    return {str(k): {"patients": sum(f == k for f in dataset.fold_of.values()), "scans": len(dataset.validation(k)),
                     "lesions": sum(len(s.lesions) for s in dataset.validation(k))} for k in range(dataset.folds)}


def _fingerprint(dataset: Dataset) -> dict[str, Any]:
    sides = [max(le.box_xyxy[2] - le.box_xyxy[0], le.box_xyxy[3] - le.box_xyxy[1])
             for s in dataset.scans for le in s.lesions]
    return {
        "shapes": dict(Counter(f"{s.height}x{s.width}" for s in dataset.scans)),
        "pixel_mm": sorted({s.pixel_mm for s in dataset.scans if s.pixel_mm}),
        "mean_counts": round(float(np.mean([dataset.counts(s).mean() for s in dataset.scans])), 3),
        "high_median": float(np.median([s.high for s in dataset.scans])),
        "lesions_per_scan": round(float(np.mean([len(s.lesions) for s in dataset.scans])), 3),
        "lesion_side_px": [round(float(q), 1) for q in np.quantile(sides, (0.05, 0.5, 0.95))] if sides else [],
    }


def _digest(dataset: Dataset, scan: Scan) -> str:
    return hashlib.sha256(dataset.counts(scan).tobytes()).hexdigest()
