"""Look at a dataset with a sceptic's eyes: integrity, leakage, look-alikes, suspects, and what is
in it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from raybone.data.annotations import foci, nothing_to_learn
from raybone.data.dataset import Dataset, open_dataset
from raybone.data.folds import SPECIAL
from raybone.data.near_duplicates import lookalikes, thumbnail
from raybone.data.writer import digest_of
from raybone.errors import Problem
from raybone.types import Array, Scan

# A pair whose front differs from its back by less than this share of what is usual, in the usual
# direction, is suspect; on 24 phantom patients the least was 0.6.
USUAL = 0.25


def inspect(
    dataset: Path | str, progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """Hash, counts, fingerprint, problems, warnings, near_duplicates [[patient, patient,
    distance]], repeats, suspects, broken (the scan_ids of problems).

    Lesions are foci: of bones and crowds there is only the number, in ``categories`` and
    ``crowds``. repeats: groups of scan_ids that have the same pixels or are the same object.
    suspects: [scan_id, why] of views that may be swapped or mirrored; someone should look at them.

    Raises:
        WrongInput: it cannot be opened.
    """
    opened = open_dataset(dataset)
    problems, readable = _problems(opened, progress)
    counts, warnings = _counts(opened), list(opened.meta.get("warnings", ()))
    opened = replace(opened, scans=tuple(readable))
    repeats = _repeats(opened.scans)
    if repeats:
        warnings.append(
            f"{sum(map(len, repeats))} scans share their pixels or their object id with another "
            "scan"
        )
    near = _near_duplicates(opened)
    across = [pair for pair in near if opened.fold_of[pair[0]] != opened.fold_of[pair[1]]]
    if across:
        warnings.append(
            f"{len(across)} pairs of patients look like one person and are in different folds"
        )
    suspects = _suspects(opened)
    if suspects:
        warnings.append(f"{len(suspects)} scans may have their view or their sides swapped")
    return {
        "hash": opened.hash,
        "counts": counts,
        "fingerprint": _fingerprint(opened),
        "problems": [*map(str, problems), *nothing_to_learn(opened.scans)],
        "warnings": warnings,
        "near_duplicates": near,
        "repeats": repeats,
        "suspects": suspects,
        "broken": list(dict.fromkeys(problem.where for problem in problems)),
    }


def inspection_lines(found: dict[str, Any]) -> list[str]:
    """The findings as lines for people, in YAML."""
    text: str = yaml.safe_dump(
        found, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True
    )
    return text.splitlines()


def _counts(dataset: Dataset) -> dict[str, Any]:
    scans = dataset.scans
    labels: dict[str, Counter[str]] = defaultdict(Counter)
    for scan in scans:
        for name, value in scan.labels:
            labels[name][value] += 1
    every = [le for s in scans for le in s.lesions]
    return {
        **dataset.meta["counts"],
        "categories": dict(Counter(le.category for le in every if not le.crowd)),
        "crowds": sum(le.crowd for le in every),
        "views": dict(Counter(s.view for s in scans)),
        "sites": dict(Counter(s.site for s in scans)),
        "scanners": dict(Counter(s.scanner for s in scans)),
        "flags": dict(Counter(f for s in scans for f in s.flags)),
        "labels": {name: dict(values) for name, values in labels.items()},
        "per_fold": _per_fold(dataset),
    }


def _problems(
    dataset: Dataset, progress: Callable[[int, int], None]
) -> tuple[list[Problem], list[Scan]]:
    """What is broken, by scan_id, and the scans whose pixels can be read."""
    problems, readable = list[Problem](), list[Scan]()
    for number, scan in enumerate(dataset.scans, 1):
        progress(number, len(dataset.scans))
        try:
            shape = dataset.counts(scan).shape
        except (OSError, ValueError, IndexError):
            rule = f"row {scan.row} of its pixel file is not there"
            problems.append(Problem(scan.scan_id, rule))
            continue
        if shape != (scan.height, scan.width):
            # The array was replaced by one of another shape.
            rule = f"pixels are {shape}, scans.csv says {(scan.height, scan.width)}"
            problems.append(Problem(scan.scan_id, rule))
            continue
        readable.append(scan)
        if not scan.scan_id.startswith(f"s{digest_of(dataset.counts(scan))[:12]}"):
            problems.append(Problem(scan.scan_id, "its pixels are not those it was made with"))
        for lesion in scan.lesions:
            x1, y1, x2, y2 = lesion.box_xyxy
            if not (0 <= x1 < x2 <= scan.width and 0 <= y1 < y2 <= scan.height):
                rule = f"box {lesion.box_xyxy} is not inside the scan"
                problems.append(Problem(scan.scan_id, rule))
    return problems, readable


def _repeats(scans: Sequence[Scan]) -> list[list[str]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for scan in scans:
        groups[scan.pixels].append(scan.scan_id)
        # Frames of one object share its id; they repeat each other only when a view comes twice.
        if scan.instance:
            groups[f"{scan.instance} {scan.view}"].append(scan.scan_id)
    return [list(g) for g in sorted({tuple(g) for g in groups.values() if len(g) > 1})]


def _near_duplicates(dataset: Dataset) -> list[list[Any]]:
    """Pairs of patients with scans of the same view and shape that look alike, exact copies of any
    view included.
    """
    closest: dict[tuple[str, str], float] = {}
    strangers = set() if dataset.meta.get("patients_known", True) else set(dataset.fold_of)
    for a, b, distance in lookalikes(dataset.scans, dataset.counts, strangers):
        pair = (min(a.patient_id, b.patient_id), max(a.patient_id, b.patient_id))
        closest[pair] = min(distance, closest.get(pair, 1.0))
    copies: dict[str, set[str]] = defaultdict(set)
    for scan in dataset.scans:
        copies[scan.pixels].add(scan.patient_id)
    for patients in copies.values():
        closest.update({(a, b): 0.0 for a in patients for b in patients if a < b})
    return [[a, b, round(d, 5)] for (a, b), d in sorted(closest.items(), key=lambda item: item[1])]


def _suspects(dataset: Dataset) -> list[list[str]]:
    """Scans whose two views look exchanged, or whose left and right do, by comparison within a
    patient's pair.

    A view from the back is, but for depth, the mirror image of the one from the front; what sets
    front and back apart is learned from the median over all pairs, so at least five are needed.
    """
    pairs: dict[tuple[str, int, int], dict[str, Scan]] = defaultdict(dict)
    for scan in dataset.scans:
        pairs[scan.patient_id, scan.height, scan.width].setdefault(scan.view, scan)
    both = [
        (p["anterior"], p["posterior"])
        for p in pairs.values()
        if {"anterior", "posterior"} <= set(p)
    ]
    shapes: dict[tuple[int, ...], list[tuple[Scan, Scan, Array, Array]]] = defaultdict(list)
    for front, back in both:
        first, second = (thumbnail(dataset.counts(s), s.high) for s in (front, back))
        shapes[first.shape].append((front, back, first, second))
    found = []
    for group in shapes.values():
        depth_HW = np.median([f for _, _, f, _ in group], axis=0) - np.median(
            [b for _, _, _, b in group], axis=0
        )
        depth_HW = depth_HW + depth_HW[:, ::-1]
        shown = [float(((f - b) * depth_HW).sum()) for _, _, f, b in group]
        for (front, back, first_HW, second_HW), depth in (
            zip(group, shown) if len(group) >= 5 else ()
        ):
            if depth < USUAL * float(np.median(shown)):
                found += [
                    [front.scan_id, "looks like a posterior view, but is called anterior"],
                    [back.scan_id, "looks like an anterior view, but is called posterior"],
                ]
            if float((first_HW * (second_HW - second_HW[:, ::-1])).sum()) > 0:
                found.append(
                    [
                        back.scan_id,
                        f"fits {front.scan_id} unmirrored: one of the two has its sides swapped",
                    ]
                )
    return found


def _per_fold(dataset: Dataset) -> dict[str, dict[str, int]]:
    return {
        SPECIAL.get(k, str(k)): {
            "patients": sum(f == k for f in dataset.fold_of.values()),
            "scans": len(dataset.validation(k)),
            "lesions": sum(len(foci(s)) for s in dataset.validation(k)),
        }
        for k in sorted(set(dataset.fold_of.values()), key=lambda k: (k < 0, k))
    }


def _fingerprint(dataset: Dataset) -> dict[str, Any]:
    sides = [
        max(le.box_xyxy[2] - le.box_xyxy[0], le.box_xyxy[3] - le.box_xyxy[1])
        for s in dataset.scans
        for le in foci(s)
    ]
    means = [float(dataset.counts(s).mean()) for s in dataset.scans]
    return {
        "shapes": dict(Counter(f"{s.height}x{s.width}" for s in dataset.scans)),
        "pixel_mm": sorted({s.pixel_mm for s in dataset.scans if s.pixel_mm}),
        "mean_counts": _quantiles(means, 3),
        "high": _quantiles([s.high for s in dataset.scans], 3),
        "lesions_per_scan": round(float(np.mean([len(foci(s)) for s in dataset.scans])), 3)
        if means
        else 0.0,
        "lesion_side_px": _quantiles(sides, 1),
    }


def _quantiles(values: Sequence[float], digits: int) -> list[float]:
    """The 5th, 50th and 95th percentile."""
    return (
        [round(float(q), digits) for q in np.quantile(values, (0.05, 0.5, 0.95))]
        if len(values)
        else []
    )
