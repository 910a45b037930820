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

from raybone.data.annotations import NOT_LESIONS, foci, is_focus, lesion_mask, mask_of, rle_of
from raybone.data.loader import CROWD, Batch, Loader, ScanSamples, masks_of
from raybone.data.preprocess import resize
from raybone.data.tiles_and_targets import TargetSamples
from raybone.metrics.boxes import box_metrics, lesion_hits, weighted_ap
from raybone.metrics.lesions import (
    THRESHOLD,
    classification_metrics,
    patient_metrics,
    weighted_classification,
)
from raybone.metrics.masks import (
    MaskScore,
    mask_metrics,
    mask_score,
    over_categories,
    pixel_counts,
    weighted_means,
)
from raybone.models._model import Model
from raybone.train.findings import Finding
from raybone.types import Array, Prediction, Scan, Task

Pair = tuple[Finding, Scan]


def evaluate(
    module: nn.Module, samples: ScanSamples, loader: Loader, model: Model, device: torch.device
) -> tuple[dict[str, float], list[Finding]]:
    """Metrics and findings of this module on the samples' scans, over all ranks.

    Every rank evaluates its own share and all ranks get the same metrics; findings are complete on
    rank 0.
    Returns:
        Metrics with ``val_loss`` (the training loss, mean over images, batch norm in eval mode;
        detectors divide by the positives of a batch, so that it depends on which scans share one),
        and findings in the order of the scans, ready for JSON.
    """
    findings: list[Finding] = []
    loss = torch.zeros(2, dtype=torch.float64)
    for batch in loader:
        batch = batch.to(device)
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
    metrics = [
        _metrics(everything, samples, model.task, sum(part for _, part in gathered))
        if first
        else {}
    ]
    dist.broadcast_object_list(metrics, 0)
    return metrics[0], everything


def score(
    findings: Sequence[Finding], scans: Sequence[Scan], categories: list[str], task: Task
) -> dict[str, float]:
    """Metrics of findings (as in predictions.json) against the scans' lesions, in any order.

    There is one finding a scan, or one for each that was classified. Scans that nobody annotated,
    for which there need be none, do not count unless they are classified; nor does what is found in
    crowds. Categories that are no lesions, such as bone, are scored as others are, but in no metric
    of lesions or patients.
    """
    if task == "classification":
        return classification_metrics(*_judged(findings))
    pairs = _pairs(findings, scans)
    if task == "segmentation":
        scores = [_masks(f, s, categories) for f, s in pairs]
        found = over_categories({c: mask_metrics(own) for c, own in zip(categories, zip(*scores))})
        return found | _patients(pairs, [_parts(own, categories) for own in scores], categories)
    found = box_metrics(*_boxes(pairs, categories), _crowds(pairs, categories), _kinds(categories))
    return found | _patients(pairs, [_alarms(f, s, categories) for f, s in pairs], categories)


def resampled_score(
    findings: Sequence[Finding],
    scans: Sequence[Scan],
    categories: list[str],
    task: Task,
    weights_BN: Array,
) -> dict[str, Array]:
    """``score`` of B samples of the scans at once, each of shape (B,): the metrics that a study may
    be ranked by.

    Args:
        weights_BN: how many copies of scan n sample b holds.
    """
    if task == "classification":
        place_of = {s.scan_id: n for n, s in enumerate(scans)}
        own = [f for f in findings if f["scan_id"] in place_of]
        return weighted_classification(
            *_judged(own), weights_BN[:, [place_of[f["scan_id"]] for f in own]]
        )
    pairs, weights_BN = _pairs(findings, scans), weights_BN[:, [s.annotated for s in scans]]
    if task == "segmentation":
        return weighted_means(np.array([_pixels(f, s, categories) for f, s in pairs]), weights_BN)
    return weighted_ap(*_boxes(pairs, categories), weights_BN, _crowds(pairs, categories))


def scored(
    findings: Sequence[Finding], scans: Sequence[Scan], categories: list[str], task: Task
) -> tuple[Array, Array, int]:
    """Scores of what was detected or classified, whether each is right, and how many there were to
    find.

    For detectors and classifiers; the masks of a segmenter have no scores.
    """
    if task == "classification":
        score_N, truth_N = _judged(findings)
        return score_N, truth_N, int(truth_N.sum())
    pairs = _pairs(findings, scans)
    hits = lesion_hits(*_boxes(pairs, categories), _crowds(pairs, categories), _kinds(categories))
    return *hits, sum(le.category in categories for _, s in pairs for le in foci(s))


