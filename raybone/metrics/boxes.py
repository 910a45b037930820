"""Detection metrics by pycocotools, the reference evaluator."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy import sparse

from raybone.records import Array, Prediction

MOST = 100  # detections an image that count
AT_ONCE = 128  # samples whose arrays are in memory together
RECALL_R = np.linspace(0, 1, 101)  # pycocotools' recall thresholds


def coco_ap(truth: Sequence[tuple[Array, Array]], predictions: Sequence[Prediction],
            categories: int) -> dict[str, float]:
    """COCO AP (IoU .50:.95) and AP50 over images, mean over categories, at most 100 detections an image.

    Args:
        truth: for each image boxes_N4 (xyxy pixels) and labels_N (0-based).
        predictions: one for each image, in the same order.
    Returns:
        {"AP", "AP50"} in [0, 1]; NaN when no image holds a lesion, as AP is then undefined.
    Source: Lin et al. 2014 (arXiv:1405.0312), pycocotools.
    """
    if not any(len(boxes) for boxes, _ in truth):
        return {"AP": math.nan, "AP50": math.nan}
    evaluation = _matched(truth, predictions, categories)
    if evaluation is None:
        return {"AP": 0.0, "AP50": 0.0}
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
    precision_TRC = evaluation.eval["precision"][:, :, :, 0, 0]
    known_C = precision_TRC[0, 0] > -1
    return {"AP": float(precision_TRC[:, :, known_C].mean()), "AP50": float(precision_TRC[0][:, known_C].mean())}


def weighted_ap(truth: Sequence[tuple[Array, Array]], predictions: Sequence[Prediction], categories: int,
                weights_BN: Array) -> dict[str, Array]:
    """``coco_ap`` of B weighted samples of the images at once: each image is matched once, however often it is drawn.

    Args:
        truth, predictions: as in ``coco_ap``.
        weights_BN: how many copies of image n sample b holds, integers from 0.
    Returns:
        {"AP", "AP50"}, each of shape (B,): what ``coco_ap`` gives when the copies of an image follow each other.
    """
    counts_NC = np.array([np.bincount(labels_N, minlength=categories) for _, labels_N in truth])
    lesions_BC = weights_BN @ counts_NC
    evaluation = _matched(truth, predictions, categories)
    matched = evaluation.evalImgs if evaluation else []  # by category, then by image
    ap_CTB = np.zeros((categories, 10, len(weights_BN)))
    for label in range(categories):
        images = [e for e in matched[label * len(truth) : (label + 1) * len(truth)] if e]
        for part in np.array_split(np.arange(len(weights_BN)), -(-len(weights_BN) // AT_ONCE)):
            if any(e["dtIds"] for e in images):
                ap_CTB[label][:, part] = _weighted_precision(images, weights_BN[part], lesions_BC[part, label])
    # pycocotools leaves out categories that no image holds.
    known_B = (lesions_BC > 0).sum(1)
    share_CB = np.divide((lesions_BC > 0).T, known_B, out=np.full((categories, len(weights_BN)), math.nan),
                         where=known_B > 0)
    return {"AP": (ap_CTB.mean(1) * share_CB).sum(0), "AP50": (ap_CTB[:, 0] * share_CB).sum(0)}


def _weighted_precision(images: list[dict[str, Any]], weights_BN: Array, lesions_B: Array) -> Array:
    """Mean precision over the recall thresholds, shape (T, B), of one category's matched images."""
    image_D = np.concatenate([np.full(len(e["dtScores"]), e["image_id"] - 1) for e in images])
    order_D = np.argsort(-np.concatenate([e["dtScores"] for e in images]), kind="stable")
    score_D = np.concatenate([e["dtScores"] for e in images])[order_D]
    hit_TD = np.concatenate([e["dtMatches"] for e in images], axis=1)[:, order_D] > 0
    chosen_D, column_D, weights_BM = _with_copies(image_D[order_D], score_D, hit_TD, weights_BN)
    hit_TD = hit_TD[:, chosen_D]
    # Precision peaks where a lesion is found, so that only these places Q count, with all that comes before them.
    place_Q = np.flatnonzero(hit_TD.any(0))
    before_D = np.searchsorted(place_Q, np.arange(len(chosen_D)))
    inside_D = before_D < len(place_Q)
    ones = (np.ones(inside_D.sum()), (before_D[inside_D], column_D[inside_D]))
    found_QB = np.cumsum(sparse.csr_array(ones, shape=(len(place_Q), weights_BM.shape[1])) @ weights_BM.T, axis=0)
    mean_TB = np.zeros((len(hit_TD), len(weights_BN)))
    for threshold, hit_D in enumerate(hit_TD):
        true_PB = np.cumsum(weights_BM.T[column_D[hit_D]], axis=0)
        precision_PB = true_PB / (found_QB[hit_D[place_Q]] + np.spacing(1))
        best_PB = np.maximum.accumulate(precision_PB[::-1], axis=0)[::-1]
        reached_PB = _reached(true_PB / np.maximum(lesions_B, 1))
        mean_TB[threshold] = (best_PB * np.diff(reached_PB, axis=0, prepend=0)).sum(0) / len(RECALL_R)
    return mean_TB


