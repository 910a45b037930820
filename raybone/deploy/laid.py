"""The lesions of one view: their pixels, what a classifier says of them, and the bones they lie
on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from raybone.data.annotations import NOT_LESIONS, lesions_of_mask, mask_of, rle_of
from raybone.deploy.frames import Found, Frame
from raybone.metrics.burden import regions
from raybone.metrics.lesions import THRESHOLD
from raybone.types import Array, Lesion

DOUBT = (0.3, 0.7)  # probabilities between which a lesion is called uncertain
SPREAD = 0.15  # standard deviation over the members from which it is
Sight = tuple[Array, dict[str, Array]]  # pixels of malignant lesions, and of each region


@dataclass(frozen=True)
class Judged:
    """A lesion that was found.

    score: the finder's; probability: that it is malignant, by the classifier, None without one; sd:
    of the latter, or else of the score, over the members. malignant: whether it is taken for that.
    region: of the skeleton, on which most of it lies, or empty.
    """

    lesion: Lesion
    score: float
    probability: float | None
    sd: float | None
    malignant: bool
    region: str
    area_px: int
    area_mm2: float | None

    @property
    def doubt(self) -> str:
        """Why it is uncertain; empty if it is not."""
        value = self.score if self.probability is None else self.probability
        if DOUBT[0] <= value <= DOUBT[1]:
            return f"probability {value:.2f}"
        return f"members differ, sd {self.sd:.2f}" if (self.sd or 0) >= SPREAD else ""

    def told(self) -> dict[str, Any]:
        """As JSON."""
        own = {k: v for k, v in vars(self).items() if k != "lesion"}
        about = {"category": self.lesion.category, "box": self.lesion.box_xyxy}
        return {**about, **own, "doubt": self.doubt}


@dataclass(frozen=True)
class Seen:
    """One frame with all that the bundles of a chain say of it.

    frame: by all finders together; finders: by each alone. skeletons: masks by all skeleton models
    together, then by each. judged: findings of a classifier, or None. sought: categories that count
    as malignant without one.
    """

    frame: Frame
    finders: Sequence[Frame]
    skeletons: Sequence[Mapping[str, Any]]
    judged: Sequence[Found] | None
    sought: Sequence[str]

    def lesions(self) -> Iterator[Judged]:
        """Each lesion with what is said of it, best first."""
        bones, mm = self.regions(0), self.frame.pixel_mm
        for lesion, found in lesions_of(self.frame):
            mask_HW = mask_of(lesion.rle or {})
            on = {name: int((mask_HW & bone_HW).sum()) for name, bone_HW in bones.items()}
            said = None if self.judged is None else _nearest(lesion, self.judged)
            probability = _chance(said) if said else None
            area = int(mask_HW.sum())
            square = mm is not None and "not-square" not in self.frame.flags
            yield Judged(
                lesion,
                found.score,
                probability,
                (said or found).sd,
                lesion.category in self.sought if probability is None else probability >= THRESHOLD,
                max(on, key=lambda name: on[name]) if any(on.values()) else "",
                area,
                round(area * mm * mm, 1) if square and mm else None,
            )

    def regions(self, skeleton: int) -> dict[str, Array]:
        """Pixels of each region of the skeleton, boolean (H, W)."""
        masks = self.skeletons[skeleton]
        return {name: mask_of(rle) for name, rle in masks.items() if name in regions()}

    def sights(self, lesions: Sequence[Judged]) -> tuple[Sight, list[Sight], list[Sight]]:
        """What a bone scan index is made of: by all members; by each finder on the skeleton of all;
        and by all finders on each skeleton.
        """
        malignant_HW = self._union([le.lesion for le in lesions if le.malignant])
        benign_HW = self._union([le.lesion for le in lesions if not le.malignant])
        whole = self.regions(0)
        by_finder = []
        for frame in self.finders:
            own = [le for le, _ in lesions_of(frame)]
            # What the members together find benign is benign to each.
            kept = [le for le in own if not (mask_of(le.rle or {}) & benign_HW).any()]
            by_finder.append((self._union([le for le in kept if self._may_count(le)]), whole))
        by_skeleton = [(malignant_HW, self.regions(n)) for n in range(1, len(self.skeletons))]
        return (malignant_HW, whole), by_finder, by_skeleton

    def _may_count(self, lesion: Lesion) -> bool:
        return self.judged is not None or lesion.category in self.sought

    def _union(self, lesions: Sequence[Lesion]) -> Array:
        whole_HW = np.zeros((self.frame.height, self.frame.width), bool)
        for lesion in lesions:
            whole_HW |= mask_of(lesion.rle or {})
        return whole_HW


def lesions_of(frame: Frame) -> list[tuple[Lesion, Found]]:
    """What was found on a frame, with its pixels: components of masks, or the ellipses inside
    boxes.
    """
    shapes: dict[tuple[object, ...], Lesion] = {
        (name, *lesion.box_xyxy): lesion
        for name, rle in frame.masks.items()
        for lesion in lesions_of_mask(mask_of(rle), name)
    }
    return [
        (shapes.get((f.category, *f.box)) or _ellipse(f, frame), f)
        for f in frame.findings
        if f.category not in NOT_LESIONS
    ]


def _ellipse(found: Found, frame: Frame) -> Lesion:
    """The lesion of a box: the ellipse inside it."""
    x1, y1, x2, y2 = found.box
    mask_HW = np.zeros((frame.height, frame.width), np.uint8)
    centre = (round((x1 + x2 - 1) * 8), round((y1 + y2 - 1) * 8))  # 4 fractional bits
    size = (round((x2 - x1 - 1) * 8), round((y2 - y1 - 1) * 8))
    cv2.ellipse(mask_HW, centre, size, 0, 0, 360, 1, -1, cv2.LINE_8, 4)
    return Lesion((x1, y1, x2, y2), found.category, rle_of(mask_HW > 0))


def _chance(said: Found) -> float:
    """A classifier's probability, calibrated where it is."""
    return said.score if said.probability is None else said.probability


def _nearest(lesion: Lesion, judged: Sequence[Found]) -> Found | None:
    """What a classifier says of a lesion: of the box with the nearest centre, if that is inside."""
    x1, y1, x2, y2 = lesion.box_xyxy

    def away(found: Found) -> float:
        left, top, right, bottom = found.box
        return max(abs(left + right - x1 - x2) / (x2 - x1), abs(top + bottom - y1 - y2) / (y2 - y1))

    nearest = min(judged, key=away, default=None)
    return nearest if nearest and away(nearest) <= 1 else None
