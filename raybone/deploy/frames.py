"""Frames of sources, and how predictions on prepared scans come together on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torchvision.ops import batched_nms

from raybone.data.annotations import decisive, lesions_of_mask, mask_of, rle_of
from raybone.data.ingest.steps import Origin, part_of
from raybone.deploy.bundle import Bundle
from raybone.metrics.calibration import calibrated
from raybone.tasks.detection import MERGE
from raybone.types import Array, Prediction

Box = tuple[Array, float, float, int]  # xyxy, score, standard deviation of it, label


@dataclass(frozen=True)
class Found:
    """One lesion, or what a classifier says of one or of a whole scan.

    box: xyxy in pixels of the frame. score: the members' mean; probability: the same, calibrated,
    or None where the bundle has no calibration; called: whether the score reaches the operating
    point; sd: standard deviation over the members, None of one alone; area in pixels and mm2 of a
    mask, the latter None where pixels are not square or of unknown size.
    """

    category: str
    box: tuple[float, ...]
    score: float
    probability: float | None
    sd: float | None
    area_px: int | None = None
    area_mm2: float | None = None
    called: bool = True


@dataclass
class Frame:
    """What is known of one frame of a source: the numbers of its files, and its findings.

    patient, study: numbers of the patient and of the study that it is a view of, in the order of
    the frames. source: path of the input; frame: 0-based. seen_xyxy: the box around what the
    model saw of it, in pixels. notes: what was not written, and why.
    """

    number: int
    patient: int
    study: int
    source: str
    frame: int
    view: str
    height: int
    width: int
    pixel_mm: float | None
    seen_xyxy: tuple[int, int, int, int]
    flags: list[str]
    oddities: list[str]
    findings: list[Found] = field(default_factory=list)
    masks: dict[str, Any] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Canvas:
    """A frame on which the predictions on all scans that cover it come together.

    Where scans overlap, as tiles do, masks are their mean, and of boxes that are one the best
    stays.
    """

    def __init__(self, frame: Frame, bundle: Bundle, parts: int) -> None:
        self.frame, self.bundle, self.shape, self.parts = (
            frame,
            bundle,
            (frame.height, frame.width),
            parts,
        )
        self.finished = False
        self.sums_2CHW: Array | None = None
        self.times_HW: Array | None = None
        self.boxes: list[Box] = []

    def add(self, origin: Origin, prediction: Prediction, sd: Array) -> None:
        """Take in what is predicted of one scan, or of a lesion of it.

        Args:
            prediction: masks, or boxes, in pixels of the scan; a score without a box is of the scan
                as a whole.
            sd: standard deviation of each pixel's or box's score over the members.
        """
        if prediction.mask_CHW is not None:
            self._add_masks(origin, prediction.mask_CHW, sd)
        elif len(prediction.boxes_N4):
            self._add_boxes(origin, prediction, sd)
        else:
            whole_4 = np.array([0, 0, self.shape[1], self.shape[0]], np.float32)
            for score, spread in zip(prediction.scores_N, sd):
                self.boxes.append((whole_4, float(score), float(spread), 0))

    def _add_masks(self, origin: Origin, mask_CHW: Array, sd_CHW: Array) -> None:
        """After the last of its scans the frame has its findings: sums of many would not fit into
        memory.
        """
        parts_2CHW = np.stack(
            [
                [part_of(v_HW, origin.y, origin.x, *self.shape) for v_HW in values_CHW]
                for values_CHW in (mask_CHW, sd_CHW)
            ]
        )
        seen_HW = part_of(np.ones(mask_CHW.shape[1:], np.float32), origin.y, origin.x, *self.shape)
        self.sums_2CHW = parts_2CHW if self.sums_2CHW is None else self.sums_2CHW + parts_2CHW
        self.times_HW = seen_HW if self.times_HW is None else self.times_HW + seen_HW
        self.parts -= 1
        if not self.parts:
            self.finish()

    def _add_boxes(self, origin: Origin, prediction: Prediction, sd_N: Array) -> None:
        """Those whose centre is on this frame."""
        shift_4 = np.array([origin.x, origin.y] * 2, np.float32)
        limit_4 = np.array([self.shape[1], self.shape[0]] * 2, np.float32)
        for box_4, score, spread, label in zip(
            prediction.boxes_N4 - shift_4, prediction.scores_N, sd_N, prediction.labels_N
        ):
            x, y = (box_4[:2] + box_4[2:]) / 2
            if 0 <= x < self.shape[1] and 0 <= y < self.shape[0]:
                self.boxes.append(
                    (np.clip(box_4, 0, limit_4), float(score), float(spread), int(label))
                )

    def finish(self) -> None:
        """Give the frame its findings, best first, once."""
        if self.finished:
            return
        self.finished = True
        names, found = self.bundle.meta["categories"], list[Found]()
        if self.sums_2CHW is not None and self.times_HW is not None:
            mean_2CHW = self.sums_2CHW / np.maximum(self.times_HW, 1)
            for name, p_HW, sd_HW in zip(names, *mean_2CHW):
                self.frame.masks[name] = rle_of(p_HW >= self.bundle.least(name))
                found += list(self._lesions(name, p_HW, sd_HW))
        boxes = sorted(self.boxes, key=lambda b: -b[1])
        for box_4, score, sd, label in _apart(boxes) if self.parts > 1 else boxes:
            found.append(
                Found(
                    names[label],
                    tuple(round(float(v), 2) for v in box_4),
                    round(score, 5),
                    self._probability(np.array([score])),
                    self._sd(sd),
                    called=score >= self.bundle.threshold,
                )
            )
        self.frame.findings = sorted(found, key=lambda f: -f.score)
        self.sums_2CHW = self.times_HW = None

    def _lesions(self, name: str, p_HW: Array, sd_HW: Array) -> Iterator[Found]:
        mm = None if "not-square" in self.frame.flags else self.frame.pixel_mm
        of_point = decisive(self.bundle.meta["categories"])
        for lesion in lesions_of_mask(p_HW >= self.bundle.least(name), name):
            inside_HW = mask_of(lesion.rle or {})
            area = int(inside_HW.sum())
            yield Found(
                name,
                lesion.box_xyxy,
                round(float(p_HW[inside_HW].mean()), 5),
                self._probability(p_HW[inside_HW]) if name in of_point else None,
                self._sd(float(sd_HW[inside_HW].mean())),
                area,
                round(area * mm * mm, 1) if mm else None,
            )

    def _probability(self, score_N: Array) -> float | None:
        """Mean of the calibrated scores, None without a calibration."""
        known = self.bundle.meta["calibration"]
        if "slope" not in known:
            return None
        return round(float(calibrated(score_N, known["slope"], known["intercept"]).mean()), 5)

    def _sd(self, spread: float) -> float | None:
        return round(spread, 5) if len(self.bundle.meta["members"]) > 1 else None


def _apart(boxes: Sequence[Box]) -> list[Box]:
    """The boxes, best first, that no better one of their category overlaps by MERGE."""
    if not boxes:
        return []
    boxes_N4 = torch.from_numpy(np.stack([box_4 for box_4, *_ in boxes])).float()
    scores_N, labels_N = (torch.tensor([b[k] for b in boxes]) for k in (1, 3))
    return [boxes[n] for n in batched_nms(boxes_N4, scores_N, labels_N, MERGE).tolist()]
