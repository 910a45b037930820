"""Masks: findings cut at one half, metrics of pixels, components and patients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, cast

import cv2
import numpy as np

from raybone.data.annotations import decisive, foci, lesion_mask, mask_of, rle_of
from raybone.data.dataset import Dataset
from raybone.data.preprocess import resize
from raybone.metrics.lesions import THRESHOLD
from raybone.metrics.masks import (
    MaskScore,
    mask_metrics,
    mask_score,
    over_categories,
    pixel_counts,
    weighted_means,
)
from raybone.tasks.base import Masks, Outcome, Task, patients_of
from raybone.types import Array, Finding, Prediction, Scan

if TYPE_CHECKING:
    from raybone.data.loader import Change, ScanSamples
    from raybone.models._model import TrainingConfig
    from raybone.models.segmenters._segmenter import SegmenterConfig


class Segmentation(Task):
    """Masks of lesions, a probability a pixel and category."""

    name = "segmentation"
    ranked = ("dice", "iou", "precision", "sensitivity", "val_loss")
    alone = "dice"
    masks = True
    rescored = True
    counted = "pixels"

    def samples(
        self,
        images: Masks,
        scans: list[Scan],
        config: TrainingConfig,
        change: Change | None = None,
        masks: Masks | None = None,
    ) -> ScanSamples:
        """Scans with masks, whole or as tiles; tiles are trained on, whole scans are scored."""
        from raybone.data.loader import Look, ScanSamples
        from raybone.data.tiles_and_targets import TileSamples

        config = cast("SegmenterConfig", config)
        names, montage = list(config.categories), config.montage
        look = Look(names, config.imgsz, True, montage, masks if config.nm else None)
        if change and config.tile:
            lesions_only = config.tiles == "lesions"
            return TileSamples(images, scans, look, change, config.tile, lesions_only)
        return ScanSamples(images, scans, look, change)

    def warnings(self, dataset: Dataset, config: TrainingConfig, sizes: Sequence[int]) -> list[str]:
        """A line for each size at which masks of lesions outside the test group may lose all their
        pixels: they are scored at the size of the scan.
        """
        small = self._small(dataset, config, sizes)
        return [
            f"imgsz {n}: {what}; their masks may vanish and be trained on as background, but are "
            "scored"
            for n, what in small
        ]

    def crop(self, prediction: Prediction, part: int, width: int, views: int) -> Prediction:
        """The part's columns."""
        left = part * width
        return Prediction(mask_CHW=_mask(prediction)[:, :, left : left + width])

    def in_scan(self, scan: Scan, prediction: Prediction, size: int) -> Prediction:
        """Probabilities of the scan's own size."""
        blank_HW = np.zeros((scan.height, scan.width), np.float32)
        height, width = resize(blank_HW, size)[0].shape
        inside_CHW = _mask(prediction)[:, :height, :width]
        whole = (scan.width, scan.height)
        return Prediction(
            mask_CHW=np.stack(
                [cv2.resize(p_HW, whole, interpolation=cv2.INTER_LINEAR) for p_HW in inside_CHW]
            )
        )

    def agreed(self, members: Sequence[Prediction]) -> tuple[Prediction, Array]:
        """The mean of each pixel, and its standard deviation (C, H, W)."""
        masks_MCHW = np.stack([_mask(m) for m in members])
        return Prediction(mask_CHW=masks_MCHW.mean(0)), masks_MCHW.std(0)

    def cut(self, prediction: Prediction, least: Sequence[float]) -> Prediction:
        """Pixels of at least that probability."""
        least_C11 = np.array(least, np.float32)[:, None, None]
        return Prediction(mask_CHW=(_mask(prediction) >= least_C11).astype(np.float32))

    def finding(self, prediction: Prediction) -> Finding:
        """A run-length mask a category."""
        return {"masks": [rle_of(m) for m in _mask(prediction) >= THRESHOLD]}

    def score(self, outcome: Outcome) -> dict[str, float]:
        """``mask_metrics``, means over the categories, and metrics of patients."""
        scores = [_scores(f, s, outcome.categories) for f, s in outcome.pairs]
        own = {c: mask_metrics(part) for c, part in zip(outcome.categories, zip(*scores))}
        return over_categories(own) | patients_of(outcome, _counts(scores, outcome.labels))

    def resampled(self, outcome: Outcome, weights_BN: Array) -> dict[str, Array]:
        """Metrics of pooled pixels."""
        counts = []
        for finding, scan in outcome.pairs:
            parts = zip(_truth(scan, outcome.categories), map(mask_of, finding["masks"]))
            counts.append([pixel_counts(t_HW == 1, m_HW & (t_HW <= 1)) for t_HW, m_HW in parts])
        annotated = [s.annotated for s in outcome.scans]
        return weighted_means(np.array(counts), weights_BN[:, annotated])

    def levels(
        self, scan: Scan, prediction: Prediction, categories: list[str]
    ) -> Iterator[tuple[Array, Array]]:
        """Probabilities and truth, (H, W) of each category that is decisive."""
        own = zip(categories, _mask(prediction), _truth(scan, categories))
        decide = decisive(categories)
        yield from ((p_HW, truth_HW) for name, p_HW, truth_HW in own if name in decide)

    def errors(self, outcome: Outcome) -> tuple[int, int]:
        """Components that find no lesion, and lesions that none finds."""
        every = [_scores(f, s, outcome.categories) for f, s in outcome.pairs]
        scores = [own[label] for own in every for label in outcome.labels]
        wrong = sum(one.findings - one.hits for one in scores)
        return wrong, sum(one.lesions - one.found for one in scores)

    def alarms(self, outcome: Outcome) -> list[float]:
        """Components of the masks of lesions, those in crowds aside."""
        scores = [_scores(f, s, outcome.categories) for f, s in outcome.pairs]
        return _counts(scores, outcome.labels)


def _mask(prediction: Prediction) -> Array:
    return cast(Array, prediction.mask_CHW)


def _truth(scan: Scan, categories: list[str]) -> Array:
    """Masks (C, H, W): 0, 1, or more where only a crowd is, which is neither."""
    from raybone.data.loader import masks_of

    return masks_of(scan, categories)


def _scores(finding: Finding, scan: Scan, categories: list[str]) -> list[MaskScore]:
    scores, mm = [], None if "not-square" in scan.flags else scan.pixel_mm
    for category, mask_HW, rle in zip(categories, _truth(scan, categories), finding["masks"]):
        own = [le for le in foci(scan) if le.category == category]
        lesions = [lesion_mask(le, scan.height, scan.width) for le in own]
        scores.append(mask_score(mask_HW == 1, lesions, mask_of(rle), mm, mask_HW > 1))
    return scores


def _counts(scores: Sequence[Sequence[MaskScore]], labels: Sequence[int]) -> list[float]:
    """How many findings of lesions the masks of each scan have."""
    return [sum(own[label].findings for label in labels) for own in scores]


TASK = Segmentation()
