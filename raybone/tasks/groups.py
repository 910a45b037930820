"""Metrics of some scans with intervals by patient, of all and of subgroups."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import median

import numpy as np

from raybone.data.annotations import foci
from raybone.data.dataset import Dataset
from raybone.metrics.intervals import bootstrap_interval, patient_draws
from raybone.metrics.subgroups import group_of_count
from raybone.study.metric import METRICS
from raybone.tasks.base import Outcome, Task
from raybone.types import Scan

SEED = 0  # of the bootstrap
LEAST = 2  # persons of a kind: of one who is always drawn there is no interval
MOST = 6  # values of a property that makes subgroups
SIDES = (15.0, 30.0)  # mm, between small, middling and large lesions


@dataclass(frozen=True)
class Score:
    """A metric with the 95 % interval of its patient bootstrap; NaN where there is none."""

    value: float
    low: float = math.nan
    high: float = math.nan

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{self.value:.3f}"
        return f"{self.value:.3f} (95 %: {self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True)
class Group:
    """The scans that share a property, and the metric on them."""

    by: str
    name: str
    scans: int
    patients: int
    score: Score


@dataclass(frozen=True)
class Scorer:
    """Metrics of some scans with intervals by patient; those who may be one person are drawn
    together.
    """

    task: Task
    dataset: Dataset
    metric: str

    @classmethod
    def by(cls, metric: str, task: Task, dataset: Dataset) -> Scorer:
        """By this metric, or by the task's usual one where single scans have no such score."""
        known = metric in task.ranked and metric != "val_loss"
        return cls(task, dataset, metric if known else task.ranked[0])

    @property
    def sign(self) -> int:
        """1 where more of the metric is better, -1 where less is."""
        return {**METRICS, **self.task.metrics}[self.metric].sign

    def scores(self, outcome: Outcome) -> dict[str, Score]:
        """All metrics."""
        known = self._resampled(outcome)
        metrics = self.task.score(outcome)
        return {name: known.get(name, Score(value)) for name, value in metrics.items()}

    def groups(self, outcome: Outcome) -> Iterator[Group]:
        """The metric of each subgroup, of every property that tells scans apart."""
        outcome = replace(outcome, scans=self.task.seen(outcome.findings, outcome.scans))
        for by, members in _subgroups(outcome).items():
            for name, scans in sorted(members.items()):
                ids = {s.scan_id for s in scans}
                own = [f for f in outcome.findings if f["scan_id"] in ids]
                score = self._resampled(replace(outcome, findings=own, scans=scans))[self.metric]
                yield Group(by, name, len(scans), len({s.patient_id for s in scans}), score)

    def _resampled(self, outcome: Outcome) -> dict[str, Score]:
        scans, person_of = self.task.seen(outcome.findings, outcome.scans), self.dataset.group_of
        outcome = replace(outcome, scans=scans)
        column: dict[str, int] = {}
        for scan in scans:
            column.setdefault(person_of[scan.patient_id], len(column))
        positive = self.task.positive(outcome)
        negative = self.task.negative(outcome)
        sick, well = (
            {person_of[s.patient_id] for s in scans if s.scan_id in some}
            for some in (positive, negative)
        )
        sick_P = np.array([p in sick for p in column])
        draws_BP = np.ones((1, len(column)), int)  # the scans themselves come first
        if min(len(column), len(sick), len(well)) >= LEAST:
            few_BP = patient_draws(np.zeros(len(column), int), sick_P, SEED)
            draws_BP = np.concatenate([draws_BP, few_BP])
        draws_BS = draws_BP[:, [column[person_of[s.patient_id]] for s in scans]]
        found = dict[str, Score]()
        for name, values_B in self.task.resampled(outcome, draws_BS).items():
            value, drawn_B = float(values_B[0]), values_B[1:]
            known_B = drawn_B[np.isfinite(drawn_B)]
            if not len(known_B) or np.ptp(known_B) == 0:  # it says nothing of others
                found[name] = Score(value)
                continue
            ends = bootstrap_interval(value, drawn_B, len(column) - 1)
            within = METRICS[name].within if name in METRICS else float
            found[name] = Score(value, *map(within, ends))
        return found


def _subgroups(outcome: Outcome) -> dict[str, dict[str, list[Scan]]]:
    """Scans by property and its value, of properties with 2 to ``MOST`` values."""
    found: dict[str, dict[str, list[Scan]]] = defaultdict(lambda: defaultdict(list))
    for scan in outcome.scans:
        count = sum(le.category in outcome.categories for le in foci(scan))
        properties = {
            "site": scan.site,
            "scanner": scan.scanner,
            "view": scan.view,
            "lesions on the scan": group_of_count(count) if count else "none",
            "median side of its lesions": _size(scan, outcome.categories),
            **dict(scan.labels),
        }
        for by, name in properties.items():
            found[by][name].append(scan)
    return {by: groups for by, groups in found.items() if 2 <= len(groups) <= MOST}


def _size(scan: Scan, categories: list[str]) -> str:
    """How large the lesions of a scan are, by the longer sides of their boxes."""
    boxes = [le.box_xyxy for le in foci(scan) if le.category in categories]
    if not boxes:
        return "none"
    if not scan.pixel_mm or "not-square" in scan.flags:
        return "unknown"
    side = median(max(x2 - x1, y2 - y1) for x1, y1, x2, y2 in boxes) * scan.pixel_mm
    low, high = SIDES
    return (
        f"under {low:g} mm"
        if side < low
        else f"{low:g} to {high:g} mm"
        if side <= high
        else f"over {high:g} mm"
    )
