"""Findings as JSON against the lesions of their scans."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import distributed as dist

from raybone.data.annotations import lesion_of_mask, rle_of
from raybone.data.cache import Intensities
from raybone.data.dataset import open_dataset
from raybone.data.loader import Batch, Look, ScanSamples, validation_loader
from raybone.models._model import Model, TrainingConfig
from raybone.tasks import task_named
from raybone.tasks.base import Outcome
from raybone.train.evaluate import evaluate
from raybone.types import Lesion, Prediction, Scan

MASK = np.zeros((8, 8), bool)
MASK[1:3, 1:3] = MASK[5, 5] = True


def scan(name: str, *lesions: Lesion) -> Scan:
    return Scan(name, name, "anterior", 8, 8, None, 0, 1.0, lesions=lesions)


def test_false_positives_are_boxes_from_one_half_on_scans_without_lesions_of_the_categories() -> (
    None
):
    scans = [
        scan("a"),
        scan("b", Lesion((0, 0, 2, 2), "benign")),
        scan("c", Lesion((0, 0, 2, 2), "malignant")),
    ]
    findings = [
        {
            "scan_id": name,
            "boxes": [[0, 0, 1, 1]] * len(scores),
            "scores": scores,
            "labels": [0] * len(scores),
        }
        for name, scores in (("c", [0.9]), ("a", [0.9, 0.5, 0.49]), ("b", []))
    ]
    assert task_named("detection").false_positives(Outcome(findings, scans, ["malignant"])) == 1.0
    assert math.isnan(
        task_named("detection").false_positives(Outcome(findings, scans[2:], ["malignant"]))
    )


def test_false_positives_of_a_segmenter_are_connected_parts() -> None:
    findings = [
        {"scan_id": "a", "masks": [rle_of(MASK)]},
        {"scan_id": "b", "masks": [rle_of(MASK & False)]},
    ]
    assert (
        task_named("segmentation").false_positives(
            Outcome(findings, [scan("a"), scan("b")], ["malignant"])
        )
        == 1.0
    )


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_a_sample_of_every_scan_once_has_the_score_itself(task: str) -> None:
    scans = [scan("a", lesion_of_mask(MASK, "malignant")), scan("b")]
    findings = [
        {
            "scan_id": n,
            "masks": [rle_of(m)],
            "boxes": [[1, 1, 5, 6]],
            "scores": [0.7],
            "labels": [0],
        }
        for n, m in (("b", MASK), ("a", np.roll(MASK, 1, 0)))
    ]
    plain = task_named(task).score(Outcome(findings, scans, ["malignant"]))
    drawn = task_named(task).resampled(
        Outcome(findings, scans, ["malignant"]), np.array([[1, 1], [0, 3]])
    )
    assert set(task_named(task).ranked) - {"val_loss"} <= set(drawn)
    assert {m: v[0] for m, v in drawn.items()} == pytest.approx({m: plain[m] for m in drawn})
    assert all(math.isnan(v[1]) for v in drawn.values())


def test_a_patient_is_called_sick_by_one_finding_on_either_view() -> None:
    lesion = Lesion((0, 0, 2, 2), "malignant")
    scans = [
        replace(scan(n, *lesions), patient_id=n[0])
        for n, lesions in (("a1", [lesion]), ("a2", []), ("b1", [lesion]), ("c1", []), ("d1", []))
    ]
    findings = [
        {
            "scan_id": n,
            "boxes": [[4, 4, 6, 6]] * bool(p),
            "scores": [p] * bool(p),
            "labels": [0] * bool(p),
        }
        for n, p in (("a1", 0.2), ("a2", 0.9), ("b1", 0.4), ("c1", 0.6), ("d1", 0))
    ]
    scores = task_named("detection").score(Outcome(findings, scans, ["malignant"]))
    assert (scores["patient_sensitivity"], scores["patient_precision"], scores["sensitivity"]) == (
        0.5,
        0.5,
        0.0,
    )


class Bright(torch.nn.Module):
    """Finds what is bright; its loss is the mean of the images."""

    def forward(self, batch: Batch | torch.Tensor) -> dict[str, torch.Tensor] | list[Prediction]:
        if isinstance(batch, Batch):
            return {"loss": batch.image_NCHW.mean()}
        return [self.found(image_HW) for image_HW in batch[:, 0].numpy()]

    def found(self, image_HW: np.ndarray) -> Prediction:
        _, _, parts, _ = cv2.connectedComponentsWithStats((image_HW > 0.6).astype(np.uint8))
        x, y, w, h, area = parts[1:].T
        return Prediction(
            np.stack([x, y, x + w, y + h], 1).astype(np.float32),
            (area / (1 + area)).astype(np.float32),
            np.zeros(len(area), np.int64),
        )


def shared(rank: int, world: int, place: str) -> None:
    """Evaluate this rank's share; every rank writes what it was told."""
    if world > 1:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", f"file://{place}/meet", rank=rank, world_size=world)
    dataset = open_dataset(f"{place}/ds")
    model = Model("bright", "detection", TrainingConfig, lambda config: Bright(), {}, "here")
    samples = ScanSamples(
        Intensities(dataset, 256), dataset.training(0)[:7], Look(["malignant"], 256)
    )
    metrics, findings = evaluate(
        Bright(), samples, validation_loader(samples, 2, rank, world, 0), model, torch.device("cpu")
    )
    Path(place, f"{world}-{rank}.json").write_text(json.dumps([metrics, findings]))
    if world > 1:  # a process that ends with gloo's threads at work may abort
        dist.barrier()
        dist.destroy_process_group()


def test_metrics_of_uneven_shares_are_those_of_one_process(dataset: Path, tmp_path: Path) -> None:
    """Seven scans on two ranks: four and three, none seen twice."""
    (tmp_path / "ds").symlink_to(dataset)
    shared(0, 1, str(tmp_path))
    torch.multiprocessing.spawn(shared, (2, str(tmp_path)), 2)
    (one, found), (first, both), (second, _) = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("1-0", "2-0", "2-1")
    )
    assert len(found) == len(both) == 7
    assert [f["scan_id"] for f in both] == [f["scan_id"] for f in found]
    assert str(first) == str(second)
    assert first.pop("val_loss") == pytest.approx(one.pop("val_loss"), rel=1e-6)
    assert str(first) == str(one)
    assert one["AR"] > 0
