"""Scans that look alike: one person under two names, or slices of one patient whose names do not
tell.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Sequence

import cv2
import numpy as np
from scipy.cluster.hierarchy import DisjointSet

from raybone.data.preprocess import to_intensity
from raybone.types import Array, Scan

# Correlation distance of thumbnails under which two patients count as one person under two names:
# NEAR at least, and up to FARTHEST where noise keeps all apart, as long as it is below SHARE of the
# usual distance to the nearest patient. On 40 phantom patients at 1024 rows, who share one
# skeleton, the closest two are at 0.042; a scan and its copy are at most at 0.011 with new noise,
# 0.012 shifted by a pixel and 0.024 as a JPEG of quality 85.
NEAR, FARTHEST, SHARE = 0.035, 0.1, 0.4
# Known patients count as one person when their counting noise goes together, too: one skeleton can
# make two phantoms of 24 look as near as 0.026. Correlation of noise is at most 0.014 of those, and
# at least 0.27 of a JPEG of quality 60.
SAME_NOISE = 0.2
# Slices of a CT volume differ more than copies do: on 24 slices of BM-Seg every pair below 0.55
# looks like one patient.
NEAR_SLICE = 0.5
PIXELS = 4096  # of a thumbnail, in the scan's aspect


def thumbnail(counts_HW: Array, high: float) -> Array:
    """A small normalised copy, float32, about PIXELS in the scan's aspect; products with others are
    correlations.

    What is coarser than a few of its pixels is taken out: all bodies share it.
    """
    scale = (PIXELS / counts_HW.size) ** 0.5
    size = (max(1, round(counts_HW.shape[1] * scale)), max(1, round(counts_HW.shape[0] * scale)))
    small_HW = cv2.resize(to_intensity(counts_HW, high), size, interpolation=cv2.INTER_AREA)
    small_HW = small_HW - cv2.GaussianBlur(small_HW, (0, 0), 2)
    return np.asarray(small_HW / max(float(np.linalg.norm(small_HW)), 1e-9), np.float32)


def lookalikes(
    scans: Sequence[Scan], counts_of: Callable[[Scan], Array], strangers: Container[str] = ()
) -> Iterator[tuple[Scan, Scan, float]]:
    """Pairs of scans of one view and shape, of different patients, that look alike, with their
    distance.

    Of two strangers, whom no id tells apart, all such pairs; images of theirs that are not
    elongated count as slices of volumes: see NEAR_SLICE. Of a known patient the nearest scan of
    another, when it was also counted once with it: see SAME_NOISE.
    """
    groups: dict[tuple[str, int, int], list[Scan]] = defaultdict(list)
    for scan in scans:
        groups[scan.view, scan.height, scan.width].append(scan)
    for group in groups.values():
        unknown = [s for s in group if s.patient_id in strangers]
        if len({s.patient_id for s in unknown}) > 1:
            yield from _of_strangers(unknown, counts_of)
        if len(unknown) < len(group) and len({s.patient_id for s in group}) > 1:
            yield from _of_known(group, counts_of, strangers)


def joined(names: Iterable[str], pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """For each name the first of its group, where pairs join groups."""
    groups = DisjointSet(names)
    for a, b in pairs:
        groups.merge(a, b)
    return {name: min(groups.subset(name)) for name in groups}


def _of_strangers(
    group: Sequence[Scan], counts_of: Callable[[Scan], Array]
) -> Iterator[tuple[Scan, Scan, float]]:
    """Memory is that of the thumbnails, 16 kB a scan."""
    sliced = max(group[0].height, group[0].width) < 2 * min(group[0].height, group[0].width)
    thumbs_ND = np.stack([thumbnail(counts_of(s), s.high).ravel() for s in group])
    nearest, close = [], []
    for start, distance_MN in _distances(thumbs_ND):
        nearest += distance_MN.min(1).tolist()
        close += [
            (start + i, j, float(distance_MN[i, j]))
            for i, j in zip(*np.nonzero(distance_MN < (NEAR_SLICE if sliced else FARTHEST)))
        ]
    near = NEAR_SLICE if sliced else _near(nearest)
    for i, j, distance in close:
        if i < j and distance < near and group[i].patient_id != group[j].patient_id:
            yield group[i], group[j], max(distance, 0.0)


def _of_known(
    group: Sequence[Scan], counts_of: Callable[[Scan], Array], strangers: Container[str]
) -> Iterator[tuple[Scan, Scan, float]]:
    """Pairs of which one patient at least is known; 1 kB a scan, as thumbnails are compared by 256
    random sums.

    Those keep distances to some percent (Johnson & Lindenstrauss 1984); the pairs that they leave
    are measured.
    """

    def thumb_D(place: int) -> Array:
        return thumbnail(counts_of(group[place]), group[place].high).ravel()

    patient_N = np.unique([s.patient_id for s in group], return_inverse=True)[1]
    strange_N = np.array([s.patient_id in strangers for s in group])
    sums_DK = np.random.default_rng(0).choice(np.array([-1, 1], np.float32), (len(thumb_D(0)), 256))
    short_NK = np.stack([thumb_D(n) @ sums_DK for n in range(len(group))])
    short_NK /= np.maximum(np.linalg.norm(short_NK, axis=1, keepdims=True), 1e-9)
    nearest, others = [], dict[tuple[int, int], float]()
    for start, distance_MN in _distances(short_NK):
        nearest += distance_MN.min(1).tolist()
        rows = slice(start, start + len(distance_MN))
        distance_MN[(patient_N[rows, None] == patient_N) | (strange_N[rows, None] & strange_N)] = (
            np.inf
        )
        for i, j in enumerate(distance_MN.argmin(1).tolist(), start):
            others[min(i, j), max(i, j)] = float(distance_MN[i - start, j])
    near = _near(nearest)
    for i, j in sorted(pair for pair, distance in others.items() if distance < 1.5 * near):
        distance = 1 - float(thumb_D(i) @ thumb_D(j))
        if distance < near and _counted_once(counts_of(group[i]), counts_of(group[j])):
            yield group[i], group[j], max(distance, 0.0)


def _distances(unit_ND: Array) -> Iterator[tuple[int, Array]]:
    """A few hundred rows of correlation distances at a time, with the number of the first; infinite
    to itself.
    """
    for start in range(0, len(unit_ND), 250):
        distance_MN = 1 - unit_ND[start : start + 250] @ unit_ND.T
        rows = np.arange(len(distance_MN))
        distance_MN[rows, rows + start] = np.inf
        yield start, distance_MN


def _near(nearest: Sequence[float]) -> float:
    return min(FARTHEST, max(NEAR, SHARE * float(np.median(nearest))))


def _counted_once(first_HW: Array, second_HW: Array) -> bool:
    """Whether the counting noise of two scans is one, but for a shift by two pixels: one is a copy
    of the other.
    """
    first_HW, second_HW = _noise(first_HW), _noise(second_HW)
    return (
        float(cv2.matchTemplate(first_HW, second_HW[2:-2, 2:-2], cv2.TM_CCOEFF_NORMED).max())
        > SAME_NOISE
    )


def _noise(counts_HW: Array) -> Array:
    """What is finer than a camera's point spread, in standard deviations of counting."""
    values_HW = counts_HW.astype(np.float32)
    smooth_HW = cv2.GaussianBlur(values_HW, (0, 0), 1)
    return np.asarray((values_HW - smooth_HW) / np.sqrt(smooth_HW + 1), np.float32)
