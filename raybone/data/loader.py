"""Batches of a fold; every sample is a pure function of (seed, epoch, index), whatever the number
of processes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, NamedTuple, cast

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from raybone.data.annotations import lesion_mask
from raybone.data.augment import Augmentation, Sample, augment
from raybone.data.cache import as_float
from raybone.data.preprocess import canvas_of, pad
from raybone.errors import MachineFault
from raybone.types import Array, Scan

SHARED = Path("/dev/shm")
SILENT = 600.0  # seconds after which a loader process that gives no batch hangs
CROWD = 2  # value of masks inside crowds: neither lesion nor background


class Batch(NamedTuple):
    """image_NCHW float32 in [0, 1]; per image boxes_N4 float32 xyxy pixels and labels_N int64;
    mask_NCHW uint8.

    A mask is 1 where its category lies, CROWD where only a crowd of it does, else 0; masks may
    overlap. ``index_N`` are the places of the scans in the list the loader was given; mask_NCHW is
    empty for detection.
    """

    image_NCHW: Tensor
    boxes: list[Tensor]
    labels: list[Tensor]
    mask_NCHW: Tensor
    index_N: Tensor

    def to(
        self, device: torch.device, memory: torch.memory_format = torch.contiguous_format
    ) -> Batch:
        """The same batch on a device, its images in a memory format."""
        image_NCHW = self.image_NCHW.to(device, non_blocking=True, memory_format=memory)
        return Batch(
            image_NCHW,
            [b.to(device) for b in self.boxes],
            [y.to(device) for y in self.labels],
            self.mask_NCHW.to(device),
            self.index_N,
        )

    def split(self, parts: int) -> list[Batch]:
        """The same images in so many batches, or as many as there are images."""
        count = len(self.index_N)
        edges = [count * n // parts for n in range(parts + 1)]
        masked = len(self.mask_NCHW) == count
        return [
            Batch(
                self.image_NCHW[at],
                self.boxes[at],
                self.labels[at],
                self.mask_NCHW[at] if masked else self.mask_NCHW,
                self.index_N[at],
            )
            for at in (slice(*pair) for pair in pairwise(edges) if pair[0] < pair[1])
        ]


@dataclass(frozen=True)
class Look:
    """How scans become samples.

    categories: the names that count; the index of a name is its label (boxes) or its channel
    (masks). size: pixels of the long side; the aspect is the scan's own. masks: whether there are
    any. montage: both views of a patient side by side, wherever both exist. non_metastasis: gives
    the boolean mask, of a scan's own size, of the class after the last category. Classes exclude
    each other then, as a softmax has them: lesions of the categories are cut out of it, and where
    categories overlap a pixel is of the first of them. Scores keep the overlap.
    """

    categories: list[str]
    size: int
    masks: bool = False
    montage: bool = False
    non_metastasis: Callable[[Scan], Array] | None = None


@dataclass(frozen=True)
class Change:
    """Augmentation of samples to train on; close_at: the last epoch with mosaics, None for all."""

    hyper: Augmentation
    seed: int = 0
    close_at: int | None = None


class ScanSamples(TorchDataset[tuple[int, Sample]]):
    """Samples of some scans; indexed by (epoch, index), where a negative epoch means no
    augmentation, as none is where ``change`` is None.

    There are no boxes of crowds: detectors learn that what lies there is background.

    Args:
        intensities: gives the image of a scan, (H, W), with a long side of ``look.size``.
    Attributes:
        canvas: (H, W) that every sample to train on is padded to; groups: the indices of the scans
            on it, from left to right; view: (H, W) of each of them;
        stacked: whether the masks are a second channel of the images.
    """

    stacked = False

    def __init__(
        self,
        intensities: Callable[[Scan], Array],
        scans: list[Scan],
        look: Look,
        change: Change | None = None,
    ) -> None:
        self.intensities, self.scans, self.look, self.change = intensities, scans, look, change
        canvases = [canvas_of(s.height, s.width, look.size) for s in scans]
        self.view = (max(c[0] for c in canvases), max(c[1] for c in canvases))
        self.groups = _pairs(scans) if look.montage else [(i,) for i in range(len(scans))]
        self.canvas = (self.view[0], self.view[1] * (1 + look.montage))

    @property
    def size(self) -> int:
        """Pixels of the long side of a scan."""
        return self.look.size

    def __len__(self) -> int:
        return len(self.groups)

    def scan_of(self, index: int) -> Scan:
        """The scan of a sample, the first where it has several."""
        return self.scans[self.groups[index][0]]

    def view_of(self, index: int) -> tuple[int, int]:
        """(H, W) of each scan of a sample that is scored: what a network says of a scan must not
        depend on which others are there, as air around it would make it.
        """
        own = [self.scans[place] for place in self.groups[index]]
        canvases = [canvas_of(s.height, s.width, self.size) for s in own]
        return max(c[0] for c in canvases), max(c[1] for c in canvases)

    def collate(self, items: list[tuple[int, Sample]]) -> Batch:
        """Stack samples into a batch."""
        batch = _collate(items)
        if not self.stacked:
            return batch
        return batch._replace(image_NCHW=torch.cat([batch.image_NCHW, batch.mask_NCHW.float()], 1))

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, Sample]:
        epoch, index = key
        change = self.change
        if change is None or epoch < 0:
            return index, self._plain(index, self.view_of(index))
        rng = np.random.default_rng([change.seed, epoch, index])
        closed = change.close_at is not None and epoch > change.close_at
        mates = None if closed else self._mates
        sample = self._plain(index, self.view)
        return index, augment(sample, change.hyper, rng, self.canvas, mates)

    def _mates(self, rng: np.random.Generator) -> list[Sample]:
        """Three samples to make a mosaic with."""
        return [self._plain(int(i), self.view) for i in rng.integers(0, len(self), 3)]

    def _plain(self, index: int, view: tuple[int, int]) -> Sample:
        """A sample as it is.

        Args:
            view: (H, W) that each of its scans is padded to.
        """
        views = [self._view(place, view) for place in self.groups[index]]
        if not self.look.montage:
            return views[0]
        canvas = view[0], 2 * view[1]
        shifts = [np.array([left, 0, left, 0], np.float32) for left in range(0, canvas[1], view[1])]
        masks = [v.mask_CHW for v in views if v.mask_CHW is not None]
        return Sample(
            pad(np.concatenate([v.image_HW for v in views], 1), canvas),
            np.concatenate([v.boxes_N4 + shift for v, shift in zip(views, shifts)]),
            np.concatenate([v.labels_N for v in views]),
            pad(np.concatenate(masks, 2), canvas) if masks else None,
        )

    def _view(self, place: int, view: tuple[int, int]) -> Sample:
        scan = self.scans[place]
        image_HW = self.intensities(scan)
        scale = self.size / max(scan.height, scan.width)
        known = [le for le in scan.lesions if le.category in self.look.categories and not le.crowd]
        boxes_N4 = np.array([le.box_xyxy for le in known], np.float32).reshape(-1, 4) * np.float32(
            scale
        )
        labels_N = np.array([self.look.categories.index(le.category) for le in known], np.int64)
        mask_CHW = pad(self._mask(scan, image_HW.shape), view) if self.look.masks else None
        return Sample(pad(image_HW, view), boxes_N4, labels_N, mask_CHW)

    def _mask(self, scan: Scan, shape: tuple[int, ...]) -> Array:
        """``masks_of`` at the network's size, and non-metastasis in a last channel."""
        full_CHW = masks_of(scan, self.look.categories)
        if self.look.non_metastasis is not None:
            full_CHW = _exclusive(full_CHW, self.look.non_metastasis(scan))
        return np.stack(
            [
                cv2.resize(m_HW, (shape[1], shape[0]), interpolation=cv2.INTER_NEAREST_EXACT)
                for m_HW in full_CHW
            ]
        )


