"""Studies that the brain has run on made-up scores, in seconds: journal, study.yaml and the
winner's predictions.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from faults import unseal

from raybone.data.annotations import mask_of, rle_of
from raybone.data.dataset import Dataset, open_dataset
from raybone.hpo.brain import Brain
from raybone.hpo.races import rungs_of
from raybone.results.study_folder import StudyFolder
from raybone.study.files import parse_study
from raybone.study.spec import Resolved, ResolvedStudy
from raybone.train.findings import write_findings
from raybone.types import Epoch, Pooled, Scan

SPACE = {
    "lr0": {"log_uniform": [1e-4, 1e-1]},
    "optimizer": {"choice": ["AdamW", "SGD"]},
    "momentum": {"uniform": [0.6, 0.95], "when": {"optimizer": "SGD"}},
    "batch": {"int_uniform": [2, 32]},
}
TASKS = {"dice": "unet", "val_loss": "unet", "AP50": "retinanet_r50", "AUC": "lesion_resnet50"}


def pretend(
    place: Path | str,
    dataset: Path | None = None,
    metric: str = "dice",
    stop_after: int | None = None,
    failing: int = 0,
    replicates: int = 200,
    **keys: Any,
) -> ResolvedStudy:
    """Write a study folder.

    Args:
        dataset: what its scans are; without one it names a folder that is not there.
        stop_after: works after which its driver vanishes.
        failing: configurations, from the second on, that fail.
        keys: of the study, beside what is usual.
    """
    opened = open_dataset(dataset) if dataset else None
    asked = {
        "name": "pretended",
        "dataset": str(dataset or "/nowhere/ds"),
        "model": TASKS[metric],
        "epochs": 6,
        "metric": metric,
        "space": SPACE,
        **keys,
    }
    asked["search"] = {
        "trials": 12,
        "sampler": "random",
        "scheduler": "full",
        **asked.get("search", {}),
    }
    study, folds = parse_study(asked), opened.folds if opened else 3
    study = study.resolved_as(
        Resolved(
            dataset_hash=opened.hash if opened else "0123456789abcdef",
            code_version="0.1.0",
            folds=folds,
            ladder=rungs_of(study, folds, 1000),
        )
    )
    folder, rng = StudyFolder(place), np.random.default_rng(0)
    folder.write_study(study)
    with mock.patch("os.fsync", return_value=None):
        brain, shared = (
            Brain(study, folder.journal(), lambda params: round(120_000 * size(study, params)), 1),
            rng.normal(0, 0.03, replicates),
        )
        works = 0
        while (work := brain.peek()) and works != stop_after:
            brain.start(work)
            works += 1
            if 1 <= int(work.config_id[1:]) <= failing:
                brain.fail(work.config_id, f"FitFailed: loss is not finite <b>{os.sep}</b>")
                continue
            _train(brain, study, work, rng, shared)
        if stop_after is None:
            brain.finish()
    best = folder.winner()
    for fold in range(folds) if opened and best else ():
        findings = [
            {"index": n, **f}
            for n, s in enumerate(opened.validation(fold))
            for f in _findings(metric, s, rng)
        ]
        write_findings(best.fold(fold), fold, study.epochs, findings)
    return study


def size(study: ResolvedStudy, params: dict[str, Any]) -> float:
    """How much larger a model is than the first of its study."""
    return 1.0 + 2 * study.names.index(study.under(params).model)


def _train(
    brain: Brain, study: ResolvedStudy, work: Any, rng: np.random.Generator, shared: np.ndarray
) -> None:
    """The epochs of a work: learning curves that rise, best at a learning rate of 0.01 or so."""
    lr0 = work.params.get("lr0", 0.01)
    quality = 0.7 - 0.1 * abs(np.log10(lr0 / 0.01)) if isinstance(lr0, float) else 0.5
    larger = size(study, work.params)
    quality += 0.02 * (larger - 1)
    # The smaller a batch, the longer an epoch; of one model all take as long.
    seconds = 12.3 * larger * (8 / work.params.get("batch", 8) if study.models else 1)
    for segment in work.segments:
        for epoch in range(segment.start + 1, segment.stop + 1):
            score = (
                quality * (1 - np.exp(-4 * epoch / study.epochs))
                + 0.05 * segment.fold
                + rng.normal(0, 0.02)
            )
            brain.epoch(
                work.config_id,
                Epoch(
                    segment.fold,
                    epoch,
                    {
                        study.metric: round(float(np.clip(score, 0, 1)), 5),
                        "val_loss": round(2 - float(score), 5),
                    },
                    seconds,
                ),
            )
    if work.segments[-1].stop == study.epochs:
        drawn = quality + shared + rng.normal(0, 0.02, len(shared))
        brain.pooled(work.config_id, Pooled({study.metric: quality}, tuple(drawn.tolist()), 20.0))
    brain.rung_done(work.config_id, work.rung)


def _findings(metric: str, scan: Scan, rng: np.random.Generator) -> list[dict[str, Any]]:
    """What a middling model would find on a scan."""
    if metric == "AUC":
        return [
            {
                "scan_id": scan.scan_id,
                "lesion": n,
                "positive": le.category == "malignant",
                "score": round(
                    float(
                        np.clip(rng.normal(0.6 if le.category == "malignant" else 0.4, 0.2), 0, 1)
                    ),
                    7,
                ),
            }
            for n, le in enumerate(scan.lesions)
        ]
    if metric in ("dice", "val_loss"):
        mask_HW = np.zeros((scan.height, scan.width), bool)
        for lesion in scan.lesions:
            if lesion.rle and rng.random() < 0.7:
                mask_HW |= np.roll(mask_of(lesion.rle), int(rng.integers(0, 3)), axis=0)
        return [{"scan_id": scan.scan_id, "masks": [rle_of(mask_HW)]}]
    boxes = [
        np.array(le.box_xyxy) + np.repeat(rng.normal(0, 0.8, 2), 2)[[0, 2, 0, 2]]
        for le in scan.lesions
    ] + [np.array([x, x + 20, x + 9, x + 30]) for x in rng.integers(0, 40, 3)]
    scores = sorted(rng.random(len(boxes)).tolist(), reverse=True)
    return [
        {
            "scan_id": scan.scan_id,
            "boxes": [b.round(2).tolist() for b in boxes],
            "scores": [round(s, 5) for s in scores],
            "labels": [0] * len(boxes),
        }
    ]


def flagged(dataset: Dataset, flag: str) -> None:
    """Give every scan of a dataset folder a flag."""
    path = dataset.path / "scans.csv"
    head, *rows = path.read_text(encoding="utf-8").splitlines()
    place = head.split(",").index("flags")
    cells = [row.split(",") for row in rows]
    path.write_text(
        "\n".join([head, *(",".join([*c[:place], flag, *c[place + 1 :]]) for c in cells)]) + "\n",
        encoding="utf-8",
    )
    unseal(dataset.path)
