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

from raybone.records import Array, Prediction


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
    rows_M7 = np.concatenate([_rows(i, p) for i, p in enumerate(predictions, 1)])
    if not len(rows_M7):
        return {"AP": 0.0, "AP50": 0.0}
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its tables
        reference = _coco(truth, categories)
        evaluation = COCOeval(reference, reference.loadRes(rows_M7), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {"AP": float(evaluation.stats[0]), "AP50": float(evaluation.stats[1])}


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
