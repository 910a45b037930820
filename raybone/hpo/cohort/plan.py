"""Where cohorts are decided: the constants of cohort_race, its rungs, and what they cost."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from raybone.types import Array

FIRST, RATIO = 0.045, 1.5  # rungs of one fold: the first as a share of all epochs, then times this


@dataclass(frozen=True)
class CohortRule:
    """The constants, as shares unless said.

    keep: of all configurations that get to two fifths of the folds. gate: chance of that below
    which a configuration does not start. mix: weight of the model in the order of a rung. alive: of
    the better quarter of a rung that was in the better half before; grow: least ratio of its median
    score at the rung before to that of now. slack: standard errors behind the leader at which a
    finalist is dropped. finalists: number that go on at the least. risk: expected loss of the pick
    against exhaustive cross-validation, down to which a search goes on; None: it does not.
    """

    keep: float = 0.25
    gate: float = 0.1
    mix: float = 0.5
    alive: float = 0.8
    grow: float = 0.6
    slack: float = 2.0
    finalists: int = 4
    risk: float | None = None


@dataclass(frozen=True)
class Stage:
    """A rung of the cohorts, and how many go on to it: a share of all, or of those before."""

    folds: int
    epochs: int
    share: float
    of_all: bool = False


def stages(epochs: int, folds: int, keep: float) -> tuple[Stage, ...]:
    """Where cohorts are cut, after the rung at which scores are alive."""

    def some(share: float) -> int:
        return min(folds, max(2, math.ceil(share * folds - 1e-9)))

    def part(share: float) -> int:
        return max(1, round(share * epochs))

    return (
        Stage(1, part(0.19), 2 * keep, of_all=True),
        Stage(some(0.4), part(1 / 3), keep, of_all=True),
        Stage(some(0.4), part(2 / 3), 0.45),
        Stage(some(0.6), epochs, 0.45),
        Stage(some(0.8), epochs, 0.55),
        Stage(folds, epochs, 0.6),
    )


def climb(epochs: int) -> tuple[int, ...]:
    """Epochs of the rungs of one fold, on which the pilot climbs."""
    ends = [max(1, round(FIRST * epochs))]
    while ends[-1] < epochs:
        ends.append(min(epochs, max(ends[-1] + 1, round(RATIO * ends[-1]))))
    return tuple(ends)


def cohort_ladder(
    epochs: int, folds: int, keep: float = CohortRule.keep
) -> tuple[tuple[int, int], ...]:
    """Every (folds, epochs) at which a cohort may be decided, in order; a search uses few of
    them.
    """
    plan, steps = stages(epochs, folds, keep), climb(epochs)
    rungs = {(1, e) for e in steps} | {(s.folds, s.epochs) for s in plan}
    rungs |= {(s.folds, e) for s in plan for e in steps if e > s.epochs}
    return tuple(sorted(rungs | {(folds, epochs)}))


def normal_scores(values_N: Array) -> Array:
    """Places among n as quantiles of a normal distribution; ties share their mean place."""
    _, inverse, counts = np.unique(values_N, return_inverse=True, return_counts=True)
    places = (np.cumsum(counts) - counts + (counts - 1) / 2)[inverse]
    return np.asarray(ndtri((places + 0.5) / len(values_N)))


def alive(then_N: Array, now_N: Array, rule: CohortRule) -> bool:
    """Whether scores are distinct, their better quarter is stable, and it has ceased to leap."""
    count = len(now_N)
    if len(np.unique(now_N)) < count / 2:
        return False
    quarter = np.argsort(-now_N, kind="stable")[: max(2, math.ceil(count / 4))]
    medians = abs(float(np.median(then_N[quarter]))), abs(float(np.median(now_N[quarter])))
    if not min(medians) >= rule.grow * max(medians):
        return False
    places = [(then_N > v).sum() + ((then_N == v).sum() - 1) / 2 for v in then_N[quarter]]
    return bool((np.array(places) < math.ceil(count / 2)).mean() >= rule.alive)
