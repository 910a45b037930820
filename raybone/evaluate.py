"""From a network and scans to findings in scan pixels, and from findings to metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import cv2
import numpy as np
import torch
from torch import distributed as dist
from torch import nn
from torch.utils.data import DataLoader

from raybone.data.annotations import mask_of, rle_of
from raybone.data.loader import Batch, ScanSamples, class_map
from raybone.data.parts import TargetSamples
from raybone.data.preprocess import resize
from raybone.metrics.boxes import box_metrics, lesion_hits, weighted_ap
from raybone.metrics.lesions import THRESHOLD, classification_metrics, patient_metrics, weighted_classification
from raybone.metrics.masks import MaskScore, mask_metrics, mask_score, pixel_counts, weighted_overlap
from raybone.models._model import Model
from raybone.records import Array, Prediction, Scan, Task

Finding = dict[str, Any]


def evaluate(module: nn.Module, samples: ScanSamples, loader: DataLoader[Any], model: Model,
             device: torch.device) -> tuple[dict[str, float], list[Finding]]:
    """Metrics and findings of this module on the samples' scans, over all ranks.

    Every rank evaluates its own share and all ranks get the same metrics; findings are complete on rank 0.
    Returns:
        Metrics with ``val_loss`` (the training loss, mean over images, batch norm in eval mode; detectors divide by
        the positives of a batch, so that it depends on which scans share one), and findings in the order of the
        scans, ready for JSON.
    """
    findings: list[Finding] = []
    loss = torch.zeros(2, dtype=torch.float64)
    for batch in loader:
        batch = cast(Batch, batch).to(device)
        with torch.no_grad():
            images = len(batch.index_N)
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                torch.manual_seed(0)  # R-CNNs draw the boxes that their loss is of
                total = _loss(module, batch) * (images if model.reduction == "mean" else 1)
            loss += torch.tensor([total, images], dtype=torch.float64)
            module.eval()
            predictions = cast(list[Prediction], module(batch.image_NCHW))
        for index, prediction in zip(batch.index_N.tolist(), predictions):
            findings += _findings(samples, index, prediction)
    if not dist.is_initialized():
        return _metrics(findings, samples, model.task, loss), findings
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, (findings, loss))
    everything = [f for part, _ in gathered for f in part]
    first = dist.get_rank() == 0
    metrics = [_metrics(everything, samples, model.task, sum(part for _, part in gathered)) if first else {}]
    dist.broadcast_object_list(metrics, 0)
    return metrics[0], everything


def score(findings: Sequence[Finding], scans: Sequence[Scan], categories: list[str], task: Task) -> dict[str, float]:
    """Metrics of findings (as in predictions.json) against the scans' lesions, in any order.

    There is one finding a scan, or one for each that was classified.
    """
    if task == "classification":
        return classification_metrics(*_judged(findings))
    ordered = _ordered(findings, scans)
    patients = _patients(ordered, scans, categories, task)
    if task == "segmentation":
        return mask_metrics([m for f, s in zip(ordered, scans) for m in _masks(f, s, categories)]) | patients
    return box_metrics([_truth(s, categories) for s in scans], [_boxes(f) for f in ordered], len(categories)) | patients


def resampled_score(findings: Sequence[Finding], scans: Sequence[Scan], categories: list[str], task: Task,
                    weights_BN: Array) -> dict[str, Array]:
    """``score`` of B samples of the scans at once, each of shape (B,): the metrics that a study may be ranked by.

    Args:
        weights_BN: how many copies of scan n sample b holds.
    """
    if task == "classification":
        place_of = {s.scan_id: n for n, s in enumerate(scans)}
        own = [f for f in findings if f["scan_id"] in place_of]
        return weighted_classification(*_judged(own), weights_BN[:, [place_of[f["scan_id"]] for f in own]])
    ordered = _ordered(findings, scans)
    if task == "segmentation":
        return weighted_overlap(np.array([_pixels(f, s, categories) for f, s in zip(ordered, scans)]), weights_BN)
    return weighted_ap([_truth(s, categories) for s in scans], [_boxes(f) for f in ordered], len(categories),
                       weights_BN)


def scored(findings: Sequence[Finding], scans: Sequence[Scan], categories: list[str],
           task: Task) -> tuple[Array, Array, int]:
    """Scores of what was detected or classified, whether each is right, and how many there were to find.

    For detectors and classifiers; the masks of a segmenter have no scores.
    """
    if task == "classification":
        score_N, truth_N = _judged(findings)
        return score_N, truth_N, int(truth_N.sum())
    truth = [_truth(s, categories) for s in scans]
    score_D, hit_D = lesion_hits(truth, [_boxes(f) for f in _ordered(findings, scans)], len(categories))
    return score_D, hit_D, sum(len(labels_N) for _, labels_N in truth)


def false_positives(findings: Sequence[Finding], scans: Sequence[Scan], categories: list[str], task: Task) -> float:
    """Mean number of findings on a scan without lesions of the categories; NaN when every scan has one, and
    for classifiers.

    A finding is a box with a score of at least ``THRESHOLD``, or an 8-connected component of a mask that was cut
    there.
    """
    if task == "classification":
        return math.nan
    found = [_count(f, task) for f, s in zip(_ordered(findings, scans), scans) if not _sick(s, categories)]
    return float(np.mean(found)) if found else math.nan


def in_scan(scan: Scan, prediction: Prediction, size: int) -> Prediction:
    """A prediction on the network's canvas, of a long side of ``size``, in pixels of the scan."""
    if prediction.mask_CHW is not None:
        return Prediction(mask_CHW=np.stack([_to_scan(p_HW, scan, size) for p_HW in prediction.mask_CHW]))
    scale = np.float32(size / max(scan.height, scan.width))
    limit_4 = np.array([scan.width, scan.height, scan.width, scan.height], np.float32)
    return Prediction(np.minimum(prediction.boxes_N4 / scale, limit_4), prediction.scores_N, prediction.labels_N)


