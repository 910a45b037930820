"""One search replayed on recorded curves: a scheduler decides, and a clock counts what it costs.

Axes: C configurations, R rungs, K folds, E epochs. Cost is counted in fold epochs: one epoch of one
fold.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from raybone.hpo.cohort.plan import CohortRule, cohort_ladder
from raybone.hpo.cohort.race import CohortRace
from raybone.hpo.fold_race import SMOOTH, Ladder, Race, Rule, ladder
from raybone.simulation.curves import Curves
from raybone.types import Array

# Settings (grace as a share of E, reduction factor) of lockstep ASHA, which are the frontier to
# beat.
LOCKSTEP = ((0.0, 4), (0.0, 3), (0.0, 2), (1 / 9, 4), (1 / 9, 3), (1 / 9, 2), (1 / 3, 3))


@dataclass(frozen=True)
class Scheduler:
    """A way to search: rule of the race, and its rungs, given epochs, folds and steps an epoch."""

    name: str
    rungs: Callable[[int, int, float], Ladder]
    rule: Rule | CohortRule = field(default_factory=Rule)
    whole: bool = False  # all folds of a rung in one run

    def race(self, curves: Curves, draw: Draw, workers: int) -> Race | CohortRace:
        """The race of one search."""
        rungs = self.rungs(curves.T_CSKE.shape[3], len(draw.folds), curves.steps)
        if isinstance(self.rule, CohortRule):
            X_CD = curves.X_CD
            pool = None if X_CD is None else {str(c): X_CD[c] for c in draw.order}
            trials = len(draw.order)
            race = CohortRace(rungs, trials, self.rule, pool=pool)
            race.workers = workers
            return race
        return Race(rungs, self.rule)


@dataclass(frozen=True)
class Draw:
    """What one search is about: configurations and folds in the order in which it takes them, and
    which of the recorded seeds.
    """

    order: Sequence[int]
    folds: Sequence[int]
    seed: int = 0


@dataclass
class Replay:
    """One search replayed: what it cost, its pick, and the scores of those that ran in full."""

    fold_epochs: int = 0
    seconds: float = 0.0
    pick: int = -1
    scores: dict[int, float] = field(default_factory=dict)
    race: Race | CohortRace | None = None


def asha_ladder(grace: float, factor: int) -> Callable[[int, int, float], Ladder]:
    """Rungs of ASHA on lockstep folds: all K folds at grace x factor^i epochs.

    Args:
        grace: first rung as a share of the epochs; 0 is one epoch.
    """

    def rungs(epochs: int, folds: int, steps: float) -> Ladder:  # noqa: ARG001
        level, made = max(1, round(grace * epochs)), []
        while level < epochs:
            made.append((folds, level))
            level *= factor
        return (*made, (folds, epochs))

    return rungs


FULL = Scheduler("full", lambda epochs, folds, steps: ((folds, epochs),), Rule(races=False))
RACES = (
    Scheduler("fold_race", ladder),
    Scheduler("fold_race_stopping", ladder, Rule(promotion=False)),
)
COHORTS = (
    Scheduler(
        "cohort_race", lambda epochs, folds, steps: cohort_ladder(epochs, folds), CohortRule()
    ),
)
LOCKSTEPS = tuple(
    Scheduler(
        f"asha_{'1' if not g else f'E/{round(1 / g)}'}_x{f}",
        asha_ladder(g, f),
        Rule(factor=f, promotion=False, races=False),
        whole=True,
    )
    for g, f in LOCKSTEP
)
SCHEDULERS = {s.name: s for s in (FULL, *RACES, *COHORTS, *LOCKSTEPS)}


def replay(
    curves: Curves, scheduler: Scheduler, draw: Draw, workers: int = 8, startup: float = 0.0
) -> Replay:
    """One search by W workers.

    A free worker takes the promotion that is due, else a new configuration, else a fold that waits
    in a run at work. A run trains one fold after the other; each start of a run costs ``startup``
    seconds.
    """
    return _Clock(curves, scheduler, draw, workers, startup).run()


@dataclass
class _Work:
    """A configuration on its way to a rung: folds that wait, and how many are at work."""

    rung: int
    waiting: list[int]
    running: int = 0


class _Clock:
    """The discrete events of one search."""

    def __init__(
        self, curves: Curves, scheduler: Scheduler, draw: Draw, workers: int, startup: float
    ) -> None:
        T_CKE = curves.T_CSKE[:, draw.seed][:, list(draw.folds)]
        self.race = scheduler.race(curves, draw, workers)
        ends = [e - 1 for _, e in self.race.ladder]
        self.score_RCK = np.moveaxis(smoothed(T_CKE)[:, :, ends], 2, 0)
        self.final_C = smoothed(T_CKE)[:, :, -1].mean(1)
        self.seconds_C, self.startup, self.whole = curves.seconds_C, startup, scheduler.whole
        self.model, self.x = curves.model, curves.x
        self.untried = {str(c): c for c in draw.order}
        self.free, self.now = workers, 0.0
        # Epochs of each fold, by configuration.
        self.known: dict[int, list[int]] = {}
        self.at_work: dict[int, _Work] = {}
        self.events: list[tuple[float, int, int]] = []
        self.out = Replay(race=self.race)

    def run(self) -> Replay:
        """Play to the end."""
        while True:
            while self.free and self._hand_out():
                pass
            if not self.events:
                return self.out
            self.now, _, c = heapq.heappop(self.events)
            self._ended(c)

    def _hand_out(self) -> bool:
        """Give a free worker something to do; returns False where there is nothing for it."""
        key = self.race.next_new() if self.untried else None
        step = self.race.next_step(self.free if key is None else 0)
        key = key if step is None else None
        if key is not None:
            name = key or next(iter(self.untried))
            if isinstance(self.race, CohortRace):
                self.race.begin(name, key, self.x(int(name)), self.model(int(name)))
            self._begin(self.untried.pop(name), self.race.first)
            return True
        if step is None and not self.at_work:
            step = self.race.last_push()
        elif step is None:
            most = max(self.at_work, key=lambda c: len(self.at_work[c].waiting))
            if self.whole or not self.at_work[most].waiting:
                return False
            self._run(most, self.startup)
            return True
        if step is None:
            return False
        self._begin(int(step.config_id), step.rung)
        return True

    def _begin(self, c: int, rung: int) -> None:
        folds, epochs = self.race.ladder[rung]
        self.race.go(str(c), rung)
        known = self.known.setdefault(c, [0] * self.race.ladder[-1][0])
        self.at_work[c] = _Work(rung, [k for k in range(folds) if known[k] < epochs])
        self._run(c, self.startup)

    def _run(self, c: int, startup: float) -> None:
        work, known = self.at_work[c], self.known[c]
        fold, epochs = work.waiting.pop(), self.race.ladder[work.rung][1]
        length = epochs - known[fold]
        known[fold] = epochs
        work.running += 1
        self.free -= 1
        self.out.fold_epochs += length
        end = self.now + startup + length * self.seconds_C[c]
        heapq.heappush(self.events, (end, self.out.fold_epochs, c))

    def _ended(self, c: int) -> None:
        self.free += 1
        work = self.at_work[c]
        work.running -= 1
        if work.waiting:
            self._run(c, 0.0)
        elif not work.running:
            del self.at_work[c]
            self._arrive(c, work.rung)

    def _arrive(self, c: int, rung: int) -> None:
        name, count = str(c), self.race.ladder[rung][0]
        folds = self.score_RCK[rung, c, :count].tolist()
        self.race.arrive(name, rung, folds, model=self.model(c))
        self.out.seconds = self.now
        decision = self.race.judge(name, rung)
        if decision is None:
            return
        complete = decision.action == "complete"
        self.race.end(name, "complete" if complete else "stop")
        if complete:
            self.out.scores[c] = float(self.final_C[c])
            self.out.pick = max(self.out.scores, key=self.out.scores.__getitem__)


def smoothed(T: Array) -> Array:
    """Mean of each epoch and up to two before it, along the last axis: what a race decides by."""
    length = T.shape[-1]
    sums = np.cumsum(np.concatenate([np.zeros((*T.shape[:-1], 1)), T], -1), -1)
    ends = np.arange(1, length + 1)
    begins = np.maximum(ends - SMOOTH, 0)
    return np.asarray((sums[..., ends] - sums[..., begins]) / (ends - begins))