def false_positives(
    findings: Sequence[Finding], scans: Sequence[Scan], categories: list[str], task: Task
) -> float:
    """Mean number of findings on a scan without lesions of the categories; NaN when every scan has
    one, none of the categories is a lesion, and for classifiers.

    A finding is a box with a score of at least ``THRESHOLD``, or an 8-connected component of a mask
    that was cut there.
    """
    if task == "classification" or not _kinds(categories):
        return math.nan
    clean = [(f, s) for f, s in _pairs(findings, scans) if _sick(s, categories) is False]
    found = [
        _parts(_masks(f, s, categories), categories)
        if task == "segmentation"
        else _alarms(f, s, categories)
        for f, s in clean
    ]
    return float(np.mean(found)) if found else math.nan


def in_scan(scan: Scan, prediction: Prediction, size: int) -> Prediction:
    """A prediction on the network's canvas, of a long side of ``size``, in pixels of the scan."""
    if prediction.mask_CHW is not None:
        return Prediction(
            mask_CHW=np.stack([_to_scan(p_HW, scan, size) for p_HW in prediction.mask_CHW])
        )
    scale = np.float32(size / max(scan.height, scan.width))
    limit_4 = np.array([scan.width, scan.height, scan.width, scan.height], np.float32)
    return Prediction(
        np.minimum(prediction.boxes_N4 / scale, limit_4), prediction.scores_N, prediction.labels_N
    )


def to_finding(scan: Scan, prediction: Prediction) -> Finding:
    """A prediction in pixels of the scan as a JSON value."""
    if prediction.mask_CHW is not None:
        return {
            "scan_id": scan.scan_id,
            "masks": [rle_of(m) for m in prediction.mask_CHW >= THRESHOLD],
        }
    return {
        "scan_id": scan.scan_id,
        "boxes": [[round(float(v), 2) for v in b] for b in prediction.boxes_N4],
        "scores": [round(float(s), 5) for s in prediction.scores_N],
        "labels": prediction.labels_N.tolist(),
    }


def _findings(samples: ScanSamples, index: int, prediction: Prediction) -> list[Finding]:
    """What a prediction on a sample says of its scans, with the order that findings are brought
    into.
    """
    if isinstance(samples, TargetSamples):
        place, lesion, positive = samples.items[index]
        return [
            {
                "index": index,
                "scan_id": samples.scans[place].scan_id,
                "lesion": lesion,
                "positive": positive,
                "score": round(float(prediction.scores_N[0]), 7),
            }
        ]  # ties would cost AUC
    return [
        {
            "index": place,
            **to_finding(samples.scans[place], in_scan(samples.scans[place], part, samples.size)),
        }
        for place, part in samples.parts(index, prediction)
    ]


def _judged(findings: Sequence[Finding]) -> tuple[Array, Array]:
    """Scores and truth of what was classified."""
    return np.array([f["score"] for f in findings], float), np.array(
        [f["positive"] for f in findings], bool
    )


def _loss(module: nn.Module, batch: Batch) -> float:
    """The training loss without training: statistics of batch norm stay as they are."""
    module.train()
    for part in module.modules():
        if isinstance(
            part,
            nn.modules.batchnorm._BatchNorm | nn.modules.dropout._DropoutNd | nn.MultiheadAttention,
        ):
            part.eval()
    return float(sum(module(batch).values()))


def _pairs(findings: Sequence[Finding], scans: Sequence[Scan]) -> list[Pair]:
    """Each scan that counts, with what was found on it."""
    by_id = {f["scan_id"]: f for f in findings}
    return [(by_id[s.scan_id], s) for s in scans if s.annotated]


def _metrics(
    findings: list[Finding], samples: ScanSamples, task: Task, loss: Any
) -> dict[str, float]:
    findings.sort(key=lambda f: f["index"])
    total, count = (float(v) for v in loss)
    return {
        **score(findings, samples.scans, samples.categories, task),
        "val_loss": total / max(count, 1.0),
    }


