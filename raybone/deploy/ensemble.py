"""What several fold models say of a scan together, and how far they differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np
import torch
from torch import nn

from raybone.data.loader import Loader, ScanSamples
from raybone.data.tiles_and_targets import TargetSamples
from raybone.train.evaluate import in_scan
from raybone.types import Array, Prediction

# IoU from which boxes of different models are one (Solovyev et al. 2021, arXiv:1910.13302).
MERGE = 0.55


def outputs(
    modules: Sequence[nn.Module], samples: ScanSamples, loader: Loader, device: torch.device
) -> Iterator[tuple[int, list[Prediction]]]:
    """A prediction a module of every scan, in pixels of the scan, by its place; of a classifier, of
    every sample.

    Args:
        modules: in eval mode, on the device.
    """
    for batch in loader:
        batch = batch.to(device)
        with torch.no_grad():
            found = [cast(list[Prediction], module(batch.image_NCHW)) for module in modules]
        for row, index in enumerate(batch.index_N.tolist()):
            if isinstance(samples, TargetSamples):
                yield index, [f[row] for f in found]
                continue
            parts = [dict(samples.parts(index, f[row])) for f in found]
            for place in parts[0]:
                yield place, [in_scan(samples.scans[place], p[place], samples.size) for p in parts]


def agreed(members: Sequence[Prediction]) -> tuple[Prediction, Array]:
    """The mean of the members' predictions, and their standard deviation: of each pixel (C, H, W),
    or score (N,).

    Boxes of one category that overlap by MERGE are one, at most one a member: its sides are their
    mean weighted by score, and its score the mean over all members, where a member without it
    counts 0 (weighted boxes fusion).
    """
    if members[0].mask_CHW is not None:
        masks_MCHW = np.stack([cast(Array, m.mask_CHW) for m in members])
        return Prediction(mask_CHW=masks_MCHW.mean(0)), masks_MCHW.std(0)
    if not len(members[0].boxes_N4) and len(members[0].scores_N):
        scores_MN = np.stack([m.scores_N for m in members])
        return Prediction(scores_N=scores_MN.mean(0)), scores_MN.std(0)
    return _fused(members)


def apart(boxes: Sequence[Array], labels: Sequence[int]) -> list[int]:
    """Places of the boxes, given best first, that no better one of their category overlaps by
    MERGE.
    """
    kept: list[int] = []
    for place, box_4 in enumerate(boxes):
        rivals = [boxes[k] for k in kept if labels[k] == labels[place]]
        if not rivals or float(_iou(np.stack(rivals), box_4).max()) < MERGE:
            kept.append(place)
    return kept


def _fused(members: Sequence[Prediction]) -> tuple[Prediction, Array]:
    boxes_D4 = np.concatenate([m.boxes_N4 for m in members]).astype(np.float64)
    score_D, label_D = (
        np.concatenate([getattr(m, k) for m in members]) for k in ("scores_N", "labels_N")
    )
    member_D = np.repeat(np.arange(len(members)), [len(m.scores_N) for m in members])
    count, total = 0, len(score_D)
    # Of each fused box: its sides, its category, and the score that each member gave it.
    box_N4, label_N, score_NM = (
        np.zeros((total, 4)),
        np.zeros(total, np.int64),
        np.zeros((total, len(members))),
    )
    for place in np.argsort(-score_D, kind="stable"):
        score, member = score_D[place], member_D[place]
        fits_N = (label_N[:count] == label_D[place]) & (score_NM[:count, member] == 0)
        overlap_N = np.where(fits_N, _iou(box_N4[:count], boxes_D4[place]), 0.0)
        if count and overlap_N.max() >= MERGE:
            n = int(overlap_N.argmax())
            weight = score_NM[n].sum()
            box_N4[n] = (box_N4[n] * weight + boxes_D4[place] * score) / (weight + score)
        else:
            n, count = count, count + 1
            box_N4[n], label_N[n] = boxes_D4[place], label_D[place]
        score_NM[n, member] = score
    mean_N, spread_N = score_NM[:count].mean(1), score_NM[:count].std(1)
    order_N = np.argsort(-mean_N, kind="stable")
    return Prediction(
        box_N4[order_N].astype(np.float32), mean_N[order_N].astype(np.float32), label_N[order_N]
    ), spread_N[order_N]


def _iou(boxes_N4: Array, box_4: Array) -> Array:
    low_N2, high_N2 = np.maximum(boxes_N4[:, :2], box_4[:2]), np.minimum(boxes_N4[:, 2:], box_4[2:])
    common_N = np.prod(np.clip(high_N2 - low_N2, 0, None), axis=1)
    area_N = np.prod(boxes_N4[:, 2:] - boxes_N4[:, :2], axis=1) + np.prod(box_4[2:] - box_4[:2])
    return np.asarray(common_N / np.maximum(area_N - common_N, 1e-9))
