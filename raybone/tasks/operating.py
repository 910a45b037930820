"""Where a finding begins, chosen out of fold, and what follows for patients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from raybone.metrics.operating_point import Cases, Rule, operating_point
from raybone.tasks.base import Outcome, Task, patients_of
from raybone.types import Array


def cases_of(task: Task, scored: tuple[Array, Array, int], scans: int) -> Cases:
    """What ``Task.scored`` has of so many scans, each finding once."""
    score_N, truth_N, positives = scored
    once_N, free = np.ones(len(score_N)), task.free_response
    return Cases(score_N, truth_N.astype(float), once_N, positives, scans if free else 0, free)


def cases_in(task: Task, outcome: Outcome) -> Cases:
    """Scores of findings, and whether each is right."""
    scans = task.usable(outcome.scans)
    return cases_of(task, task.scored(replace(outcome, scans=scans)), len(scans))


def operated(
    task: Task, rule: Rule, cases: Sequence[Cases], outcomes: Sequence[Outcome]
) -> dict[str, Any]:
    """``operating_point``, with the metrics of patients where findings have scores: each fold's by
    the score that the others choose.

    Args:
        cases, outcomes: of each fold.
    """
    found = operating_point(rule, cases)
    if "reason" in found or not task.free_response:
        return found
    cut = [replace(o, threshold=least) for least, o in zip(found["folds"], outcomes)]
    alarms = [count for outcome in cut for count in task.alarms(outcome)]
    every = [scan for outcome in cut for scan in outcome.scans]
    metrics = patients_of(replace(cut[0], findings=(), scans=every), alarms)
    known = {name: round(value, 6) for name, value in metrics.items() if np.isfinite(value)}
    return {**found, **known}


def operated_in_short(task: Task, outcomes: Sequence[Outcome]) -> dict[str, float]:
    """The figures at the point of the largest F1 by a name of their own; none where no score could
    be chosen.
    """
    point = operated(task, Rule(), [cases_in(task, o) for o in outcomes], outcomes)
    figures = {} if "reason" in point else point
    return {f"operating_{k}": v for k, v in figures.items() if isinstance(v, float)}