def _patients(
    pairs: Sequence[Pair], counts: Sequence[int], categories: list[str]
) -> dict[str, float]:
    """Patients with crowds alone are neither sick nor well, and are left out."""
    known = [(s.patient_id, _sick(s, categories)) for _, s in pairs]
    sick, doubtful = ({patient for patient, ill in known if ill is state} for state in (True, None))
    called = {s.patient_id for (_, s), count in zip(pairs, counts) if count}
    patients = sick | {patient for patient, _ in known} - doubtful
    return patient_metrics(
        *(np.array([p in some for p in patients], bool) for some in (called, sick))
    )


def _sick(scan: Scan, categories: list[str]) -> bool | None:
    """Whether a scan has lesions of the categories; None where it has crowds of them alone."""
    known = [
        is_focus(le)
        for le in scan.lesions
        if le.category in categories and le.category not in NOT_LESIONS
    ]
    return None if known and not any(known) else bool(known)


def _kinds(categories: list[str]) -> list[int]:
    """Labels of the categories that are lesions."""
    return [label for label, name in enumerate(categories) if name not in NOT_LESIONS]


def _parts(scores: Sequence[MaskScore], categories: list[str]) -> int:
    """How many findings of lesions the masks of a scan have."""
    return sum(scores[label].findings for label in _kinds(categories))


def _alarms(finding: Finding, scan: Scan, categories: list[str]) -> int:
    """How many findings of lesions the boxes of a scan have."""
    kinds, pairs = _kinds(categories), [(finding, scan)]
    if any(le.crowd for le in scan.lesions):
        score_D, _ = lesion_hits(*_boxes(pairs, categories), _crowds(pairs, categories), kinds)
        return int((score_D >= THRESHOLD).sum())
    return sum(
        score >= THRESHOLD and label in kinds
        for score, label in zip(finding["scores"], finding["labels"])
    )


def _to_scan(probability_HW: Array, scan: Scan, size: int) -> Array:
    """Probabilities on the padded canvas back to the scan's own size."""
    shape = resize(np.zeros((scan.height, scan.width), np.float32), size)[0].shape
    inside_HW = probability_HW[: shape[0], : shape[1]]
    return np.asarray(
        cv2.resize(inside_HW, (scan.width, scan.height), interpolation=cv2.INTER_LINEAR)
    )


def _masks(finding: Finding, scan: Scan, categories: list[str]) -> list[MaskScore]:
    scores = []
    for category, mask_HW, rle in zip(categories, masks_of(scan, categories), finding["masks"]):
        lesions = [
            lesion_mask(le, scan.height, scan.width) for le in foci(scan) if le.category == category
        ]
        scores.append(
            mask_score(mask_HW == 1, lesions, mask_of(rle), scan.pixel_mm, mask_HW == CROWD)
        )
    return scores


def _pixels(finding: Finding, scan: Scan, categories: list[str]) -> Array:
    """Pixel counts of each category, (C, 3)."""
    return np.array(
        [
            pixel_counts(mask_HW == 1, mask_of(rle) & (mask_HW != CROWD))
            for mask_HW, rle in zip(masks_of(scan, categories), finding["masks"])
        ]
    )


def _boxes(
    pairs: Sequence[Pair], categories: list[str]
) -> tuple[list[tuple[Array, Array]], list[Prediction], int]:
    """Truth, predictions and the number of categories, as metrics of boxes take them."""
    found = [
        Prediction(
            np.array(f["boxes"], np.float32).reshape(-1, 4),
            np.array(f["scores"], np.float32),
            np.array(f["labels"], np.int64),
        )
        for f, _ in pairs
    ]
    return [_truth(s, categories, False) for _, s in pairs], found, len(categories)


def _crowds(pairs: Sequence[Pair], categories: list[str]) -> list[tuple[Array, Array]]:
    return [_truth(s, categories, True) for _, s in pairs]


def _truth(scan: Scan, categories: list[str], crowd: bool) -> tuple[Array, Array]:
    known = [le for le in scan.lesions if le.category in categories and le.crowd == crowd]
    return (
        np.array([le.box_xyxy for le in known], np.float32).reshape(-1, 4),
        np.array([categories.index(le.category) for le in known], np.int64),
    )
