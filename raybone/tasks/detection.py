"""Boxes: findings with scores, COCO's metrics, and the boxes of several models as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from raybone.data.annotations import foci
from raybone.data.dataset import Dataset
from raybone.metrics.boxes import box_metrics, lesion_hits, weighted_ap
from raybone.tasks.base import Outcome, Task, patients_of, sick
from raybone.types import Array, Finding, Prediction, Scan

if TYPE_CHECKING:
    from raybone.models._model import TrainingConfig

# IoU from which boxes of different models are one (Solovyev et al. 2021, arXiv:1910.13302).
MERGE = 0.55


class Detection(Task):
    """Boxes of lesions."""

    name = "detection"
    ranked = ("AP", "AP50", "AP75", "val_loss")
    alone = "AP50"
    free_response = True
    counted = "boxes"

    def warnings(self, dataset: Dataset, config: TrainingConfig, sizes: Sequence[int]) -> list[str]:
        """A line for each size at which lesions outside the test group are lost: detectors are not
        trained on boxes under ``LEAST_SIDE`` pixels a side, but scored by them.
        """
        small = self._small(dataset, config, sizes)
        return [f"imgsz {n}: {what}; they are not trained on, but scored" for n, what in small]

    def crop(self, prediction: Prediction, part: int, width: int, views: int) -> Prediction:
        """The boxes whose centre is in the part, cut at its sides."""
        boxes_N4 = prediction.boxes_N4
        inside_N = (boxes_N4[:, [0, 2]].mean(1) // width).clip(0, views - 1) == part
        left = part * width
        boxes_N4 = boxes_N4[inside_N] - np.array([left, 0, left, 0], np.float32)
        boxes_N4[:, [0, 2]] = boxes_N4[:, [0, 2]].clip(0, width)
        return Prediction(boxes_N4, prediction.scores_N[inside_N], prediction.labels_N[inside_N])

    def in_scan(self, scan: Scan, prediction: Prediction, size: int) -> Prediction:
        """Boxes in pixels of the scan, inside it; those beside it are left out."""
        scale = np.float32(size / max(scan.height, scan.width))
        limit_4 = np.array([scan.width, scan.height, scan.width, scan.height], np.float32)
        boxes_N4 = np.minimum(prediction.boxes_N4 / scale, limit_4)
        inside_N = (boxes_N4[:, 0] < boxes_N4[:, 2]) & (boxes_N4[:, 1] < boxes_N4[:, 3])
        values = (boxes_N4, prediction.scores_N, prediction.labels_N)
        return Prediction(*(v[inside_N] for v in values))

    def agreed(self, members: Sequence[Prediction]) -> tuple[Prediction, Array]:
        """Boxes of one category that overlap by MERGE are one, at most one a member: its sides are
        their mean weighted by score, and its score the mean over all members, where a member
        without it counts 0 (weighted boxes fusion).
        """
        boxes_D4 = np.concatenate([m.boxes_N4 for m in members]).astype(np.float64)
        score_D = np.concatenate([m.scores_N for m in members])
        label_D = np.concatenate([m.labels_N for m in members])
        member_D = np.repeat(np.arange(len(members)), [len(m.scores_N) for m in members])
        # Of each fused box: its sides, its category, and the score that each member gave it.
        count, total = 0, len(score_D)
        box_N4, label_N = np.zeros((total, 4)), np.zeros(total, np.int64)
        score_NM = np.zeros((total, len(members)))
        for row in np.argsort(-score_D, kind="stable"):
            score, member = score_D[row], member_D[row]
            fits_N = (label_N[:count] == label_D[row]) & (score_NM[:count, member] == 0)
            overlap_N = np.where(fits_N, _iou(box_N4[:count], boxes_D4[row]), 0.0)
            if count and overlap_N.max() >= MERGE:
                n = int(overlap_N.argmax())
                weight = score_NM[n].sum()
                box_N4[n] = (box_N4[n] * weight + boxes_D4[row] * score) / (weight + score)
            else:
                n, count = count, count + 1
                box_N4[n], label_N[n] = boxes_D4[row], label_D[row]
            score_NM[n, member] = score
        mean_N, spread_N = score_NM[:count].mean(1), score_NM[:count].std(1)
        order_N = np.argsort(-mean_N, kind="stable")
        fused = Prediction(
            box_N4[order_N].astype(np.float32), mean_N[order_N].astype(np.float32), label_N[order_N]
        )
        return fused, spread_N[order_N]

    def shown(self, prediction: Prediction, sd: Array, least: float) -> tuple[Prediction, Array]:
        """The boxes of a score of ``least`` or more."""
        keep_N = prediction.scores_N >= least
        values = (prediction.boxes_N4, prediction.scores_N, prediction.labels_N)
        return Prediction(*(v[keep_N] for v in values)), sd[keep_N]

    def finding(self, prediction: Prediction) -> Finding:
        """Boxes to a hundredth of a pixel, scores and labels."""
        return {
            "boxes": [[round(float(v), 2) for v in b] for b in prediction.boxes_N4],
            "scores": [round(float(s), 5) for s in prediction.scores_N],
            "labels": prediction.labels_N.tolist(),
        }

    def score(self, outcome: Outcome) -> dict[str, float]:
        """``box_metrics`` and metrics of patients."""
        crowds = _truth(outcome, crowd=True)
        metrics = box_metrics(*_boxes(outcome), crowds, outcome.labels, outcome.threshold)
        return metrics | patients_of(outcome, self.alarms(outcome))

    def resampled(self, outcome: Outcome, weights_BN: Array) -> dict[str, Array]:
        """Average precisions."""
        weights_BN = weights_BN[:, [s.annotated for s in outcome.scans]]
        return weighted_ap(*_boxes(outcome), weights_BN, _truth(outcome, crowd=True))

    def scored(self, outcome: Outcome) -> tuple[Array, Array, int]:
        """Scores of boxes, whether each has found a lesion, and the number of lesions."""
        crowds, names = _truth(outcome, crowd=True), outcome.categories
        score_D, hit_D = lesion_hits(*_boxes(outcome), crowds, outcome.labels)
        return score_D, hit_D, sum(le.category in names for _, s in outcome.pairs for le in foci(s))

    def patient_scores(self, outcome: Outcome) -> tuple[Array, Array]:
        """Of boxes of lesions, 0 without any; patients with crowds alone are left out."""
        score_of, sick_of = dict[str, float](), dict[str, bool]()
        for finding, scan in outcome.pairs:
            state = sick(scan, outcome.categories)
            if state is None:
                continue
            boxes = zip(finding["scores"], finding["labels"])
            best = max((s for s, label in boxes if label in outcome.labels), default=0.0)
            patient = scan.patient_id
            score_of[patient] = max(best, score_of.get(patient, 0.0))
            sick_of[patient] = state or sick_of.get(patient, False)
        return np.array([*score_of.values()]), np.array([*sick_of.values()], bool)

    def alarms(self, outcome: Outcome) -> list[float]:
        """Boxes of lesions from the threshold on, those in crowds aside."""
        counts, labels = list[float](), outcome.labels
        for finding, scan in outcome.pairs:
            if any(le.crowd for le in scan.lesions):
                score_D, _, _ = self.scored(replace(outcome, scans=[scan]))
            else:
                boxes = zip(finding["scores"], finding["labels"])
                score_D = np.array([s for s, label in boxes if label in labels])
            counts.append(int((score_D >= outcome.threshold).sum()))
        return counts


def _iou(boxes_N4: Array, box_4: Array) -> Array:
    low_N2, high_N2 = np.maximum(boxes_N4[:, :2], box_4[:2]), np.minimum(boxes_N4[:, 2:], box_4[2:])
    common_N = np.prod(np.clip(high_N2 - low_N2, 0, None), axis=1)
    area_N = np.prod(boxes_N4[:, 2:] - boxes_N4[:, :2], axis=1) + np.prod(box_4[2:] - box_4[:2])
    return np.asarray(common_N / np.maximum(area_N - common_N, 1e-9))


def _boxes(outcome: Outcome) -> tuple[list[tuple[Array, Array]], list[Prediction], int]:
    """Truth, predictions and the number of categories, as metrics of boxes take them."""
    predictions = [
        Prediction(
            np.array(f["boxes"], np.float32).reshape(-1, 4),
            np.array(f["scores"], np.float32),
            np.array(f["labels"], np.int64),
        )
        for f, _ in outcome.pairs
    ]
    return _truth(outcome, crowd=False), predictions, len(outcome.categories)


def _truth(outcome: Outcome, crowd: bool) -> list[tuple[Array, Array]]:
    """Boxes and labels of each scan's lesions, or of its crowds."""
    truth, names = [], outcome.categories
    for _, scan in outcome.pairs:
        known = [le for le in scan.lesions if le.category in names and le.crowd == crowd]
        boxes_N4 = np.array([le.box_xyxy for le in known], np.float32).reshape(-1, 4)
        truth.append((boxes_N4, np.array([names.index(le.category) for le in known], np.int64)))
    return truth


TASK = Detection()
