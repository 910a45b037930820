"""Scans that look alike: one person under two names, or slices of one patient whose names do not tell."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

import cv2
import numpy as np
from scipy.cluster.hierarchy import DisjointSet

from raybone.data.preprocess import to_intensity
from raybone.records import Array, Scan

# Correlation distance of thumbnails under which two patients count as one person under two names: NEAR at least, and up
# to FARTHEST where noise keeps all apart, as long as it is below SHARE of the usual distance to the nearest patient.
# On 40 phantom patients at 1024 rows, who share one skeleton, the closest two are at 0.042; a scan and its copy are at
# most at 0.011 with new noise, 0.012 shifted by a pixel and 0.024 as a JPEG of quality 85.
NEAR, FARTHEST, SHARE = 0.035, 0.1, 0.4
# Slices of a CT volume differ more than copies do: on 24 slices of BM-Seg every pair below 0.55 looks like one patient.
NEAR_SLICE = 0.5
PIXELS = 4096  # of a thumbnail, in the scan's aspect


def thumbnail(counts_HW: Array, high: float) -> Array:
    """A small normalised copy, float32, about PIXELS in the scan's aspect; products with others are correlations.

    What is coarser than a few of its pixels is taken out: all bodies share it.
    """
    scale = (PIXELS / counts_HW.size) ** 0.5
    size = (max(1, round(counts_HW.shape[1] * scale)), max(1, round(counts_HW.shape[0] * scale)))
    small_HW = cv2.resize(to_intensity(counts_HW, high), size, interpolation=cv2.INTER_AREA)
    small_HW = small_HW - cv2.GaussianBlur(small_HW, (0, 0), 2)
    return np.asarray(small_HW / max(float(np.linalg.norm(small_HW)), 1e-9), np.float32)


def lookalikes(scans: Sequence[Scan], counts_of: Callable[[Scan], Array],
               patients_known: bool) -> Iterator[tuple[Scan, Scan, float]]:
    """Pairs of scans of one view and shape, of different patients, that look alike, with their distance.

    Images that are not elongated and whose patients are unknown count as slices of volumes: see NEAR_SLICE.
    Memory is that of the thumbnails (16 kB a scan) and of a thousand rows of distances.
    """
    groups: dict[tuple[str, int, int], list[Scan]] = defaultdict(list)
    for scan in scans:
        groups[scan.view, scan.height, scan.width].append(scan)
    for (_, height, width), group in groups.items():
        sliced = not patients_known and max(height, width) < 2 * min(height, width)
        thumbs_ND = np.stack([thumbnail(counts_of(s), s.high).ravel() for s in group])
        nearest, close = [], []
        for start in range(0, len(group), 1000):
            distance_MN = 1 - thumbs_ND[start : start + 1000] @ thumbs_ND.T
            rows = np.arange(len(distance_MN))
            distance_MN[rows, rows + start] = np.inf
            nearest += distance_MN.min(1).tolist()
            close += [(start + i, j, float(distance_MN[i, j])) for i, j in zip(*np.nonzero(
                distance_MN < (NEAR_SLICE if sliced else FARTHEST)))]
        near = NEAR_SLICE if sliced else min(FARTHEST, max(NEAR, SHARE * float(np.median(nearest))))
        for i, j, distance in close:
            if i < j and distance < near and group[i].patient_id != group[j].patient_id:
                yield group[i], group[j], max(distance, 0.0)


def joined(names: Iterable[str], pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """For each name the one that stands for its group, where pairs join groups."""
    groups = DisjointSet(names)
    for a, b in pairs:
        groups.merge(a, b)
    return {name: groups[name] for name in groups}