class EpochSampler(Sampler[tuple[int, int]]):
    """(epoch, place) pairs in an order that depends on seed and epoch alone; each rank takes its
    share.

    Training shares are filled up to the same length, so that all ranks take the same number of
    steps.

    Args:
        drawn: samples of an epoch over all ranks, each as often as others or once more; 0 for each
            once.
    """

    def __init__(self, count: int, seed: int, rank: int, world: int, drawn: int = 0) -> None:
        self.count, self.seed, self.rank, self.world, self.epoch = count, seed, rank, world, 1
        self.drawn = drawn or count

    def __len__(self) -> int:
        return -(-self.drawn // self.world)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        rounds = [rng.permutation(self.count) for _ in range(0, self.drawn, self.count)]
        order = np.concatenate(rounds)[: self.drawn].tolist()
        order += order[: -len(order) % self.world]
        return iter([(self.epoch, i) for i in order[self.rank :: self.world]])


def masks_of(scan: Scan, categories: Sequence[str]) -> Array:
    """Masks as a Batch has them, (C, H, W), of the scan's own size; a lesion inside a crowd is a
    lesion.
    """
    mask_CHW = np.zeros((len(categories), scan.height, scan.width), np.uint8)
    for lesion in sorted(scan.lesions, key=lambda le: not le.crowd):
        if lesion.category in categories:
            inside_HW = lesion_mask(lesion, scan.height, scan.width)
            mask_CHW[categories.index(lesion.category)][inside_HW] = CROWD if lesion.crowd else 1
    return mask_CHW


class Loader:
    """Batches of a DataLoader, whose processes must not hang and need room in shared memory.

    Args:
        batch: samples of the largest batch; batches: gives the keys of each.
    Raises:
        MachineFault: there is none, or a process dies or gives nothing for ``SILENT`` seconds.
    """

    def __init__(
        self, samples: ScanSamples, batch: int, batches: Any, processes: int, pinned: bool = False
    ) -> None:
        self.dataset, self.processes = samples, processes
        need = (
            processes
            * 2
            * batch
            * samples.canvas[0]
            * samples.canvas[1]
            * 4
            * (1 + len(samples.look.categories))
        )
        if processes and SHARED.is_dir() and (free := shutil.disk_usage(SHARED).free) < need:
            raise MachineFault(
                f"{SHARED}: {processes} loader_workers need {need / 1e6:.0f} MB of shared memory, "
                f"but {free / 1e6:.0f} MB are free; enlarge it (docker --shm-size, an emptyDir of "
                "medium Memory), or set loader_workers to 0; then give the same command"
            )
        self.loader: DataLoader[tuple[int, Sample]] = DataLoader(
            samples,
            batch_sampler=batches,
            num_workers=processes,
            collate_fn=samples.collate,
            persistent_workers=processes > 0,
            pin_memory=pinned and torch.cuda.is_available(),
            timeout=SILENT if processes else 0,
        )

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        return self._guarded(iter(self.loader))  # begins now, as it draws a random number

    def _guarded(self, batches: Iterator[Any]) -> Iterator[Batch]:
        while True:
            try:
                batch = next(batches, None)
            except RuntimeError as error:  # what torch says of a process that died or was silent
                if not self.processes:
                    raise
                raise MachineFault(
                    f"{self.processes} loader_workers failed: "
                    f"{' '.join(str(error).split())[:200]}; is {SHARED} too small? Enlarge it or "
                    "set loader_workers to 0, then give the same command"
                ) from None
            if batch is None:
                return
            yield cast(Batch, batch)


def training_loader(
    samples: ScanSamples, batch: int, rank: int, world: int, processes: int, drawn: int = 0
) -> tuple[Loader, EpochSampler]:
    """Loader of this rank's share of each batch, and the sampler that is told the epoch.

    Args:
        drawn: as EpochSampler has it.
    """
    seed = samples.change.seed if samples.change else 0
    sampler = EpochSampler(len(samples), seed, rank, world, drawn)
    share = max(1, batch // world)
    batches = BatchSampler(cast(Any, sampler), share, drop_last=False)
    return Loader(samples, share, batches, processes, pinned=True), sampler


def validation_loader(
    samples: ScanSamples, batch: int, rank: int, world: int, processes: int
) -> Loader:
    """Loader of this rank's share, without padding: every scan is seen exactly once over all
    ranks, in a batch with others of its size.
    """
    own = sorted(range(rank, len(samples), world), key=samples.view_of)
    alike = (list(places) for _, places in groupby(own, samples.view_of))
    batches = [
        [(-1, place) for place in places[first : first + batch]]
        for places in alike
        for first in range(0, len(places), batch)
    ]
    return Loader(samples, batch, batches, processes)


def _collate(items: list[tuple[int, Sample]]) -> Batch:
    """Stack samples of one canvas into a batch."""
    image_NCHW = np.empty((len(items), 1, *items[0][1].image_HW.shape), np.float32)
    for place, (_, sample) in enumerate(items):
        as_float(sample.image_HW, image_NCHW[place, 0])
    masks = [s.mask_CHW for _, s in items if s.mask_CHW is not None]
    mask_NCHW = torch.from_numpy(np.stack(masks)) if masks else torch.zeros(0, dtype=torch.uint8)
    return Batch(
        torch.from_numpy(image_NCHW),
        [torch.from_numpy(s.boxes_N4) for _, s in items],
        [torch.from_numpy(s.labels_N) for _, s in items],
        mask_NCHW,
        torch.tensor([i for i, _ in items]),
    )


def _exclusive(mask_CHW: Array, third_HW: Array) -> Array:
    """Masks of which each pixel has one at most, and a third class where no category is; a crowd is
    unknown in all.
    """
    lesion_CHW, crowd_HW = mask_CHW == 1, (mask_CHW == CROWD).any(0)
    lesion_HW = lesion_CHW.any(0)
    first_CHW = lesion_CHW & (lesion_CHW.cumsum(0) == 1)
    every_CHW = np.concatenate([first_CHW, (third_HW & ~lesion_HW)[None]]).astype(np.uint8)
    every_CHW[:, crowd_HW & ~lesion_HW] = CROWD
    return every_CHW


def _pairs(scans: list[Scan]) -> list[tuple[int, ...]]:
    """Places of the views that share a canvas: the anterior and the posterior one of a patient who
    has one of each.

    Of several studies of a patient a dataset does not say which views belong together: they stay
    alone.
    """
    views: dict[str, dict[str, list[int]]] = {}
    for place, scan in enumerate(scans):
        views.setdefault(scan.patient_id, {}).setdefault(scan.view, []).append(place)
    groups: list[tuple[int, ...]] = []
    for places in views.values():
        front, back = places.get("anterior", []), places.get("posterior", [])
        paired = (front[0], back[0]) if len(front) == len(back) == 1 else ()
        groups += [paired] * bool(paired) + [
            (p,) for many in places.values() for p in many if p not in paired
        ]
    return sorted(groups)
