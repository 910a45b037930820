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
from raybone.types import Array, Lesion

MALIGNANT = "malignant"
DOUBT = (0.3, 0.7)  # probabilities between which a lesion is called uncertain
SPREAD = 0.15  # standard deviation over the members from which it is
Sight = tuple[Array, dict[str, Array]]  # pixels of malignant lesions, and of each region


@dataclass(frozen=True)
class Judged:
    """A lesion that was found.

    score: the finder's; probability: that it is malignant, by the classifier; else the finder's own
    that it is of its category, where that is calibrated, or None; sd: of it, or of the score, over
    the members. malignant: whether it is taken for that. judged: whether a classifier, if there is
    one, has seen it. region: of the skeleton, on which most of it lies, or empty.
    """

    lesion: Lesion
    score: float
    probability: float | None
    sd: float | None
    malignant: bool
    judged: bool
    region: str
    area_px: int
    area_mm2: float | None

    @property
    def doubt(self) -> str:
        """Why it is uncertain; empty if it is not."""
        if not self.judged:
            return "the classifier has not seen it"
        word, value = ("probability", self.probability)
        if value is None:
            word, value = "score", self.score
        if DOUBT[0] <= value <= DOUBT[1]:
            return f"{word} {value:.2f}"
        return f"members differ, sd {self.sd:.2f}" if (self.sd or 0) >= SPREAD else ""

    def told(self) -> dict[str, Any]:
        """As JSON."""
        about = {"category": self.lesion.category, "box": self.lesion.box_xyxy}
        own = {k: v for k, v in vars(self).items() if k != "lesion"}
        return {**about, **own, "doubt": self.doubt}


@dataclass(frozen=True)
class Seen:
    """One frame with all that the bundles of a chain say of it.

    frame: by all finders together; finders: by each alone. skeletons: the frame by all skeleton
    models together, then by each. judges: the frame by all classifiers together, then by each;
    empty without one.
    """

    frame: Frame
    finders: Sequence[Frame]
    skeletons: Sequence[Frame]
    judges: Sequence[Frame]

    @property
    def oddities(self) -> list[str]:
        """In what it is unlike the training scans of any bundle."""
        frames = [self.frame, self.skeletons[0], *self.judges[:1]]
        return list(dict.fromkeys(odd for frame in frames for odd in frame.oddities))

    def lesions(self) -> Iterator[Judged]:
        """Each lesion with what is said of it, best first."""
        bones, mm = self.regions(0), self.frame.pixel_mm
        square = "not-square" not in self.frame.flags
        for lesion, found in lesions_of(self.frame):
            mask_HW = mask_of(lesion.rle or {})
            on = {name: int((mask_HW & bone_HW).sum()) for name, bone_HW in bones.items()}
            verdict = _nearest(lesion, self.judges[0].findings) if self.judges else None
            said, area = verdict or found, int(mask_HW.sum())
            chance = _chance(verdict) if verdict else found.probability
            yield Judged(
                lesion=lesion,
                score=found.score,
                probability=chance,
                sd=said.sd,
                malignant=verdict.called if verdict else _may_be(lesion),
                judged=bool(verdict) or not self.judges,
                region=max(on, key=lambda name: on[name]) if any(on.values()) else "",
                area_px=area,
                area_mm2=round(area * mm * mm, 1) if square and mm else None,
            )

    def regions(self, skeleton: int) -> dict[str, Array]:
        """Pixels of each region of the skeleton, boolean (H, W), where the finder has looked."""
        x1, y1, x2, y2 = self.frame.seen_xyxy
        found = dict[str, Array]()
        for name, rle in self.skeletons[skeleton].masks.items():
            if name in regions():
                found[name] = np.zeros((self.frame.height, self.frame.width), bool)
                found[name][y1:y2, x1:x2] = mask_of(rle)[y1:y2, x1:x2]
        return found

    def sights(self, lesions: Sequence[Judged]) -> tuple[Sight, tuple[list[Sight], ...]]:
        """What a bone scan index is made of: by all members; and by each finder, by each skeleton
        and by each classifier, with all members of the others.

        What the finders together take for malignant, or for benign, is so to each of them.
        """
        malignant_HW = self._union([le.lesion for le in lesions if le.malignant])
        benign_HW = self._union([le.lesion for le in lesions if not le.malignant])
        whole, by_finder = self.regions(0), []
        for frame in self.finders:
            own = [le for le, _ in lesions_of(frame)]
            kept = [le for le in own if _may_be(le) or self._overlaps(le, malignant_HW)]
            by_finder.append((self._union(kept) & ~(benign_HW & ~malignant_HW), whole))
        by_skeleton = [(malignant_HW, self.regions(n)) for n in range(1, len(self.skeletons))]
        by_judge = [
            (self._union([le.lesion for le in lesions if _called(le.lesion, judge)]), whole)
            for judge in self.judges[1:]
        ]
        return (malignant_HW, whole), (by_finder, by_skeleton, by_judge)

    def _overlaps(self, lesion: Lesion, mask_HW: Array) -> bool:
        return bool((mask_of(lesion.rle or {}) & mask_HW).any())

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
        if f.category not in NOT_LESIONS and f.box[0] < f.box[2] and f.box[1] < f.box[3]
    ]


def by_place(frames: Sequence[Frame]) -> Mapping[tuple[str, int], Frame]:
    """Frames by their source and number there, which is the same for all bundles."""
    return {(frame.source, frame.frame): frame for frame in frames}


def _ellipse(found: Found, frame: Frame) -> Lesion:
    """The lesion of a box: the ellipse inside it."""
    x1, y1, x2, y2 = found.box
    mask_HW = np.zeros((frame.height, frame.width), np.uint8)
    centre = (round((x1 + x2 - 1) * 8), round((y1 + y2 - 1) * 8))  # 4 fractional bits
    size = (max(0, round((x2 - x1 - 1) * 8)), max(0, round((y2 - y1 - 1) * 8)))
    cv2.ellipse(mask_HW, centre, size, 0, 0, 360, 1, -1, cv2.LINE_8, 4)
    return Lesion((x1, y1, x2, y2), found.category, rle_of(mask_HW > 0))


def _may_be(lesion: Lesion) -> bool:
    """Whether a lesion is malignant where no classifier says otherwise."""
    return lesion.category == MALIGNANT


def _called(lesion: Lesion, judge: Frame) -> bool:
    """Whether a classifier takes a lesion for malignant; one that it has not seen is what the
    finder says.
    """
    verdict = _nearest(lesion, judge.findings)
    return verdict.called if verdict else _may_be(lesion)


def _chance(found: Found) -> float:
    """A classifier's probability, calibrated where it is."""
    return found.score if found.probability is None else found.probability


def _nearest(lesion: Lesion, judged: Sequence[Found]) -> Found | None:
    """What a classifier says of a lesion: of the box whose edges are nearest, within half of the
    lesion's own sides, as tiles cut lesions.
    """
    sides = [b - a for a, b in zip(lesion.box_xyxy[:2], lesion.box_xyxy[2:])] * 2

    def away(found: Found) -> float:
        return max(abs(a - b) / side for a, b, side in zip(lesion.box_xyxy, found.box, sides))

    nearest = min(judged, key=away, default=None)
    return nearest if nearest and away(nearest) <= 0.5 else None
