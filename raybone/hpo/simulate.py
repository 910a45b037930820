"""Replay schedulers on recorded learning curves, so that one can be tried before it is trusted with
GPUs.

Axes: C configurations, S seeds, K folds, E epochs, R repeats. Cost is counted in fold epochs: one
epoch of one fold.
"""

from __future__ import annotations

import heapq
import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from raybone.errors import WrongInput
from raybone.hpo.fold_race import SMOOTH, Ladder, Race, Rule, ladder
from raybone.types import Array

TOP = 0.05  # share of the configurations that counts as a good pick
# Settings (grace as a share of E, reduction factor) of lockstep ASHA, which are the frontier to
# beat.
LOCKSTEP = ((0.0, 4), (0.0, 3), (0.0, 2), (1 / 9, 4), (1 / 9, 3), (1 / 9, 2), (1 / 3, 3))


@dataclass(frozen=True)
class Curves:
    """Recorded scores of every configuration, more is better.

    T_CSKE: scores; seconds_C: of one fold epoch; steps: optimiser steps an epoch, inf when not
    known.
    """

    name: str
    T_CSKE: Array
    seconds_C: Array
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
    """One search replayed: what it cost, its pick, and the scores of those that ran in full."""

    fold_epochs: int = 0
    seconds: float = 0.0
    pick: int = -1
    scores: dict[int, float] = field(default_factory=dict)


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
RACES = (
    Scheduler("fold_race", lambda folds, epochs, steps: ladder(epochs, folds, steps)),
    Scheduler(
        "fold_race_stopping",
        lambda folds, epochs, steps: ladder(epochs, folds, steps),
        Rule(promotion=False),
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
SCHEDULERS = {s.name: s for s in (FULL, *RACES, *LOCKSTEPS)}


def read_curves(path: Path | str) -> Curves:
    """Read recorded curves: an npz with T (configurations, seeds, folds, epochs) and cost.

    Raises:
        WrongInput: not such a file.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            found = {k: np.asarray(content[k]) for k in content.files}
    except (OSError, ValueError, AttributeError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise WrongInput(
            f"--curves {path}: must be an npz of recorded curves, but: "
            f"{' '.join(str(error).split())}; `raybone search --record` writes one"
        ) from None
    shapes = {k: (found[k].ndim, len(found[k]) if found[k].ndim else 0) for k in found}
    count = shapes.get("T", (0, 0))[1]
    if [shapes.get(k) for k in ("T", "cost")] != [(4, count), (1, count)] or min(
        found["T"].shape
    ) < 1:
        raise WrongInput(
            f"--curves {path}: must hold T (configurations, seeds, folds, epochs) and cost, got "
            f"{ ({k: v.shape for k, v in found.items()}) }; `raybone search --record` writes such "
            "a file"
        )
    for name in ("T", "cost"):
        if found[name].dtype.kind not in "fiu" or not np.isfinite(found[name]).all():
            raise WrongInput(
                f"--curves {path}: {name} must be finite numbers, but is not; put the worst score "
                "in the place of a missing one"
            )
    sign = -1 if str(found.get("direction", "maximize")) == "minimize" else 1
    return Curves(
        Path(path).stem,
        sign * found["T"].astype(float),
        found["cost"].astype(float),
        float(found.get("steps", math.inf)),
    )


def simulate(
    paths: Sequence[Path | str],
    folds: int = 5,
    repeats: int = 100,
    trials: int = 200,
    workers: int = 8,
    startup: float = 0.0,
    schedulers: Sequence[str] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, dict[str, float]]:
    """Replay schedulers on tables of recorded curves and pool what they cost and find.

    Args:
        schedulers: names of SCHEDULERS; all when empty. Exhaustive search and lockstep ASHA always
            take part.
        startup: seconds that each start of a run costs.
    Returns:
        By scheduler: see ``summary``.
    Raises:
        WrongInput: a file is not a table of curves, or a number or name is out of range.
    """
    problems = [
        f"--{name} {value}: must be at least {least}, got {value}; give a larger number"
        for name, value, least in (
            ("folds", folds, 2),
            ("repeats", repeats, 1),
            ("trials", trials, 2),
            ("workers", workers, 1),
            ("startup", startup, 0),
        )
        if not least <= value < math.inf
    ]
    problems += [
        f"--schedulers: {n!r} is unknown; known are {', '.join(SCHEDULERS)}"
        for n in schedulers
        if n not in SCHEDULERS
    ]
    tables = [read_curves(path) for path in paths]
    problems += [
        f"--folds {folds}: {t.name} has {t.T_CSKE.shape[2]} folds; give at most that"
        for t in tables
        if folds > t.T_CSKE.shape[2] >= 2
    ]
    if problems:
        raise WrongInput(*problems)
    wanted = [
        s
        for s in SCHEDULERS.values()
        if not schedulers or s.name in schedulers or s is FULL or s in LOCKSTEPS
    ]
    rows = []
    for number, table in enumerate(tables):

        def tell(done: int, total: int, before: int = number * repeats) -> None:
            progress(before + done, len(tables) * total)

        rows.append(measure(table, wanted, folds, repeats, trials, workers, startup, tell))
    return summary(rows)


def summary(
    tables: Sequence[Mapping[str, Array]], resamples: int = 500
) -> dict[str, dict[str, float]]:
    """Pool measured tables: geometric mean of costs, arithmetic mean of excess regret.

    Returns:
        By scheduler: ``fold_epochs``; ``excess_regret_pct`` with standard error
        ``excess_regret_se``; ``top5_rate``; ``seconds``; ``speedup_vs_full``;
        ``speedup_vs_lockstep``, the cost of the lockstep ASHA setting of equal excess regret
        (interpolated; that of the best setting for one that is better than all, NaN for one that is
        worse than all) over this one's, with its 95 % interval by bootstrap over repeats,
        ``speedup_vs_lockstep_low`` and ``_high``.
    """
    repeats = len(next(iter(tables[0].values())))
    draws_BR = np.random.default_rng(0).integers(repeats, size=(resamples, repeats))
    drawn = {name: np.stack([t[name][draws_BR, :2].mean(1) for t in tables]) for name in tables[0]}
    cost_B = {name: _geometric(d[:, :, 0]) for name, d in drawn.items()}
    excess_B = {name: d[:, :, 1].mean(0) for name, d in drawn.items()}
    locks = [s.name for s in LOCKSTEPS if s.name in drawn]
    rows: dict[str, dict[str, float]] = {}
    for name in tables[0]:
        mean = np.stack([t[name].mean(0) for t in tables])
        against = (
            [
                _frontier([(excess_B[n][b], cost_B[n][b]) for n in locks], excess_B[name][b])
                / cost_B[name][b]
                for b in range(resamples)
            ]
            if locks
            else [math.nan]
        )
        known = np.isfinite(against)
        low, mid, high = (
            (float(v) for v in np.quantile(np.array(against)[known], [0.025, 0.5, 0.975]))
            if known.mean() > 0.5
            else (math.nan,) * 3
        )
        full = (
            float(_geometric(np.stack([t["full"].mean(0)[0] for t in tables])))
            if "full" in tables[0]
            else math.nan
        )
        cost = float(_geometric(mean[:, 0]))
        rows[name] = {
            "fold_epochs": cost,
            "excess_regret_pct": float(mean[:, 1].mean()),
            "excess_regret_se": float(
                np.sqrt(sum(t[name][:, 1].var() / repeats for t in tables)) / len(tables)
            ),
            "top5_rate": float(mean[:, 2].mean()),
            "seconds": float(_geometric(mean[:, 3])),
            "speedup_vs_full": full / cost,
            "speedup_vs_lockstep": mid,
            "speedup_vs_lockstep_low": low,
            "speedup_vs_lockstep_high": high,
        }
    return rows


def plot(rows: Mapping[str, Mapping[str, float]], path: Path | str) -> None:
    """Draw excess regret against fold epochs and wall-clock into an image file; lockstep ASHA as a
    line.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    for axes, (key, label, unit) in zip(
        figure.subplots(1, 2, sharey=True),
        (("fold_epochs", "fold epochs", 1.0), ("seconds", "wall-clock hours", 3600.0)),
    ):
        locks = sorted(
            (rows[s.name][key] / unit, rows[s.name]["excess_regret_pct"]) for s in LOCKSTEPS
        )
        axes.plot(*zip(*locks), color="0.7", zorder=0, label="lockstep ASHA")
        for name, row in rows.items():
            lock = name.startswith("asha")
            axes.errorbar(
                row[key] / unit,
                row["excess_regret_pct"],
                row["excess_regret_se"],
                fmt="o",
                capsize=3,
                color="0.7" if lock else None,
                label=None if lock else name,
            )
        axes.set(xscale="log", xlabel=label)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("regret above exhaustive CV, % of the best score")
    figure.axes[0].legend()
    figure.savefig(path, dpi=120)


def measure(
    curves: Curves,
    schedulers: Sequence[Scheduler],
    folds: int,
    repeats: int,
    trials: int = 200,
    workers: int = 8,
    startup: float = 0.0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Array]:
    """Replay searches with other configurations, orders, folds and seeds in each repeat, the same
    for all schedulers.

    Returns:
        By scheduler, an array (R, 4): fold epochs; excess regret, which is how much worse the pick
        is than that of exhaustive cross-validation on the same folds, judged by the mean over all
        recorded seeds and folds, in % of the best; whether the pick is among the 5 % that
        exhaustive cross-validation ranks best; seconds.
    """
    count, seeds, most, epochs = curves.T_CSKE.shape
    trials, folds = min(trials, count), min(folds, most)
    truth_C = curves.T_CSKE[:, :, :, -1].mean((1, 2))
    rows: dict[str, list[tuple[float, ...]]] = {}
    for repeat in range(repeats):
        rng = np.random.default_rng(repeat)
        order, chosen, seed = (
            rng.permutation(count)[:trials],
            rng.permutation(most)[:folds],
            repeat % seeds,
        )
        final_C = curves.T_CSKE[order, seed][:, chosen, -1].mean(1)
        ranked = order[np.argsort(-final_C, kind="stable")]
        top, scale = (
            set(ranked[: math.ceil(TOP * trials)].tolist()),
            abs(float(truth_C[order].max())) / 100 or 0.01,
        )
        for scheduler in schedulers:
            if scheduler.name == "full":
                busy = (
                    float(curves.seconds_C[order].sum()) * folds * epochs / workers
                    + startup * trials / workers
                )
                rows.setdefault("full", []).append((float(trials * folds * epochs), 0.0, 1.0, busy))
                continue
            out = replay(curves, scheduler, order.tolist(), chosen.tolist(), seed, workers, startup)
            excess = float(truth_C[ranked[0]] - truth_C[out.pick]) / scale
            rows.setdefault(scheduler.name, []).append(
                (out.fold_epochs, excess, out.pick in top, out.seconds)
            )
        progress(repeat + 1, repeats)
    return {name: np.array(values, float) for name, values in rows.items()}


def replay(
    curves: Curves,
    scheduler: Scheduler,
    order: Sequence[int],
    folds: Sequence[int],
    seed: int = 0,
    workers: int = 8,
    startup: float = 0.0,
) -> Replay:
    """One search over these configurations and folds, in these orders, by W workers.

    A free worker takes the promotion that is due, else a new configuration, else a fold that waits
    in a run at work. A run trains one fold after the other; each start of a run costs ``startup``
    seconds.
    """
    return Clock(curves, scheduler, order, folds, seed, workers, startup).run()


def _frontier(points: Sequence[tuple[float, float]], excess: float) -> float:
    """Cost at this excess regret on the lower edge of (excess, cost) points; below it that of its
    best point, above it NaN.
    """
    edge: list[tuple[float, float]] = []
    for regret, cost in sorted(points):
        if not edge or cost < edge[-1][1]:
            edge.append((regret, cost))
    return float(
        np.exp(
            np.interp(excess, [e for e, _ in edge], [math.log(c) for _, c in edge], right=math.nan)
        )
    )


def _geometric(values: Array) -> Array:
    return np.asarray(np.exp(np.log(np.maximum(values, 1e-9)).mean(0)))


class Clock:
    """The discrete events of one search; ``replay`` is the way in."""

    def __init__(
        self,
        curves: Curves,
        scheduler: Scheduler,
        order: Sequence[int],
        folds: Sequence[int],
        seed: int,
        workers: int,
        startup: float,
    ) -> None:
        T_CKE = curves.T_CSKE[:, seed][:, list(folds)]
        epochs = T_CKE.shape[2]
        self.race = Race(scheduler.rungs(len(folds), epochs, curves.steps), scheduler.rule)
        padded_CKE = np.cumsum(np.concatenate([np.zeros((*T_CKE.shape[:2], 1)), T_CKE], 2), 2)
        ends = [e for _, e in self.race.ladder]
        # Score of each fold at each rung: mean of the last epochs.
        self.score_RCK = np.stack(
            [
                (padded_CKE[:, :, e] - padded_CKE[:, :, max(e - SMOOTH, 0)]) / min(e, SMOOTH)
                for e in ends
            ]
        )
        self.final_C = T_CKE[:, :, -1].mean(1)
        self.seconds_C, self.order, self.startup, self.whole = (
            curves.seconds_C,
            list(order),
            startup,
            scheduler.whole,
        )
        self.free, self.taken, self.now = workers, 0, 0.0
        self.known: dict[int, list[int]] = {}
        self.pending: dict[int, list[tuple[int, int]]] = {}
        self.running: dict[int, int] = {}
        self.target: dict[int, int] = {}
        self.events: list[tuple[float, int, int]] = []
        self.out = Replay()

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
        step = self.race.next_step(self.free if self.taken == len(self.order) else 0)
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
        heapq.heappush(
            self.events, (self.now + startup + length * self.seconds_C[c], self.out.fold_epochs, c)
        )

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
            self.race.end(name, "stop" if decision.action == "stop" else "complete")
        self.out.seconds = self.now
        if decision and decision.action == "complete":
            self.out.scores[c] = float(self.final_C[c])
            self.out.pick = max(self.out.scores, key=self.out.scores.__getitem__)
