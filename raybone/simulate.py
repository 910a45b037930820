"""Replay schedulers on recorded learning curves, so that one can be tried before it is trusted with GPUs.

Axes: C configurations, S seeds, K folds, E epochs. Cost is counted in fold epochs: one epoch of one fold.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from raybone.hpo.race import SMOOTH, Ladder, Race, Rule, ladder
from raybone.records import Array, WrongInput

TOP = 0.05  # share of the configurations that counts as a good pick
# Settings (grace as a share of E, reduction factor) of lockstep ASHA, which are the frontier to beat.
LOCKSTEP = ((0.0, 4), (0.0, 3), (0.0, 2), (1 / 9, 4), (1 / 9, 3), (1 / 9, 2), (1 / 3, 3))
Order = Callable[["Replay"], Iterator[int]]


@dataclass(frozen=True)
class Curves:
    """Recorded scores of every configuration, more is better.

    T_CSKE: scores; seconds_C: of one fold epoch; F_CD: hyper-parameters as numbers, named by ``names``;
    steps: optimiser steps an epoch, inf when not known.
    """

    name: str
    T_CSKE: Array
    seconds_C: Array
    F_CD: Array
    names: tuple[str, ...] = ()
    steps: float = math.inf


@dataclass(frozen=True)
class Scheduler:
    """A way to search: rungs and rule of the race, given folds, epochs and steps an epoch."""

    name: str
    rungs: Callable[[int, int, float], Ladder]
    rule: Rule = field(default_factory=Rule)
    whole: bool = False  # all folds of a rung in one run


@dataclass
class Replay:
    """One search replayed: what it cost, and its pick.

    picks: (fold epochs spent, configuration) at each change of the leader.
    """

    fold_epochs: int = 0
    seconds: float = 0.0
    pick: int = -1
    scores: dict[int, float] = field(default_factory=dict)
    path: list[tuple[int, float, int]] = field(default_factory=list)


def asha_ladder(grace: float, factor: int) -> Callable[[int, int, float], Ladder]:
    """Rungs of ASHA on lockstep folds: all K folds at grace x factor^i epochs.

    Args:
        grace: first rung as a share of the epochs; 0 is one epoch.
    """
    def rungs(folds: int, epochs: int, steps: float) -> Ladder:  # noqa: ARG001
        level, made = max(1, round(grace * epochs)), []
        while level < epochs:
            made.append((folds, level))
            level *= factor
        return (*made, (folds, epochs))

    return rungs


FULL = Scheduler("full", lambda folds, epochs, steps: ((folds, epochs),), Rule(races=False))
RACES = (Scheduler("fold_race", lambda folds, epochs, steps: ladder(epochs, folds, steps)),
         Scheduler("fold_race_stopping", lambda folds, epochs, steps: ladder(epochs, folds, steps),
                   Rule(promotion=False)))
LOCKSTEPS = tuple(Scheduler(f"asha_{'1' if not g else f'E/{round(1 / g)}'}_x{f}", asha_ladder(g, f),
                            Rule(factor=f, promotion=False, races=False), whole=True) for g, f in LOCKSTEP)
SCHEDULERS = {s.name: s for s in (FULL, *RACES, *LOCKSTEPS)}


def read_curves(path: Path | str) -> Curves:
    """Read recorded curves: an npz with T (configurations, seeds, folds, epochs), cost, F and feats.

    Raises:
        WrongInput: not such a file.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            found = {k: content[k] for k in content}
    except (OSError, ValueError, EOFError) as error:
        raise WrongInput(f"--curves {path}: must be an npz of recorded curves, but: {' '.join(str(error).split())}; "
                         "`raybone search --record` writes one") from None
    missing = [k for k in ("T", "cost", "F", "feats") if k not in found]
    if missing or found["T"].ndim != 4 or min(found["T"].shape) < 1 or len(found["cost"]) != len(found["T"]):
        raise WrongInput(f"--curves {path}: must hold T (configurations, seeds, folds, epochs), cost, F and feats, got "
                         f"{({k: v.shape for k, v in found.items()})}; `raybone search --record` writes such a file")
    sign = -1 if str(found.get("direction", "maximize")) == "minimize" else 1
    return Curves(Path(path).stem, sign * found["T"].astype(float), found["cost"].astype(float),
                  found["F"].astype(float), tuple(str(f) for f in found["feats"]),
                  float(found.get("steps", math.inf)))