def _reached(recall_PB: Array) -> Array:
    """np.searchsorted(RECALL_R, recall_PB, side="right"), several times faster."""
    step_PB = (recall_PB * 100).astype(np.int64)
    return step_PB + (RECALL_R[step_PB] <= recall_PB) + (np.append(RECALL_R, np.inf)[step_PB + 1] <= recall_PB)


def _with_copies(image_D: Array, score_D: Array, hit_TD: Array, weights_BN: Array) -> tuple[Array, Array, Array]:
    """Detections in the order of their copies, the column of weights of each, and the weights.

    A weight stands for copies in a row, which is wrong only where an image has a hit and a miss of one score: its
    copies take turns there. Such detections are repeated, the copy c with weight 1 where the image is drawn c times.
    """
    group_D = np.cumsum(np.append(0, (np.diff(image_D) != 0) | (np.diff(score_D) != 0)))[: len(image_D)]
    starts = np.unique(group_D, return_index=True)[1]
    hits_TG = np.add.reduceat(hit_TD.astype(int), starts, axis=1)
    mixed_G = np.any((hits_TG > 0) & (hits_TG < np.diff(starts, append=len(image_D))), axis=0)
    most = int(weights_BN.max())
    repeats_D = np.where(mixed_G[group_D], most, 1)
    chosen_D = np.repeat(np.arange(len(image_D)), repeats_D)
    copy_D = np.arange(len(chosen_D)) - np.repeat(np.cumsum(repeats_D) - repeats_D, repeats_D)
    order_D = np.lexsort((chosen_D, copy_D, group_D[chosen_D]))
    chosen_D, copy_D = chosen_D[order_D], copy_D[order_D]
    column_D = image_D[chosen_D] + np.where(mixed_G[group_D[chosen_D]], copy_D + 1, 0) * weights_BN.shape[1]
    copies = [weights_BN >= c for c in range(1, most + 1)] if mixed_G.any() else []
    return chosen_D, column_D, np.concatenate([weights_BN, *copies], axis=1).astype(float)


def _matched(truth: Sequence[tuple[Array, Array]], predictions: Sequence[Prediction],
             categories: int) -> COCOeval | None:
    """Detections matched to lesions of all sizes by pycocotools, or None without a detection."""
    rows_M7 = np.concatenate([_rows(i, p) for i, p in enumerate(predictions, 1)])
    if not len(rows_M7):
        return None
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its tables
        reference = _coco(truth, categories)
        evaluation = COCOeval(reference, reference.loadRes(rows_M7), "bbox")
        evaluation.params.areaRng, evaluation.params.maxDets = evaluation.params.areaRng[:1], [MOST]
        evaluation.evaluate()
    return evaluation


def _coco(truth: Sequence[tuple[Array, Array]], categories: int) -> COCO:
    annotations: list[dict[str, Any]] = []
    for image_id, (boxes_N4, labels_N) in enumerate(truth, 1):
        for (x1, y1, x2, y2), label in zip(boxes_N4.astype(float).tolist(), labels_N.tolist()):
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, "category_id": label + 1,
                                "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0})
    coco = COCO()
    coco.dataset = {"info": {}, "images": [{"id": i} for i in range(1, len(truth) + 1)], "annotations": annotations,
                    "categories": [{"id": i, "name": str(i)} for i in range(1, categories + 1)]}
    coco.createIndex()
    return coco


def _rows(image_id: int, prediction: Prediction) -> Array:
    """(N, 7) array of image id, x, y, w, h, score, category id, as loadRes takes it."""
    boxes_N4 = prediction.boxes_N4.astype(np.float64)
    return np.column_stack([np.full(len(boxes_N4), image_id), boxes_N4[:, :2], boxes_N4[:, 2:] - boxes_N4[:, :2],
                            prediction.scores_N, prediction.labels_N + 1])
