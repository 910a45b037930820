"""What no scheduler can be asked to beat: the cheapest static ladder, chosen with the answers
known.

Axes: R searches, N configurations in the order in which they are tried, K folds, E epochs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from raybone.simulation.curves import Curves
from raybone.simulation.replay import Draw, smoothed
from raybone.types import Array

STARTS, STEPS = 6, 3000  # climbs from the whole grid, and changes that each tries
LONGEST = 7  # rungs of a ladder


@dataclass(frozen=True)
class Stage:
    """A rung, and how many configurations get to it."""

    folds: int
    epochs: int
    count: int


@dataclass(frozen=True)
class Limit:
    """The ladder, its fold epochs, and how far its picks are behind those of exhaustive search, in
    % of the best by the folds that were searched.
    """

    ladder: tuple[Stage, ...]
    fold_epochs: float
    regret_pct: float


def limit(
    curves: Curves,
    draws: Sequence[Draw],
    regret_pct: float,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Limit:
    """The cheapest ladder that a local search finds whose picks are behind by at most so much in
    the mean.

    It decides each rung at once, over all configurations, and was chosen on the searches that it is
    measured by: a bound that a fair scheduler is not expected to reach.
    """
    S_CSKE = smoothed(curves.T_CSKE)
    S_RNKE = np.stack([S_CSKE[list(d.order), d.seed][:, list(d.folds)] for d in draws])
    means_RNKE = np.cumsum(S_RNKE, 2) / np.arange(1, S_RNKE.shape[2] + 1)[:, None]
    _, count, folds, epochs = S_RNKE.shape
    whole = Limit((Stage(folds, epochs, count),), float(count * folds * epochs), 0.0)
    found = []
    for start in range(STARTS):
        best, rng = whole, np.random.default_rng(start)
        for _ in range(STEPS):
            ladder = _changed(best.ladder, count, folds, epochs, rng)
            cost = _cost(ladder)
            if cost < best.fold_epochs and (regret := _regret(means_RNKE, ladder)) <= regret_pct:
                best = Limit(ladder, cost, regret)
        found.append(best)
        progress(start + 1, STARTS)
    return min(found, key=lambda best: best.fold_epochs)


def _changed(
    ladder: tuple[Stage, ...], count: int, folds: int, epochs: int, rng: np.random.Generator
) -> tuple[Stage, ...]:
    """A ladder nearby: a rung more, less, or moved, and the survivors of some rungs changed."""
    stages = list(ladder)
    place = int(rng.integers(len(stages)))
    kind = rng.random()
    if kind < 0.35 and len(stages) < LONGEST:
        new = Stage(int(rng.integers(1, folds + 1)), int(rng.integers(1, epochs + 1)), count)
        stages.insert(place, new)
    elif kind < 0.45 and len(stages) > 1:
        del stages[min(place, len(stages) - 2)]
    elif kind < 0.7 and place < len(stages) - 1:
        old = stages[place]
        near = int(np.clip(old.epochs + rng.integers(-3, 4), 1, epochs))
        stages[place] = Stage(int(np.clip(old.folds + rng.integers(-1, 2), 1, folds)), near, count)
    stages.sort(key=lambda s: (s.epochs, s.folds))
    counts = [count]
    for before, stage in zip(stages, stages[1:]):
        # Counts of rungs that are kept stay near what they were.
        size = stage.count if stage.count < count else before.count * rng.uniform(0.2, 0.9)
        if rng.random() < 0.4:
            size *= rng.uniform(0.6, 1.1)
        counts.append(max(1, min(round(size), counts[-1])))
    return tuple(Stage(s.folds, s.epochs, n) for s, n in zip(stages, counts))


def _cost(ladder: Sequence[Stage]) -> float:
    """Fold epochs: of each rung those that the rungs before have not trained."""
    spent, trained = 0.0, dict[int, int]()
    for stage in ladder:
        for fold in range(stage.folds):
            spent += stage.count * max(0, stage.epochs - trained.get(fold, 0))
            trained[fold] = max(stage.epochs, trained.get(fold, 0))
    return spent


def _regret(means_RNKE: Array, ladder: Sequence[Stage]) -> float:
    """Mean over the searches, in % of the best."""
    final_RN = means_RNKE[:, :, -1, -1]
    left_RN = np.tile(np.arange(final_RN.shape[1]), (len(final_RN), 1))
    for stage, after in zip(ladder, ladder[1:]):
        score_RN = np.take_along_axis(
            means_RNKE[:, :, stage.folds - 1, stage.epochs - 1], left_RN, 1
        )
        order_RN = np.argsort(-score_RN, 1, kind="stable")[:, : after.count]
        left_RN = np.take_along_axis(left_RN, order_RN, 1)
    found_R = np.take_along_axis(final_RN, left_RN, 1).max(1)
    top_R = final_RN.max(1)
    return float((100 * (top_R - found_R) / np.abs(top_R)).mean())
