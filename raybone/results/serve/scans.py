"""What the best configuration finds on each validation scan, out of fold, beside the truth."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from raybone.data.dataset import dataset_of
from raybone.data.overlay import Picture, overlay
from raybone.errors import WrongInput
from raybone.metrics.lesions import THRESHOLD
from raybone.results.compare import unfetched
from raybone.results.study_folder import StudyFolder
from raybone.results.winner import Winner, winner_of
from raybone.tasks.base import Outcome


@dataclass(frozen=True)
class Look:
    """One scan: its metric by itself (None where it has none), and how many findings are false and
    lesions were missed; labels as ``name value``.
    """

    scan: str
    patient: str
    view: str
    fold: int
    score: float | None
    false_positives: int
    false_negatives: int
    labels: str


@dataclass(frozen=True)
class Looks:
    """All scans of a configuration, and the name of the metric; ``missing`` is why there are
    none.
    """

    config_id: str = ""
    metric: str = ""
    rows: tuple[Look, ...] = ()
    missing: str = ""
    winner: Winner | None = None

    def told(self) -> dict[str, Any]:
        """As JSON."""
        own = {"config": self.config_id, "metric": self.metric, "missing": self.missing}
        return {**own, "rows": [vars(row) for row in self.rows]}

    def pictures(self, scan_id: str) -> tuple[bytes, bytes] | None:
        """PNG of the truth and of what was found; None of a scan that is none of these, or whose
        pixels show text.
        """
        winner = self.winner
        scan = next((s for s in winner.scans if s.scan_id == scan_id), None) if winner else None
        if winner is None or scan is None or "burned-in-text" in scan.flags:
            return None
        picture = Picture(winner.dataset.counts(scan), scan.high, scan.flags)
        own = [f for f in winner.findings if f["scan_id"] == scan_id]
        truth: dict[str, Any] = {"masks": []} if winner.task.masks else {"boxes": []}
        found, least = (own or [truth])[0], THRESHOLD
        if winner.task.judged:  # each lesion with its probability, none where the scan is judged
            judged = [(f, scan.lesions[f["lesion"]]) for f in own if f["lesion"] >= 0]
            boxes = [lesion.box_xyxy for _, lesion in judged]
            found, least = {"boxes": boxes, "scores": [f["score"] for f, _ in judged]}, 0.0
        return (
            overlay(picture, truth, scan.lesions, winner.categories),
            overlay(picture, found, (), winner.categories, least),
        )


def looks_of(
    folder: StudyFolder, progress: Callable[[int, int], None] = lambda done, total: None
) -> Looks:
    """The scans of the best complete configuration."""
    study, best = folder.study, folder.winner()
    if why := unfetched(study, folder.moved):
        return Looks(missing=why)
    try:
        dataset = dataset_of(study)
    except (WrongInput, OSError) as error:
        return Looks(missing=str(error))
    winner, missing = winner_of(folder, best.record if best else None, dataset)
    if best is None or winner is None:
        return Looks(missing=missing)
    scans, rows = winner.scans, list[Look]()
    metric, values_N = winner.alone(scans, study.metric)
    by_scan: dict[str, list[Any]] = {}
    for finding in winner.findings:
        by_scan.setdefault(finding["scan_id"], []).append(finding)
    for number, (scan, value) in enumerate(zip(scans, values_N.tolist()), 1):
        own = by_scan.get(scan.scan_id, [])
        wrong, missed = winner.task.errors(Outcome(own, [scan], winner.categories))
        about = scan.scan_id, scan.patient_id, scan.view, int(dataset.fold_of[scan.patient_id])
        score = round(value, 4) if math.isfinite(value) else None
        labels = ", ".join(f"{name} {is_}" for name, is_ in scan.labels)
        rows.append(Look(*about, score, wrong, missed, labels))
        progress(number, len(scans))
    return Looks(best.id, metric, tuple(rows), "", winner)
