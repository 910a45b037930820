"""Detection metrics by faster-coco-eval, which gives pycocotools' numbers several times sooner."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from scipy import sparse

from raybone.metrics.lesions import FOUND, THRESHOLD, lesion_metrics
from raybone.types import Array, Prediction

MOST = 100  # detections an image that count
AT_ONCE = 128  # samples whose arrays are in memory together
RECALL_R = np.linspace(0, 1, 101)  # COCO's recall thresholds
# COCO's small lesions are all that bone scans have: here the limits are 12 and 24 pixels of the
# scan, as areas.
SIZES = {"AP_small": (0.0, 12.0**2), "AP_medium": (12.0**2, 24.0**2), "AP_large": (24.0**2, 1e10)}
IOUS_T = np.linspace(0.5, 0.95, 10)

Truth = Sequence[tuple[Array, Array]]


def box_metrics(
    truth: Truth,
    predictions: Sequence[Prediction],
    categories: int,
    crowds: Truth = (),
    lesions: Collection[int] | None = None,
    threshold: float = THRESHOLD,
) -> dict[str, float]:
    """COCO's metrics over images, means over categories, at most 100 detections an image; and
    ``lesion_metrics``.

    Args:
        truth: for each image boxes_N4 (xyxy pixels) and labels_N (0-based).
        predictions: one for each image, in the same order.
        crowds: as ``truth``, of regions (COCO's iscrowd) in which detections that find nothing are
            not counted.
        lesions: labels of the categories that are lesions; all of them by default.
        threshold: score from which on a detection is a finding.
    Returns:
        AP (IoU .50:.95), AP50, AP75, AP of lesions of three sizes, AR (recall, IoU .50:.95), FROC,
        sensitivity and precision (of all lesions together), each in [0, 1]; NaN when no image holds
        such a lesion.
    Source: Lin et al. 2014 (arXiv:1405.0312), pycocotools.
    """
    kinds = range(categories) if lesions is None else lesions
    evaluation = _evaluated(truth, predictions, categories, [(0.0, 1e10), *SIZES.values()], crowds)
    evaluation.accumulate()
    precision_TRCA, recall_TCA = (evaluation.eval[k][..., 0] for k in ("precision", "recall"))
    found = {
        "AP": precision_TRCA[..., 0],
        "AP50": precision_TRCA[0, ..., 0],
        "AP75": precision_TRCA[5, ..., 0],
        **{name: precision_TRCA[..., place] for place, name in enumerate(SIZES, 1)},
        "AR": recall_TCA[..., 0],
    }
    # -1 is COCO's mark of a category that no image holds.
    means = {
        name: float(v[v > -1].mean()) if (v > -1).any() else math.nan for name, v in found.items()
    }
    count = sum(int(np.isin(labels_N, [*kinds]).sum()) for _, labels_N in truth)
    return {**means, **lesion_metrics(*_hits(evaluation, kinds), count, len(truth), threshold)}


def lesion_hits(
    truth: Truth,
    predictions: Sequence[Prediction],
    categories: int,
    crowds: Truth = (),
    lesions: Collection[int] | None = None,
) -> tuple[Array, Array]:
    """Scores of the detections that ``box_metrics`` counts as findings of lesions, and whether each
    finds one (IoU of at least ``FOUND``), (D,).

    Args:
        truth, predictions, categories, crowds, lesions: as in ``box_metrics``.
    """
    kinds = range(categories) if lesions is None else lesions
    return _hits(_evaluated(truth, predictions, categories, [(0.0, 1e10)], crowds), kinds)


def weighted_ap(
    truth: Truth,
    predictions: Sequence[Prediction],
    categories: int,
    weights_BN: Array,
    crowds: Truth = (),
) -> dict[str, Array]:
    """AP, AP50 and AP75 of B weighted samples of the images at once: each image is matched once,
    however often drawn.

    Args:
        truth, predictions, crowds: as in ``box_metrics``.
        weights_BN: how many copies of image n sample b holds, integers from 0.
    Returns:
        Each of shape (B,): what ``box_metrics`` gives when the copies of an image follow each
            other.
    """
    counts_NC = np.array([np.bincount(labels_N, minlength=categories) for _, labels_N in truth])
    lesions_BC = weights_BN @ counts_NC
    evaluation = _evaluated(truth, predictions, categories, [(0.0, 1e10)], crowds)
    ap_CTB = np.zeros((categories, len(IOUS_T), len(weights_BN)))
    for label in range(categories):
        matches = _matches(evaluation, label)
        for part in np.array_split(np.arange(len(weights_BN)), -(-len(weights_BN) // AT_ONCE)):
            ap_CTB[label][:, part] = _weighted_precision(
                matches, weights_BN[part], lesions_BC[part, label]
            )
    # COCO leaves out categories that no image holds.
    known_B = (lesions_BC > 0).sum(1)
    share_CB = np.divide(
        (lesions_BC > 0).T,
        known_B,
        out=np.full((categories, len(weights_BN)), math.nan),
        where=known_B > 0,
    )
    return {
        "AP": (ap_CTB.mean(1) * share_CB).sum(0),
        "AP50": (ap_CTB[:, 0] * share_CB).sum(0),
        "AP75": (ap_CTB[:, 5] * share_CB).sum(0),
    }


@dataclass(frozen=True)
class _Matches:
    """Detections of one category on all images: place of the image, score, and of each IoU whether
    a lesion was found, and whether it does not count, as it found a crowd.
    """

    image_D: Array
    score_D: Array
    hit_TD: Array
    ignored_TD: Array

    def at(self, threshold: int) -> _Matches:
        """Those that count at one IoU."""
        counts_D, one = ~self.ignored_TD[threshold], slice(threshold, threshold + 1)
        return _Matches(
            self.image_D[counts_D],
            self.score_D[counts_D],
            self.hit_TD[one, counts_D],
            self.ignored_TD[one, counts_D],
        )


def _weighted_precision(matches: _Matches, weights_BN: Array, lesions_B: Array) -> Array:
    """Mean precision over the recall thresholds, shape (T, B), of one category."""
    if not len(matches.score_D):
        return np.zeros((len(matches.hit_TD), len(weights_BN)))
    if matches.ignored_TD.any():
        return np.concatenate(
            [
                _weighted_precision(matches.at(t), weights_BN, lesions_B)
                for t in range(len(matches.hit_TD))
            ]
        )
    order_D = np.argsort(-matches.score_D, kind="stable")
    hit_TD = matches.hit_TD[:, order_D]
    chosen_D, column_D, weights_BM = _with_copies(
        matches.image_D[order_D], matches.score_D[order_D], hit_TD, weights_BN
    )
    hit_TD = hit_TD[:, chosen_D]
    # Precision peaks where a lesion is found, so that only these places Q count, with all that
    # comes before them.
    place_Q = np.flatnonzero(hit_TD.any(0))
    before_D = np.searchsorted(place_Q, np.arange(len(chosen_D)))
    inside_D = before_D < len(place_Q)
    ones = (np.ones(inside_D.sum()), (before_D[inside_D], column_D[inside_D]))
    found_QB = np.cumsum(
        sparse.csr_array(ones, shape=(len(place_Q), weights_BM.shape[1])) @ weights_BM.T, axis=0
    )
    mean_TB = np.zeros((len(hit_TD), len(weights_BN)))
    for threshold, hit_D in enumerate(hit_TD):
        true_PB = np.cumsum(weights_BM.T[column_D[hit_D]], axis=0)
        precision_PB = true_PB / (found_QB[hit_D[place_Q]] + np.spacing(1))
        best_PB = np.maximum.accumulate(precision_PB[::-1], axis=0)[::-1]
        reached_PB = _reached(true_PB / np.maximum(lesions_B, 1))
        mean_TB[threshold] = (best_PB * np.diff(reached_PB, axis=0, prepend=0)).sum(0) / len(
            RECALL_R
        )
    return mean_TB


def _reached(recall_PB: Array) -> Array:
    """np.searchsorted(RECALL_R, recall_PB, side="right"), several times faster."""
    step_PB = (recall_PB * 100).astype(np.int64)
    return (
        step_PB
        + (RECALL_R[step_PB] <= recall_PB)
        + (np.append(RECALL_R, np.inf)[step_PB + 1] <= recall_PB)
    )


def _with_copies(
    image_D: Array, score_D: Array, hit_TD: Array, weights_BN: Array
) -> tuple[Array, Array, Array]:
    """Detections in the order of their copies, the column of weights of each, and the weights.

    A weight stands for copies in a row, which is wrong only where an image has a hit and a miss of
    one score: its copies take turns there. Such detections are repeated, the copy c with weight 1
    where the image is drawn c times.
    """
    group_D = np.cumsum(np.append(0, (np.diff(image_D) != 0) | (np.diff(score_D) != 0)))[
        : len(image_D)
    ]
    starts = np.unique(group_D, return_index=True)[1]
    hits_TG = np.add.reduceat(hit_TD.astype(int), starts, axis=1)
    mixed_G = np.any((hits_TG > 0) & (hits_TG < np.diff(starts, append=len(image_D))), axis=0)
    most = int(weights_BN.max())
    repeats_D = np.where(mixed_G[group_D], most, 1)
    chosen_D = np.repeat(np.arange(len(image_D)), repeats_D)
    copy_D = np.arange(len(chosen_D)) - np.repeat(np.cumsum(repeats_D) - repeats_D, repeats_D)
    order_D = np.lexsort((chosen_D, copy_D, group_D[chosen_D]))
    chosen_D, copy_D = chosen_D[order_D], copy_D[order_D]
    column_D = (
        image_D[chosen_D]
        + np.where(mixed_G[group_D[chosen_D]], copy_D + 1, 0) * weights_BN.shape[1]
    )
    copies = [weights_BN >= c for c in range(1, most + 1)] if mixed_G.any() else []
    return chosen_D, column_D, np.concatenate([weights_BN, *copies], axis=1).astype(float)


def _evaluated(
    truth: Truth,
    predictions: Sequence[Prediction],
    categories: int,
    areas: list[tuple[float, float]],
    crowds: Truth,
) -> COCOeval_faster:
    """Detections matched to lesions, image by image and for each range of areas."""
    reference, found = COCO(), COCO()
    regions = [
        (image, *part, np.ones(len(part[1])), np.full(len(part[1]), crowd))
        for crowd, parts in enumerate((truth, crowds))
        for image, part in enumerate(parts, 1)
    ]
    scored = [(image, p.boxes_N4, p.labels_N, p.scores_N) for image, p in enumerate(predictions, 1)]
    for coco, parts in ((reference, regions), (found, scored)):
        items = [
            (image, *item)
            for image, *part in parts
            for item in zip(*(v.astype(float).tolist() for v in part))
        ]
        coco.dataset = {
            "images": [{"id": i} for i in range(1, len(truth) + 1)],
            "categories": [{"id": i, "name": str(i)} for i in range(1, categories + 1)],
            "annotations": [_annotation(number, *item) for number, item in enumerate(items, 1)],
        }
        coco.createIndex()
    evaluation = COCOeval_faster(
        reference, found, "bbox", print_function=_silent, separate_eval=True
    )
    evaluation.params.areaRng, evaluation.params.maxDets = [list(a) for a in areas], [MOST]
    evaluation.evaluate()
    return evaluation


def _annotation(
    number: int, image: int, box_4: Sequence[float], label: float, score: float, crowd: float = 0
) -> dict[str, Any]:
    x1, y1, x2, y2 = box_4
    return {
        "id": number,
        "image_id": image,
        "category_id": int(label) + 1,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": (x2 - x1) * (y2 - y1),
        "iscrowd": int(crowd),
        "score": score,
    }


def _matches(evaluation: COCOeval_faster, label: int) -> _Matches:
    """The matches of one category with lesions of all sizes.

    The library keeps them by category, area and image in objects that can be read through
    ``__getstate__`` alone: numbers of the matched lesions (T x D, 0 for none), in third place the
    scores (D), and in fifth which detections do not count (T x D). The tests hold this against
    pycocotools.
    """
    images, areas = len(evaluation.params.imgIds), len(evaluation.params.areaRng)
    states = [e.__getstate__() for e in evaluation._evalImgs_cpp[label * areas * images :][:images]]
    found_TD, ignored_TD = (
        np.concatenate([np.reshape(s[k], (len(IOUS_T), -1)) > 0 for s in states], axis=1)
        for k in (0, 4)
    )
    return _Matches(
        np.concatenate([np.full(len(s[2]), place) for place, s in enumerate(states)]),
        np.concatenate([np.array(s[2], float) for s in states]),
        found_TD & ~ignored_TD,
        ignored_TD,
    )


def _hits(evaluation: COCOeval_faster, kinds: Collection[int]) -> tuple[Array, Array]:
    """Scores and hits of the detections of these categories."""
    matches = [_matches(evaluation, label).at(int(np.argmax(IOUS_T == FOUND))) for label in kinds]
    return (
        np.concatenate([np.zeros(0), *(m.score_D for m in matches)]),
        np.concatenate([np.zeros(0, bool), *(m.hit_TD[0] for m in matches)]),
    )


def _silent(*_: Any) -> None:
    """The library tells its progress."""
