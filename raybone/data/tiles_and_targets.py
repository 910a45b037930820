"""Samples that are a part of a scan: tiles of it, or one of its lesions with the whole scan
around.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np

from raybone.data.annotations import NOT_LESIONS, lesion_mask, mask_of
from raybone.data.augment import Sample
from raybone.data.dataset import Dataset
from raybone.data.ingest.steps import body_mask, tiles
from raybone.data.loader import Change, Look, ScanSamples
from raybone.data.preprocess import canvas_of, pad
from raybone.types import Array, Scan


class TileSamples(ScanSamples):
    """Square tiles of the scans, which overlap by half; for training alone, as scans are scored
    whole.

    Args:
        intensities, scans, look, change: as ScanSamples has them.
        tile: pixels of the side, on the canvas of the network.
        lesions_only: leave out tiles without a lesion (bones are none, unless nothing else is
            looked for).
    """

    def __init__(
        self,
        intensities: Callable[[Scan], Array],
        scans: list[Scan],
        look: Look,
        change: Change,
        tile: int,
        lesions_only: bool,
    ) -> None:
        super().__init__(intensities, scans, look, change)
        categories = look.categories
        self.tile, self.canvas, self.whole = tile, (tile, tile), self.canvas
        whole = (max(self.whole[0], tile), max(self.whole[1], tile))
        self.places = [
            (place, y, x) for place in range(len(scans)) for y, x in tiles(whole, tile, tile // 2)
        ]
        if lesions_only:
            masks = [pad(self._mask(s, self.intensities(s).shape), whole) for s in scans]
            kinds = [k for k, name in enumerate(categories) if name not in NOT_LESIONS]
            kinds = kinds or [*range(len(categories))]
            self.places = [
                (n, y, x)
                for n, y, x in self.places
                if (masks[n][kinds, y : y + tile, x : x + tile] == 1).any()
            ]

    def __len__(self) -> int:
        return len(self.places)

    def scan_of(self, index: int) -> Scan:
        """The scan that a tile is of."""
        return self.scans[self.places[index][0]]

    def view_of(self, index: int) -> tuple[int, int]:  # noqa: ARG002
        """(H, W) of all scans, as tiles are for training alone."""
        return self.view

    def _plain(self, index: int, view: tuple[int, int]) -> Sample:
        place, y, x = self.places[index]
        sample = self._view(place, view)
        box_4 = np.array([x, y, x, y], np.float32)
        inside = (..., slice(y, y + self.tile), slice(x, x + self.tile))
        mask_CHW = None if sample.mask_CHW is None else pad(sample.mask_CHW[inside], self.canvas)
        # A segmenter has no use for boxes, but augmentation moves them.
        return Sample(
            pad(sample.image_HW[inside], self.canvas),
            sample.boxes_N4 - box_4,
            sample.labels_N,
            mask_CHW,
        )


class TargetSamples(ScanSamples):
    """What is to be classified: one sample a lesion, or one a scan; the label is 1 for positive and
    0 for negative.

    Images have two channels: the whole scan, and the mask of the lesion in question (zeros where it
    is the scan).

    Args:
        intensities, scans, change: as ScanSamples has them, but there are no mosaics.
        look: its categories are those of positive lesions; every other lesion is negative. Bones
            and crowds are no lesions.
        items: (index of the scan, index of the lesion in it or -1, whether it is positive) of each
            sample.
    """

    stacked = True

    def __init__(
        self,
        intensities: Callable[[Scan], Array],
        scans: list[Scan],
        look: Look,
        items: list[tuple[int, int, bool]],
        change: Change | None = None,
    ) -> None:
        super().__init__(intensities, scans, look, change and replace(change, close_at=None))
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def scan_of(self, index: int) -> Scan:
        """The scan that a sample is of."""
        return self.scans[self.items[index][0]]

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, Sample]:
        index, sample = super().__getitem__(key)
        # Augmentation drops boxes that leave the image, but a lesion stays what it is.
        return index, replace(sample, labels_N=np.array([self.items[index][2]], np.int64))

    def view_of(self, index: int) -> tuple[int, int]:
        """(H, W) of a sample's own scan."""
        scan = self.scan_of(index)
        return canvas_of(scan.height, scan.width, self.size)

    def _plain(self, index: int, view: tuple[int, int]) -> Sample:
        place, lesion, positive = self.items[index]
        scan = self.scans[place]
        image_HW = self.intensities(scan)
        full_HW = (
            lesion_mask(scan.lesions[lesion], scan.height, scan.width)
            if lesion >= 0
            else np.zeros((scan.height, scan.width))
        )
        # Not as other masks are: a lesion of a few pixels must not vanish, as nothing else tells
        # which one is meant.
        mask_HW = (
            cv2.resize(
                full_HW.astype(np.float32), image_HW.shape[::-1], interpolation=cv2.INTER_AREA
            )
            > 0
        ).astype(np.uint8)
        return Sample(
            pad(image_HW, view),
            np.zeros((0, 4), np.float32),
            np.array([positive], np.int64),
            pad(mask_HW[None], view),
        )


class Otsu:
    """The body of a scan by Otsu's threshold, as a boolean mask; made once a scan and process."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset, self._known = dataset, dict[str, Array]()

    def __call__(self, scan: Scan) -> Array:
        if scan.scan_id not in self._known:
            self._known[scan.scan_id] = np.packbits(body_mask(self.dataset.counts(scan)))
        return (
            np.unpackbits(self._known[scan.scan_id], count=scan.height * scan.width)
            .astype(bool)
            .reshape(scan.height, scan.width)
        )


class Mined:
    """What an earlier model found in each scan, as a boolean mask (negative mining)."""

    def __init__(self, rles: dict[str, list[dict[str, object]]]) -> None:
        self.rles = rles

    def __call__(self, scan: Scan) -> Array:
        masks = [mask_of(rle) for rle in self.rles[scan.scan_id]]
        return np.logical_or.reduce(masks)
