"""The best complete configuration of a study: what it finds out of fold, as curves and pictures."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from raybone.data.annotations import foci
from raybone.data.dataset import Dataset
from raybone.data.overlay import Picture, overlay
from raybone.errors import DamagedFile, WrongInput
from raybone.hpo.state import Configuration
from raybone.metrics.calibration import calibration_error, crossed, reliability
from raybone.metrics.decision import THRESHOLDS, benefit_of_all, net_benefit
from raybone.metrics.lesions import THRESHOLD, operating_points
from raybone.results.charts.curves import (
    ALL,
    curve,
    decision_chart,
    histogram,
    reliability_chart,
)
from raybone.results.charts.vega import Chart
from raybone.results.compare import findings_of
from raybone.results.study_folder import ConfigurationFolder, StudyFolder
from raybone.tasks import configured, task_of
from raybone.tasks.base import Outcome, Task
from raybone.tasks.groups import Group, Scorer
from raybone.types import Array, Finding, Scan

# What reading files raises that were changed.
BROKEN = (WrongInput, ValueError, KeyError, TypeError, AttributeError, OSError)


@dataclass(frozen=True)
class Case:
    """A finding with its value in words; the smaller its loss, the better it is."""

    loss: float
    finding: Finding
    words: str


@dataclass(frozen=True)
class Figure:
    """A scan as PNG in base64, with words below it and words instead of it."""

    words: str
    png: str
    alt: str


@dataclass(frozen=True)
class Winner:
    """The best complete configuration's findings, out of fold; ``heat`` is where a classifier sees
    what it judges, (H, W) of the scan, None where that is not known.
    """

    task: Task
    categories: list[str]
    findings: list[Finding]
    dataset: Dataset
    heat: Callable[[Finding], Array | None] = lambda _: None

    def of(self, folds: Sequence[int]) -> tuple[list[Finding], list[Scan]]:
        """Findings and scans of some folds; only those scans that are scored."""
        kept = {
            s.scan_id: s
            for k in folds
            for s in self.task.seen(self.findings, self.dataset.validation(k))
        }
        return [f for f in self.findings if f["scan_id"] in kept], list(kept.values())

    @property
    def scans(self) -> list[Scan]:
        """The scans of all folds that are scored."""
        return self.of(range(self.dataset.folds))[1]

    def alone(self, scans: Sequence[Scan], metric: str) -> tuple[str, Array]:
        """The metric of each scan by itself, or another that one scan has, and its name."""
        each_NN = np.eye(len(scans), dtype=int)
        outcome = Outcome(self.findings, scans, self.categories)
        values = self.task.resampled(outcome, each_NN)
        known = metric in values and np.isfinite(values[metric]).any()
        name = metric if known else self.task.alone
        return name, values[name]


def winner_of(
    folder: StudyFolder, best: Configuration | None, dataset: Dataset | None
) -> tuple[Winner | None, str]:
    """The winner's findings, or why there are none."""
    if best is None:
        return None, "there is no complete configuration yet"
    if dataset is None:
        return None, "the dataset is gone or has changed"
    study = folder.study
    try:
        categories = list(study.values(best.params).get("categories") or ["malignant"])
        findings = findings_of(folder.configuration(best.id), dataset)
        heat = partial(_heat, folder.configuration(best.id), dataset)
        winner = Winner(task_of(study), categories, findings, dataset, heat)
        own, scans = winner.of(range(dataset.folds))
        each = winner.task.judged or len(own) == len(scans)
        if len(own) != len(findings) or not each:
            raise ValueError("its predictions are not of the scans of the folds")
    except BROKEN as error:
        return None, str(error)
    return winner, ""


def winner_charts(winner: Winner) -> list[Chart]:
    """PR and FROC of a detector, PR and ROC of a classifier, Dice by scan of a segmenter; where
    findings have scores, how far these can be relied on, and what decisions by them are worth.
    """
    if winner.task.masks:
        return _dice(winner)
    return [*_curves(winner), *_reliability(winner), *_decisions(winner)]


