"""What a bundle predicts on: the frames of sources, and the scans that cover them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from raybone.data.annotations import lesion_mask, lesion_of_mask
from raybone.data.ingest.read import Reading
from raybone.data.ingest.steps import Origin, part_of
from raybone.data.loader import ScanSamples
from raybone.deploy.bundle import Bundle
from raybone.deploy.frames import Frame
from raybone.tasks import task_named
from raybone.train.grad_cam import heat_map
from raybone.types import Array, Lesion, Scan


@dataclass(frozen=True)
class Options:
    """What is asked of a prediction.

    modality: for DICOM, the only Modality taken; None takes all. least: lowest score of a
    detector's boxes; None takes the bundle's operating point. lesions: what a classifier of lesions
    is to judge, in pixels of each frame, by its source and number; without it, what is annotated
    beside the scans. each: whether to tell what each member finds by itself. verb: that errors
    name. shown: called with each frame, its counts (H, W) and the upper edge of their window.
    place: a private folder for counts; None takes one among other temporary files.
    """

    modality: str | None = "NM"
    least: float | None = None
    lesions: Mapping[tuple[str, int], Sequence[Lesion]] | None = None
    each: bool = False
    verb: str = "predict"
    shown: Callable[[Frame, Array, float], None] | None = None
    place: Path | None = None


USUAL = Options()


class Job:
    """What is predicted on.

    Attributes:
        least: lowest score of a detector's boxes.
        scans: by scan_id, with the window of the training scans, where they shared one.
        voices: every frame of every source, in order: as all members together see it, and then, if
            that is asked, as each of them does. parts: of each frame, by its number, the scans that
            cover it and where.
    """

    def __init__(
        self,
        bundle: Bundle,
        reading: Reading,
        members: Sequence[torch.nn.Module],
        options: Options,
    ) -> None:
        self.bundle, self.reading, self.members, self.options = bundle, reading, members, options
        self.least = bundle.threshold if options.least is None else options.least
        window = bundle.meta["preprocessing"]["window"]
        scans = [replace(s, high=window or s.high) for s in reading.store.scans]
        if options.lesions is not None:
            scans = [replace(s, lesions=tuple(self._lesions(s, options.lesions))) for s in scans]
        # Tiles of a frame follow each other, so that few frames are under way at once
        scans.sort(key=lambda s: min(reading.origins[s.scan_id])[:2])
        self.scans = {s.scan_id: s for s in scans}
        by_frame: dict[tuple[str, int], list[tuple[Scan, Origin]]] = {}
        for scan_id, origins in reading.origins.items():
            for origin in origins:
                part = (self.scans[scan_id], origin)
                by_frame.setdefault((origin.name, origin.frame), []).append(part)
        self.parts = dict(enumerate((by_frame[key] for key in sorted(by_frame)), 1))
        self._patients = _numbers(parts[0][0].patient_id for parts in self.parts.values())
        self._studies = _numbers(self._study(parts[0][1]) for parts in self.parts.values())
        copies = 1 + len(bundle.meta["members"]) * options.each
        self.voices = [
            [self._frame(n, parts) for n, parts in self.parts.items()] for _ in range(copies)
        ]
        self.frames = self.voices[0]
        self._indices = defaultdict[str, list[int]](list)  # of the samples of a scan

    def seen(self, frame: Frame) -> tuple[Array, float]:
        """The counts of a frame, as the model saw them, and the upper edge of their window."""
        parts, seen_HW = self.parts[frame.number], np.zeros((frame.height, frame.width), np.uint16)
        for scan, origin in parts:
            counts_HW = self.reading.store.counts(scan)
            part_HW = part_of(counts_HW, origin.y, origin.x, frame.height, frame.width)
            seen_HW = np.maximum(seen_HW, part_HW)
        return seen_HW, parts[0][0].high

    def is_dicom(self, frame: Frame) -> bool:
        """Whether a frame is one of a DICOM object."""
        _, origin = self.parts[frame.number][0]
        return self.reading.told[origin.name, origin.frame].dicom

    def heat(self, frame: Frame, samples: ScanSamples, device: torch.device) -> Array | None:
        """Where a classifier sees what it judges on a frame, (H, W) of it, in [0, 1]; None of what
        is none.
        """
        if not task_named(self.bundle.model.task).judged:
            return None
        if not self._indices:
            for index in range(len(samples)):
                self._indices[samples.scan_of(index).scan_id].append(index)
        whole_HW = np.zeros((frame.height, frame.width), np.float32)
        for scan, origin in self.parts[frame.number]:
            for index in self._indices[scan.scan_id]:
                heat_HW = heat_map(self.members, samples, index, device)
                if heat_HW is None:
                    return None
                part_HW = part_of(heat_HW, origin.y, origin.x, frame.height, frame.width)
                whole_HW = np.maximum(whole_HW, part_HW)
        return whole_HW

    def _frame(self, number: int, parts: Sequence[tuple[Scan, Origin]]) -> Frame:
        scan, origin = parts[0]
        edges_N4 = np.array([[-o.x, -o.y, s.width - o.x, s.height - o.y] for s, o in parts])
        inside_N4 = np.clip(edges_N4, 0, np.array([origin.width, origin.height] * 2))
        (x1, y1), (x2, y2) = inside_N4[:, :2].min(0).tolist(), inside_N4[:, 2:].max(0).tolist()
        return Frame(
            number=number,
            patient=self._patients[scan.patient_id],
            study=self._studies[self._study(origin)],
            source=self.reading.path_of(origin.name),
            frame=origin.frame,
            view=self.reading.told[origin.name, origin.frame].view,
            height=origin.height,
            width=origin.width,
            pixel_mm=scan.pixel_mm,
            seen_xyxy=(x1, y1, x2, y2),
            flags=[f for f in scan.flags if f != "unannotated"],
            oddities=[],
        )

    def _study(self, origin: Origin) -> str:
        return self.reading.told[origin.name, origin.frame].study

    def _lesions(
        self, scan: Scan, known: Mapping[tuple[str, int], Sequence[Lesion]]
    ) -> Iterator[Lesion]:
        """The lesions of a scan's frames, in its own pixels."""
        for origin in self.reading.origins[scan.scan_id]:
            for lesion in known.get((self.reading.path_of(origin.name), origin.frame), ()):
                mask_HW = lesion_mask(lesion, origin.height, origin.width)
                moved_HW = part_of(mask_HW, -origin.y, -origin.x, scan.height, scan.width)
                if moved_HW.any():
                    yield lesion_of_mask(moved_HW, lesion.category)


def _numbers(names: Iterable[str]) -> dict[str, int]:
    """Names by the order in which they come, from 1."""
    return {name: number for number, name in enumerate(dict.fromkeys(names), 1)}