def to_finding(scan: Scan, prediction: Prediction) -> Finding:
    """A prediction in pixels of the scan as a JSON value."""
    if prediction.mask_CHW is not None:
        return {"scan_id": scan.scan_id, "masks": [rle_of(m) for m in prediction.mask_CHW >= THRESHOLD]}
    return {"scan_id": scan.scan_id, "boxes": [[round(float(v), 2) for v in b] for b in prediction.boxes_N4],
            "scores": [round(float(s), 5) for s in prediction.scores_N], "labels": prediction.labels_N.tolist()}


def _findings(samples: ScanSamples, index: int, prediction: Prediction) -> list[Finding]:
    """What a prediction on a sample says of its scans, with the order that findings are brought into."""
    if isinstance(samples, TargetSamples):
        place, lesion, positive = samples.items[index]
        return [{"index": index, "scan_id": samples.scans[place].scan_id, "lesion": lesion, "positive": positive,
                 "score": round(float(prediction.scores_N[0]), 7)}]  # ties would cost AUC
    return [{"index": place, **to_finding(samples.scans[place], in_scan(samples.scans[place], part, samples.size))}
            for place, part in samples.parts(index, prediction)]


def _judged(findings: Sequence[Finding]) -> tuple[Array, Array]:
    """Scores and truth of what was classified."""
    return np.array([f["score"] for f in findings], float), np.array([f["positive"] for f in findings], bool)


def _loss(module: nn.Module, batch: Batch) -> float:
    """The training loss without training: statistics of batch norm stay as they are."""
    module.train()
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm | nn.modules.dropout._DropoutNd | nn.MultiheadAttention):
            part.eval()
    return float(sum(module(batch).values()))


def _ordered(findings: Sequence[Finding], scans: Sequence[Scan]) -> list[Finding]:
    by_id = {f["scan_id"]: f for f in findings}
    return [by_id[s.scan_id] for s in scans]


def _metrics(findings: list[Finding], samples: ScanSamples, task: Task, loss: Any) -> dict[str, float]:
    findings.sort(key=lambda f: f["index"])
    total, count = (float(v) for v in loss)
    return {**score(findings, samples.scans, samples.categories, task), "val_loss": total / max(count, 1.0)}


def _patients(findings: Sequence[Finding], scans: Sequence[Scan], categories: list[str],
              task: Task) -> dict[str, float]:
    called, sick = ({s.patient_id: False for s in scans} for _ in range(2))
    for finding, scan in zip(findings, scans):
        called[scan.patient_id] |= _count(finding, task) > 0
        sick[scan.patient_id] |= _sick(scan, categories)
    return patient_metrics(np.array(list(called.values())), np.array(list(sick.values())))


def _sick(scan: Scan, categories: list[str]) -> bool:
    return any(le.category in categories for le in scan.lesions)


def _count(finding: Finding, task: Task) -> int:
    if task == "segmentation":
        return sum(cv2.connectedComponents(mask_of(rle).astype(np.uint8), connectivity=8)[0] - 1
                   for rle in finding["masks"])
    return sum(score >= THRESHOLD for score in finding["scores"])


def _to_scan(probability_HW: Array, scan: Scan, size: int) -> Array:
    """Probabilities on the padded canvas back to the scan's own size."""
    shape = resize(np.zeros((scan.height, scan.width), np.float32), size)[0].shape
    inside_HW = probability_HW[: shape[0], : shape[1]]
    return np.asarray(cv2.resize(inside_HW, (scan.width, scan.height), interpolation=cv2.INTER_LINEAR))


def _masks(finding: Finding, scan: Scan, categories: list[str]) -> list[MaskScore]:
    truth_HW, scores = class_map(scan, categories), []
    for label, (category, rle) in enumerate(zip(categories, finding["masks"]), 1):
        lesions = [mask_of(le.rle) for le in scan.lesions if le.category == category and le.rle]
        scores.append(mask_score(truth_HW == label, lesions, mask_of(rle), scan.pixel_mm))
    return scores


def _pixels(finding: Finding, scan: Scan, categories: list[str]) -> Array:
    truth_HW = class_map(scan, categories)
    return np.sum([pixel_counts(truth_HW == label, mask_of(rle)) for label, rle in enumerate(finding["masks"], 1)],
                  axis=0)


def _truth(scan: Scan, categories: list[str]) -> tuple[Array, Array]:
    known = [le for le in scan.lesions if le.category in categories]
    return (np.array([le.box_xyxy for le in known], np.float32).reshape(-1, 4),
            np.array([categories.index(le.category) for le in known], np.int64))


def _boxes(finding: Finding) -> Prediction:
    return Prediction(np.array(finding["boxes"], np.float32).reshape(-1, 4), np.array(finding["scores"], np.float32),
                      np.array(finding["labels"], np.int64))


