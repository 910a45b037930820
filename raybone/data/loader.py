"""Batches of a fold; every sample is a pure function of (seed, epoch, index), whatever the number of processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from raybone.data.annotations import mask_of
from raybone.data.augment import Augmentation, Sample, augment
from raybone.data.cache import Intensities, as_float
from raybone.data.dataset import Dataset
from raybone.data.preprocess import canvas_of, pad
from raybone.records import Array, Scan


class Batch(NamedTuple):
    """image_NCHW float32 in [0, 1]; per image boxes_N4 float32 xyxy pixels and labels_N int64; mask_NHW int64.

    ``index_N`` are the places of the scans in the list the loader was given; mask_NHW is empty for detection.
    """

    image_NCHW: Tensor
    boxes: list[Tensor]
    labels: list[Tensor]
    mask_NHW: Tensor
    index_N: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        return Batch(self.image_NCHW.to(device, non_blocking=True), [b.to(device) for b in self.boxes],
                     [y.to(device) for y in self.labels], self.mask_NHW.to(device), self.index_N)


class ScanSamples(TorchDataset[tuple[int, Sample]]):
    """Samples of some scans; indexed by (epoch, place), where a negative epoch means no augmentation.

    Args:
        categories: the names that count; the place of a name is its label (boxes) or label + 1 (masks).
        size: pixels of the long side; the aspect is the scan's own.
        canvas: (H, W) that every scan is padded to, or None for each scan's own.
    """

    def __init__(self, dataset: Dataset, scans: list[Scan], categories: list[str], size: int, masks: bool,
                 hyper: Augmentation | None = None, seed: int = 0, close_at: int | None = None) -> None:
        self.dataset, self.scans, self.categories, self.size, self.masks = dataset, scans, categories, size, masks
        self.hyper, self.seed, self.close_at = hyper, seed, close_at
        canvases = [canvas_of(s.height, s.width, size) for s in scans]
        self.canvas = (max(c[0] for c in canvases), max(c[1] for c in canvases))
        self.intensities = Intensities(dataset, size)

    def __len__(self) -> int:
        return len(self.scans)

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, Sample]:
        epoch, index = key
        sample = self._plain(index)
        if self.hyper is None or epoch < 0:
            return index, self._padded(sample)
        rng = np.random.default_rng([self.seed, epoch, index])
        closed = self.close_at is not None and epoch > self.close_at
        return index, augment(self._padded(sample), self.hyper, rng, self.canvas,
                              lambda i: self._padded(self._plain(i)), len(self.scans), closed)

    def _plain(self, index: int) -> Sample:
        scan = self.scans[index]
        image_HW = self.intensities(scan)
        scale = self.size / max(scan.height, scan.width)
        known = [le for le in scan.lesions if le.category in self.categories]
        boxes_N4 = np.array([le.box_xyxy for le in known], np.float32).reshape(-1, 4) * np.float32(scale)
        labels_N = np.array([self.categories.index(le.category) for le in known], np.int64)
        mask_HW = self._mask(scan, image_HW.shape) if self.masks else None
        return Sample(image_HW, boxes_N4, labels_N, mask_HW)

    def _mask(self, scan: Scan, shape: tuple[int, ...]) -> Array:
        """Class map: 0 background, label + 1 lesion; a box without a mask counts as its rectangle."""
        full_HW = class_map(scan, self.categories)
        return cv2.resize(full_HW, (shape[1], shape[0]), interpolation=cv2.INTER_NEAREST_EXACT)

    def _padded(self, sample: Sample) -> Sample:
        mask_HW = None if sample.mask_HW is None else pad(sample.mask_HW, self.canvas)
        return Sample(pad(sample.image_HW, self.canvas), sample.boxes_N4, sample.labels_N, mask_HW)


class EpochSampler(Sampler[tuple[int, int]]):
    """(epoch, place) pairs in an order that depends on seed and epoch alone; each rank takes its share.

    Training shares are filled up to the same length, so that all ranks take the same number of steps.
    """

    def __init__(self, count: int, seed: int, rank: int, world: int) -> None:
        self.count, self.seed, self.rank, self.world, self.epoch = count, seed, rank, world, 1

    def __len__(self) -> int:
        return -(-self.count // self.world)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.count).tolist()
        order += order[: -len(order) % self.world]
        return iter([(self.epoch, i) for i in order[self.rank :: self.world]])


def class_map(scan: Scan, categories: list[str]) -> Array:
    """uint8 class map of the scan's own size (H, W): 0 background, place of the category + 1."""
    full_HW = np.zeros((scan.height, scan.width), np.uint8)
    for lesion in scan.lesions:
        if lesion.category in categories:
            value = categories.index(lesion.category) + 1
            if lesion.rle:
                full_HW[mask_of(lesion.rle)] = value
            else:
                x1, y1, x2, y2 = (round(v) for v in lesion.box_xyxy)
                full_HW[y1:y2, x1:x2] = value
    return full_HW


def training_loader(samples: ScanSamples, batch: int, rank: int, world: int,
                    processes: int) -> tuple[DataLoader[tuple[int, Sample]], EpochSampler]:
    """Loader of this rank's share of each batch, and the sampler that is told the epoch."""
    sampler = EpochSampler(len(samples), samples.seed, rank, world)
    share = max(1, batch // world)
    loader = DataLoader(samples, share, sampler=sampler, num_workers=processes, collate_fn=collate,
                        persistent_workers=processes > 0, pin_memory=torch.cuda.is_available())
    return loader, sampler


def validation_loader(samples: ScanSamples, batch: int, rank: int, world: int,
                      processes: int) -> DataLoader[tuple[int, Sample]]:
    """Loader of this rank's share, without padding: every scan is seen exactly once over all ranks."""
    places = [(-1, i) for i in range(rank, len(samples), world)]
    return DataLoader(samples, batch, sampler=_Fixed(places), num_workers=processes, collate_fn=collate,
                      persistent_workers=processes > 0)


def collate(items: list[tuple[int, Sample]]) -> Batch:
    """Stack samples of one canvas into a batch."""
    image_NCHW = np.empty((len(items), 1, *items[0][1].image_HW.shape), np.float32)
    for place, (_, sample) in enumerate(items):
        as_float(sample.image_HW, image_NCHW[place, 0])
    masks = [s.mask_HW for _, s in items if s.mask_HW is not None]
    mask_NHW = torch.from_numpy(np.stack(masks)).long() if masks else torch.zeros(0, dtype=torch.int64)
    return Batch(torch.from_numpy(image_NCHW), [torch.from_numpy(s.boxes_N4) for _, s in items],
                 [torch.from_numpy(s.labels_N) for _, s in items], mask_NHW, torch.tensor([i for i, _ in items]))


class _Fixed(Sampler[tuple[int, int]]):
    def __init__(self, places: list[tuple[int, int]]) -> None:
        self.places = places

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self.places)