def measure(curves: Curves, schedulers: Sequence[Scheduler], folds: int, repeats: int, trials: int = 200,
            workers: int = 8, startup: float = 0.0, progress: Callable[[int, int], None] = lambda done, total: None,
            ) -> dict[str, Array]:
    """Replay searches with other configurations, orders, folds and seeds in each repeat, the same for all schedulers.

    Returns:
        By scheduler and for exhaustive cross-validation (``full``), an array (repeats, 4): fold epochs; excess regret
        in % (see ``_judge``); whether the pick is among the best 5 % by exhaustive cross-validation; seconds.
    """
    count, seeds, most, epochs = curves.T_CSKE.shape
    trials, folds = min(trials, count), min(folds, most)
    truth_C = curves.T_CSKE[:, :, :, -1].mean((1, 2))
    rows: dict[str, list[tuple[float, ...]]] = {}
    for repeat in range(repeats):
        rng = np.random.default_rng(repeat)
        order, chosen, seed = rng.permutation(count)[:trials], rng.permutation(most)[:folds], repeat % seeds
        final_C = curves.T_CSKE[order, seed][:, chosen, -1].mean(1)
        ranked = order[np.argsort(-final_C, kind="stable")]
        top, scale = set(ranked[: math.ceil(TOP * trials)].tolist()), abs(float(truth_C[order].max())) / 100
        for scheduler in schedulers:
            if scheduler.name == "full":
                busy = float(curves.seconds_C[order].sum()) * folds * epochs / workers + startup * trials / workers
                rows.setdefault("full", []).append((float(trials * folds * epochs), 0.0, 1.0, busy))
                continue
            out = replay(curves, scheduler, order.tolist(), chosen.tolist(), seed, workers, startup)
            excess = float(truth_C[ranked[0]] - truth_C[out.pick]) / scale
            rows.setdefault(scheduler.name, []).append((out.fold_epochs, excess, out.pick in top, out.seconds))
        progress(repeat + 1, repeats)
    return {name: np.array(values, float) for name, values in rows.items()}


def replay(curves: Curves, scheduler: Scheduler, order: Sequence[int], folds: Sequence[int], seed: int = 0,
           workers: int = 8, startup: float = 0.0) -> Replay:
    """One search over these configurations and folds, in these orders, by W workers.

    A free worker takes the promotion that is due, else a new configuration, else a fold that waits in a run at work.
    A run trains one fold after the other; each start of a run costs ``startup`` seconds.
    """
    return _Clock(curves, scheduler, order, folds, seed, workers, startup).run()


class _Clock:
    """The discrete events of one search."""

    def __init__(self, curves: Curves, scheduler: Scheduler, order: Sequence[int], folds: Sequence[int], seed: int,
                 workers: int, startup: float) -> None:
        T_CKE = curves.T_CSKE[:, seed][:, list(folds)]
        epochs = T_CKE.shape[2]
        self.race = Race(scheduler.rungs(len(folds), epochs, curves.steps), scheduler.rule)
        padded_CKE = np.cumsum(np.concatenate([np.zeros((*T_CKE.shape[:2], 1)), T_CKE], 2), 2)
        ends = [e for _, e in self.race.ladder]
        # Score of each fold at each rung: mean of the last epochs.
        self.score_RCK = np.stack([(padded_CKE[:, :, e] - padded_CKE[:, :, max(e - SMOOTH, 0)]) / min(e, SMOOTH)
                                   for e in ends])
        self.final_C = T_CKE[:, :, -1].mean(1)
        self.seconds_C, self.order, self.startup, self.whole = curves.seconds_C, list(order), startup, scheduler.whole
        self.free, self.taken, self.now = workers, 0, 0.0
        self.known: dict[int, list[int]] = {}
        self.pending: dict[int, list[tuple[int, int]]] = {}
        self.running: dict[int, int] = {}
        self.target: dict[int, int] = {}
        self.events: list[tuple[float, int, int]] = []
        self.out = Replay()

    def run(self) -> Replay:
        while True:
            while self.free and self._hand_out():
                pass
            if not self.events:
                return self.out
            self.now, _, c = heapq.heappop(self.events)
            self._ended(c)

    def _hand_out(self) -> bool:
        step = self.race.next_step()
        if step is None and self.taken < len(self.order):
            self.taken += 1
            self._begin(self.order[self.taken - 1], 0)
        elif step is None and not self.running and (step := self.race.last_push()) is None:
            return False
        elif step is not None:
            self._begin(int(step.config_id), step.rung)
        else:
            most = max(self.pending, key=lambda c: len(self.pending[c]), default=-1)
            if most < 0 or not self.pending[most] or self.whole:
                return False
            self._run(most, self.startup)
        return True

    def _begin(self, c: int, rung: int) -> None:
        folds, epochs = self.race.ladder[rung]
        self.race.go(str(c), rung)
        known = self.known.setdefault(c, [0] * self.race.ladder[-1][0])
        self.pending[c] = [(k, epochs) for k in range(folds) if known[k] < epochs]
        self.target[c], self.running[c] = rung, 0
        self._run(c, self.startup)

    def _run(self, c: int, startup: float) -> None:
        fold, epochs = self.pending[c].pop()
        length = epochs - self.known[c][fold]
        self.known[c][fold] = epochs
        self.running[c] += 1
        self.free -= 1
        self.out.fold_epochs += length
        heapq.heappush(self.events, (self.now + startup + length * self.seconds_C[c], len(self.out.path), c))

    def _ended(self, c: int) -> None:
        self.free += 1
        self.running[c] -= 1
        if self.pending[c]:
            self._run(c, 0.0)
        elif not self.running[c]:
            del self.running[c], self.pending[c]
            self._arrive(c, self.target[c])

    def _arrive(self, c: int, rung: int) -> None:
        name, count = str(c), self.race.ladder[rung][0]
        self.race.arrive(name, rung, self.score_RCK[rung, c, :count].tolist())
        decision = self.race.judge(name, rung)
        if decision:
            self.race.drop(name)
        self.out.seconds = self.now
        if decision and decision.action == "complete":
            self.out.scores[c] = float(self.final_C[c])
            best = max(self.out.scores, key=self.out.scores.__getitem__)
            if best != self.out.pick:
                self.out.pick = best
                self.out.path.append((self.out.fold_epochs, self.now, best))