def winner_groups(winner: Winner, metric: str) -> list[Group]:
    """The winner's score in each subgroup of scans, with intervals by patient."""
    scorer = Scorer.by(metric, winner.task, winner.dataset)
    outcome = Outcome(winner.findings, winner.scans, winner.categories)
    return list(scorer.groups(outcome))


def _reliability(winner: Winner) -> list[Chart]:
    """Of the calibrated scores of findings; each fold's by what the others give."""
    folds = []
    for fold in range(winner.dataset.folds):
        findings, scans = winner.of([fold])
        score_D, hit_D, _ = winner.task.scored(Outcome(findings, scans, winner.categories))
        folds.append((score_D, hit_D.astype(float), np.ones(len(score_D))))
    truth_D = np.concatenate([truth_D for _, truth_D, _ in folds])
    if not 0 < truth_D.sum() < len(truth_D):
        return []
    probability_D = crossed(folds)
    error = calibration_error(probability_D, truth_D)
    says = (
        f"Of {len(truth_D)} {winner.task.counted}, out of fold, by their score after Platt's "
        f"calibration, each fold by what the others give; expected calibration error {error:.3f}."
    )
    return [reliability_chart(says, reliability(probability_D, truth_D))]


def _decisions(winner: Winner) -> list[Chart]:
    """Net benefit of calling a patient sick by the highest score, against calling all or nobody."""
    folds = []
    for fold in range(winner.dataset.folds):
        findings, scans = winner.of([fold])
        outcome = Outcome(findings, scans, winner.categories)
        score_P, sick_P = winner.task.patient_scores(outcome)
        folds.append((score_P, sick_P.astype(float), np.ones(len(score_P))))
    sick_P = np.concatenate([truth_P for _, truth_P, _ in folds]).astype(bool)
    if not 0 < sick_P.sum() < len(sick_P):
        return []
    probability_P = crossed(folds)
    says = (
        f"{len(sick_P)} patients, {sick_P.sum()} of them sick, by the highest score on their scans "
        "after Platt's calibration, each fold by what the others give. A model is worth its use "
        "where its line is above both others."
    )
    lines = {
        "by the model": (THRESHOLDS, net_benefit(probability_P, sick_P)),
        "everybody": (THRESHOLDS, benefit_of_all(sick_P)),
        "nobody": (THRESHOLDS, np.zeros(len(THRESHOLDS))),
    }
    return [decision_chart(says, lines)]


def _dice(winner: Winner) -> list[Chart]:
    sick = _sick(winner, winner.scans)
    if not sick:
        return []
    dice_N = winner.alone(sick, "dice")[1]
    says = (
        f"{len(sick)} scans with lesions, out of fold; the median is {np.median(dice_N):.3f}. "
        f"Masks are stored as cut at {THRESHOLD:g}: a segmenter has no PR, FROC or ROC curve here."
    )
    return [histogram("Dice by scan", says, "Dice of one scan", dice_N)]


def _curves(winner: Winner) -> list[Chart]:
    every, detector = range(winner.dataset.folds), winner.task.free_response
    precision: dict[str, tuple[Array, Array]] = {}
    alarms: dict[str, tuple[Array, Array]] = {}
    for name, folds in {ALL: [*every], **{f"fold {k}": [k] for k in every}}.items():
        findings, scans = winner.of(folds)
        score_D, hit_D, positives = winner.task.scored(Outcome(findings, scans, winner.categories))
        _, true_T, false_T = operating_points(score_D, hit_D)
        if positives and len(true_T) and (detector or false_T[-1]):
            unit = len(scans) if detector else false_T[-1]
            precision[name] = (true_T / positives, true_T / (true_T + false_T))
            alarms[name] = (np.append(0, false_T / unit), np.append(0, true_T / positives))
    if ALL not in precision:
        return []
    says = (
        "Out of fold: each scan by the model that has not seen its patient. Thin lines are single "
        "folds."
    )
    if detector:
        says += " A lesion is found with an IoU of at least 0.5; all categories together."
        title, x = "Free-response ROC", "false positives a scan"
    else:
        title, x = "ROC", "1 - specificity"
    return [
        curve("Precision and recall", says, ("recall", "precision"), precision),
        curve(title, says, (x, "sensitivity"), alarms, rates=detector),
    ]


