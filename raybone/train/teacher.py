"""Scans without annotation in training: what the average of the weights is sure of is their truth.

A mean teacher (Tarvainen & Valpola 2017, arXiv:1703.01780) whose findings above a score are taken
as truth (Liu et al. 2021, arXiv:2102.09480, for boxes). Our reading: one bound for boxes, pixels
and classes; pixels in between count in no loss, and neither do scans on which nothing is sure, as
an average that has not begun to find would teach that there is nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count

import numpy as np
import torch
from torch import Tensor

from raybone.data.augment import LEAST_SIDE
from raybone.data.loader import CROWD, Batch, EpochSampler, Loader, training_loader
from raybone.train.samples import FoldJob, unlabelled_samples
from raybone.types import Prediction

SURE = 0.7  # score from which a box, a pixel or a class is true; 1 - SURE, below which it is not
RISE = 0.3  # share of the epochs over which the weight rises
NOISE = 0.05  # standard deviation of what the student sees more of than its teacher
CONTRAST = 2.0  # largest gamma, and its reciprocal the smallest, that it sees another image with


@dataclass
class Teacher:
    """Batches of the scans without annotation of a fold's training patients, one a step.

    weight: of their loss at the end, beside 1 of the annotated scans' loss.
    """

    loader: Loader
    sampler: EpochSampler
    weight: float
    steps: int
    epochs: int

    @classmethod
    def of(cls, job: FoldJob, steps: int, rank: int, world: int) -> Teacher | None:
        """None where the configuration asks for none, or there is no such scan in this fold."""
        config = job.config
        samples = unlabelled_samples(job) if config.unlabelled else None
        if samples is None:
            return None
        loader, sampler = training_loader(
            samples, config.batch, rank, world, config.loader_workers, steps * config.batch
        )
        return cls(loader, sampler, config.unlabelled, steps, job.epochs)

    def batches(self, number: int) -> Iterator[tuple[float, Batch]]:
        """A weight and a batch for each step of this epoch (from 1 on)."""
        self.sampler.epoch = number
        return map(partial(self._weighted, number), count(), iter(self.loader))

    def _weighted(self, number: int, step: int, batch: Batch) -> tuple[float, Batch]:
        share = (number - 1 + step / self.steps) / self.epochs
        return self.weight * math.exp(-5 * (1 - min(share / RISE, 1)) ** 2), batch


def taught(batch: Batch, predictions: Sequence[Prediction], judged: bool) -> Batch | None:
    """Those images of a batch on which something is sure, with that as their truth and with other
    contrast and noise than the predictions are of; None where there is none.

    Args:
        judged: whether a prediction is the probability of a class.
    """
    kept = [row for row, found in enumerate(predictions) if _sure(found, judged)]
    if not kept:
        return None
    device, known = batch.image_NCHW.device, [predictions[row] for row in kept]
    masks = [_mask(p.mask_CHW) for p in known if p.mask_CHW is not None]
    sure = [_boxes(p) for p in known]
    boxes = [p.boxes_N4[own_N] for p, own_N in zip(known, sure)]
    labels = [
        (p.scores_N >= SURE).astype(np.int64) if judged else p.labels_N[own_N]
        for p, own_N in zip(known, sure)
    ]
    return Batch(
        _changed(batch.image_NCHW[kept]),
        [torch.from_numpy(b).to(device) for b in boxes],
        [torch.from_numpy(y).to(device) for y in labels],
        torch.from_numpy(np.stack(masks)).to(device) if masks else _rows(batch.mask_NCHW, kept),
        batch.index_N[kept],
    )


def _sure(found: Prediction, judged: bool) -> bool:
    if judged:
        return bool(abs(found.scores_N[0] - 0.5) >= SURE - 0.5)
    if found.mask_CHW is not None:
        return bool((found.mask_CHW >= SURE).any())
    return bool(_boxes(found).any())


def _boxes(found: Prediction) -> np.ndarray:
    """Which boxes are sure, and as large as those that are trained on, bool."""
    sides_N2 = found.boxes_N4[:, 2:] - found.boxes_N4[:, :2]
    large_N = sides_N2.min(1, initial=np.inf) >= LEAST_SIDE
    return large_N & (found.scores_N[: len(large_N)] >= SURE)


def _rows(mask_NCHW: Tensor, kept: Sequence[int]) -> Tensor:
    return mask_NCHW[kept] if len(mask_NCHW) else mask_NCHW


def _mask(probability_CHW: np.ndarray) -> np.ndarray:
    """As a Batch has it: unsure pixels are neither lesion nor background."""
    unsure_CHW = np.where(probability_CHW > 1 - SURE, CROWD, 0)
    return np.where(probability_CHW >= SURE, 1, unsure_CHW).astype(np.uint8)


def _changed(image_NCHW: Tensor) -> Tensor:
    """Other contrast and noise; air stays 0."""
    power_N111 = torch.rand_like(image_NCHW[:, :1, :1, :1]) * 2 - 1
    noisy_NCHW = image_NCHW ** (CONTRAST**power_N111) + NOISE * torch.randn_like(image_NCHW)
    return noisy_NCHW.clamp(0, 1) * (image_NCHW > 0)