def pictures(winner: Winner, metric: str) -> list[Figure]:
    """The best, median and worst scans with lesions."""
    scans = {s.scan_id: s for s in winner.scans if "burned-in-text" not in s.flags}
    every = _judged(winner) if winner.task.judged else _scored(winner, scans, metric)
    cases = sorted((c for c in every if c.finding["scan_id"] in scans), key=lambda c: c.loss)
    last, middle = len(cases) - 1, len(cases) // 2
    # Of few cases, one may be several of these: what stands last counts.
    worst, median = {last: "Worst", last - 1: "Worst"}, {middle: "Median", middle - 1: "Median"}
    kinds = worst | median | {1: "Best", 0: "Best"}
    return [
        _picture(winner, scans[cases[n].finding["scan_id"]], cases[n], kinds[n])
        for n in sorted(kinds)
        if 0 <= n <= last
    ]


def _judged(winner: Winner) -> Iterator[Case]:
    """What was classified, by the distance of its probability from the truth."""
    for finding in winner.findings:
        score, truth = finding["score"], "positive" if finding["positive"] else "negative"
        words = f"probability {score:.3f}, in truth {truth}"
        yield Case(abs(score - finding["positive"]), finding, words)


def _scored(winner: Winner, scans: Mapping[str, Scan], metric: str) -> Iterator[Case]:
    """Scans with something to find, by their metric."""
    sick = _sick(winner, [*scans.values()])
    if not sick:
        return
    by_id = {f["scan_id"]: f for f in winner.findings}
    name, values_N = winner.alone(sick, metric)
    for scan, value in zip(sick, values_N.tolist()):
        if math.isfinite(value):
            yield Case(-value, by_id[scan.scan_id], f"{name} {value:.3f}")


def _picture(winner: Winner, scan: Scan, case: Case, kind: str) -> Figure:
    count = sum(le.category in winner.categories for le in foci(scan))
    scores = case.finding.get("scores", ())
    words = (
        f"{kind}: {case.words}. Scan {scan.scan_id}, {scan.view}, fold "
        f"{winner.dataset.fold_of[scan.patient_id]}, {count} lesion{'s' * (count != 1)}."
    )
    if scores:
        words += (
            f" Of {len(scores)} boxes, the {sum(s >= THRESHOLD for s in scores)} that score at "
            f"least {THRESHOLD:g} are drawn."
        )
    heat_HW = winner.heat(case.finding) if winner.task.judged else None
    if heat_HW is not None:
        words += " Red: what speaks for the class (Grad-CAM)."
    elif winner.task.judged:
        words += " Without Grad-CAM: its fold's weights are gone or damaged, or it has no map."
    shown = Picture(winner.dataset.counts(scan), scan.high, scan.flags, heat_HW=heat_HW)
    png = overlay(shown, case.finding, scan.lesions, winner.categories)
    return Figure(
        words,
        base64.b64encode(png).decode(),
        f"Scan with outlines of truth (solid) and prediction (dashed). {words}",
    )


def _heat(best: ConfigurationFolder, dataset: Dataset, finding: Finding) -> Array | None:
    """Where the model of a finding's fold sees what it judges; None where its weights are gone."""
    from raybone.train.grad_cam import out_of_fold
    from raybone.train.samples import FoldJob

    scan = next(s for s in dataset.scans if s.scan_id == finding["scan_id"])
    fold = dataset.fold_of[scan.patient_id]
    try:
        weights = best.weights(int(fold))
    except DamagedFile:
        weights = None  # a report needs none, and `refit` tells it
    if weights is None:
        return None
    model, config = configured(best.folder.study, best.params)
    return out_of_fold(FoldJob(dataset, model, config, int(fold), 0), weights, finding["index"])


def _sick(winner: Winner, scans: Sequence[Scan]) -> list[Scan]:
    """Scans with something to find: lesions, or bones where they are looked for."""
    return [
        s
        for s in scans
        if any(le.category in winner.categories and not le.crowd for le in s.lesions)
    ]
