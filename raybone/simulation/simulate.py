"""Replay schedulers on recorded learning curves, so that one can be tried before it is trusted with
GPUs.

Axes: T tables, R repeats, B bootstrap resamples, C configurations. Cost is counted in fold epochs:
one epoch of one fold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from raybone.errors import WrongInput
from raybone.simulation.baselines import BASELINES, Baseline
from raybone.simulation.curves import Curves, read_curves
from raybone.simulation.replay import (
    FULL,
    LOCKSTEPS,
    SCHEDULERS,
    Draw,
    Replay,
    Scheduler,
    replay,
    smoothed,
)
from raybone.types import Array

TOP = 0.05  # share of the configurations that counts as a good pick
BEST = 0.25  # share whose folds say how large a standard error is: among the hopeless it is smaller
Measured = dict[str, dict[str, Array]]
KNOWN: dict[str, Scheduler | Baseline] = {**SCHEDULERS, **{b.name: b for b in BASELINES}}

USUAL = 5  # folds


@dataclass(frozen=True)
class Plan:
    """How searches are replayed.

    folds: of each search, None for five, or as many as a table has. trials: as far as it has them.
    repeats: with other configurations,
    orders, folds and seeds. workers: runs at once. startup: seconds that each start of a run costs.
    """

    folds: int | None = None
    repeats: int = 100
    trials: int = 200
    workers: int = 8
    startup: float = 0.0

    def folds_of(self, curves: Curves) -> int:
        """Folds of a search on a table."""
        return min(self.folds or USUAL, curves.T_CSKE.shape[2])

    def problems(self) -> list[str]:
        """What is out of range, in the words of the command line."""
        least = {"folds": 2, "repeats": 1, "trials": 2, "workers": 1, "startup": 0}
        return [
            f"--{name} {value}: must be at least {low}, got {value}; give a larger number"
            for name, low in least.items()
            if (value := getattr(self, name)) is not None and not low <= value < math.inf
        ]


def simulate(
    paths: Sequence[Path | str],
    plan: Plan = Plan(),
    schedulers: Sequence[str] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, dict[str, float]]:
    """Replay schedulers on tables of recorded curves and pool what they cost and find.

    Args:
        schedulers: names of KNOWN; all when empty. Exhaustive search and lockstep ASHA always take
            part.
    Returns:
        By scheduler: see ``summary``.
    Raises:
        WrongInput: a file is not a table of curves, or a number or name is out of range.
    """
    problems = plan.problems()
    for name in schedulers:
        if name not in KNOWN:
            known = ", ".join(KNOWN)
            problems.append(f"--schedulers: {name!r} is unknown; known are {known}")
    tables = [read_curves(path) for path in paths]
    for table in tables:
        if (plan.folds or 0) > table.T_CSKE.shape[2] >= 2:
            most = table.T_CSKE.shape[2]
            problems.append(
                f"--folds {plan.folds}: {table.name} has {most} folds; give at most that"
            )
    if problems:
        raise WrongInput(*problems)
    always = (FULL, *LOCKSTEPS)
    wanted = [s for s in KNOWN.values() if not schedulers or s.name in schedulers or s in always]
    rows = []
    for number, table in enumerate(tables):

        def tell(done: int, total: int, before: int = number * plan.repeats) -> None:
            progress(before + done, len(tables) * total)

        rows.append(measure(table, wanted, plan, tell))
    return summary(rows)


def summary(tables: Sequence[Measured], resamples: int = 500) -> dict[str, dict[str, float]]:
    """Pool measured tables: geometric mean of costs, arithmetic mean of what is lost.

    Returns:
        By scheduler: ``fold_epochs``; ``excess_regret_pct``, ``in_sample_regret_pct`` and both in
        standard errors of a configuration, ``excess_regret_ses`` and ``in_sample_regret_ses`` (see
        ``measure``), with the standard errors over repeats ``excess_regret_se`` and
        ``in_sample_regret_se``; ``top5_rate``; ``seconds``; ``speedup_vs_full``;
        ``speedup_vs_lockstep``, the cost of the lockstep ASHA setting of equal excess regret
        (interpolated; that of the best setting for one that is better than all, NaN for one that is
        worse than all) over this one's, with its 95 % interval by bootstrap over repeats,
        ``speedup_vs_lockstep_low`` and ``_high``.
    """
    pooled = {
        name: {key: np.stack([table[name][key] for table in tables]) for key in tables[0][name]}
        for name in tables[0]
    }
    repeats = len(tables[0][next(iter(pooled))]["fold_epochs"])
    draws_BR = np.random.default_rng(0).integers(repeats, size=(resamples, repeats))
    points_B2 = {
        name: np.stack(
            [
                row_TR["excess_regret_pct"][:, draws_BR].mean(2).mean(0),
                _geometric(row_TR["fold_epochs"][:, draws_BR].mean(2)),
            ],
            1,
        )
        for name, row_TR in pooled.items()
    }
    full = math.nan
    if "full" in pooled:
        full = float(_geometric(pooled["full"]["fold_epochs"].mean(1)))
    rows: dict[str, dict[str, float]] = {}
    for name, row_TR in pooled.items():
        cost = float(_geometric(row_TR["fold_epochs"].mean(1)))
        means = {key: float(values_TR.mean()) for key, values_TR in row_TR.items()}
        low, mid, high = _over_lockstep(points_B2, name)
        rows[name] = {
            **means,
            "fold_epochs": cost,
            "excess_regret_se": _error(row_TR["excess_regret_pct"]),
            "in_sample_regret_se": _error(row_TR["in_sample_regret_pct"]),
            "seconds": float(_geometric(row_TR["seconds"].mean(1))),
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
    costs = (("fold_epochs", "fold epochs", 1.0), ("seconds", "wall-clock hours", 3600.0))
    lockstep = {s.name for s in LOCKSTEPS}
    for axes, (key, label, unit) in zip(figure.subplots(1, 2, sharey=True), costs):
        frontier = sorted((rows[n][key] / unit, rows[n]["excess_regret_pct"]) for n in lockstep)
        axes.plot(*zip(*frontier), color="0.7", zorder=0, label="lockstep ASHA")
        for name, row in rows.items():
            axes.errorbar(
                row[key] / unit,
                row["excess_regret_pct"],
                row["excess_regret_se"],
                fmt="o",
                capsize=3,
                color="0.7" if name in lockstep else None,
                label=None if name in lockstep else name,
            )
        axes.set(xscale="log", xlabel=label)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("regret above exhaustive CV, % of the best score")
    figure.axes[0].legend()
    figure.savefig(path, dpi=120)


def draws_of(curves: Curves, plan: Plan) -> list[Draw]:
    """The searches of a plan."""
    count, seeds, most, _ = curves.T_CSKE.shape
    draws, searched = [], plan.folds_of(curves)
    for repeat in range(plan.repeats):
        rng = np.random.default_rng(repeat)
        order, folds = rng.permutation(count)[: plan.trials], rng.permutation(most)[:searched]
        draws.append(Draw(order.tolist(), folds.tolist(), repeat % seeds))
    return draws


def measure(
    curves: Curves,
    schedulers: Sequence[Scheduler | Baseline],
    plan: Plan,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Measured:
    """Replay searches with other configurations, orders, folds and seeds in each repeat, the same
    for all schedulers.

    A configuration's score is the mean of its last epochs, by which the race decides as well: a
    last epoch alone jitters, on a detector by as much as the best differ.

    Returns:
        By scheduler, arrays (R,): ``fold_epochs``; ``excess_regret_pct``, how much worse the pick
        is than that of exhaustive cross-validation on the same folds, judged by the mean over all
        recorded seeds and folds, in % of the best; ``in_sample_regret_pct``, the same by the very
        scores that exhaustive cross-validation chooses by; both in standard errors of a
        configuration's mean over the folds, ``_ses``; ``top5_rate``, whether the pick is among the
        5 % that exhaustive cross-validation ranks best; ``seconds``; ``out_of_sample``, whether
        more was recorded than the search sees: with one seed and no other folds, excess regret is
        in-sample regret.
    """
    count, seeds, most, _ = curves.T_CSKE.shape
    folds = plan.folds_of(curves)
    plan = replace(plan, folds=folds, trials=min(plan.trials, count))
    S_CSKE = smoothed(curves.T_CSKE)
    rows = {s.name: list[dict[str, float]]() for s in schedulers}
    for repeat, draw in enumerate(draws_of(curves, plan)):
        for scheduler in schedulers:
            S_NKE = S_CSKE[draw.order, draw.seed][:, draw.folds]
            out = _replayed(curves, scheduler, plan, draw, S_NKE)
            truth_N = S_CSKE[draw.order, ..., -1].mean((1, 2))
            found = _judged(out, draw.order, S_NKE[..., -1], truth_N)
            found["out_of_sample"] = float(seeds > 1 or folds < most)
            rows[scheduler.name].append(found)
        progress(repeat + 1, plan.repeats)
    return {
        name: {key: np.array([row[key] for row in found], float) for key in found[0]}
        for name, found in rows.items()
    }


def _replayed(
    curves: Curves, scheduler: Scheduler | Baseline, plan: Plan, draw: Draw, S_NKE: Array
) -> Replay:
    """One search; of exhaustive search no pick, as it is what every pick is measured by."""
    if isinstance(scheduler, Scheduler) and scheduler is not FULL:
        return replay(curves, scheduler, draw, plan.workers, plan.startup)
    if isinstance(scheduler, Baseline):
        found = scheduler.search(S_NKE)
        epochs_N, pick = found.epochs_N, draw.order[found.pick]
    else:  # any order of work keeps all workers busy
        epochs_N, pick = np.full(plan.trials, S_NKE.shape[1] * S_NKE.shape[2]), -1
    seconds = float(curves.seconds_C[draw.order] @ epochs_N) + plan.startup * plan.trials
    return Replay(int(epochs_N.sum()), seconds / plan.workers, pick)


def _judged(out: Replay, order: Sequence[int], final_NK: Array, truth_N: Array) -> dict[str, float]:
    """A row of ``measure``: final scores of the search's folds, and over all folds and seeds."""
    final_N = final_NK.mean(1)
    ranked = np.argsort(-final_N, kind="stable")
    best = ranked[0]
    pick = order.index(out.pick) if out.pick >= 0 else int(best)
    excess, inside = float(truth_N[best] - truth_N[pick]), float(final_N[best] - final_N[pick])
    error = _standard_error(final_NK[ranked[: max(2, math.ceil(BEST * len(ranked)))]])
    scales = abs(float(truth_N.max())) / 100 or 0.01, abs(float(final_N[best])) / 100 or 0.01
    return {
        "fold_epochs": out.fold_epochs,
        "excess_regret_pct": excess / scales[0],
        "excess_regret_ses": excess / error,
        "in_sample_regret_pct": inside / scales[1],
        "in_sample_regret_ses": inside / error,
        "top5_rate": float(pick in ranked[: math.ceil(TOP * len(ranked))]),
        "seconds": out.seconds,
    }


def _standard_error(final_CK: Array) -> float:
    """Standard error of a configuration's mean over the folds, without what the folds have in
    common; of the smallest positive size where there is none.
    """
    rest_CK = final_CK - final_CK.mean(0) - final_CK.mean(1, keepdims=True) + final_CK.mean()
    count, folds = final_CK.shape
    variance = float((rest_CK**2).sum()) / max(1, (count - 1) * (folds - 1))
    return math.sqrt(variance / folds) or 1e-12


def _over_lockstep(points_B2: Mapping[str, Array], name: str) -> tuple[float, float, float]:
    """2.5, 50 and 97.5 % of what lockstep ASHA costs at a scheduler's excess regret over what it
    costs itself; NaN where most resamples have no answer.

    Args:
        points_B2: (excess regret, cost) of each resample, by scheduler.
    """
    locks = [points_B2[s.name] for s in LOCKSTEPS if s.name in points_B2]
    ratios = []
    for resample, (excess, cost) in enumerate(points_B2[name]):
        ratios.append(_frontier([lock_B2[resample] for lock_B2 in locks], excess) / cost)
    known = np.isfinite(ratios)
    if known.mean() <= 0.5:
        return math.nan, math.nan, math.nan
    low, mid, high = np.quantile(np.array(ratios)[known], [0.025, 0.5, 0.975])
    return float(low), float(mid), float(high)


def _frontier(points: Sequence[Array], excess: float) -> float:
    """Cost at this excess regret on the lower edge of (excess, cost) points; below it that of its
    best point, above it, and without points, NaN.
    """
    edge: list[tuple[float, float]] = []
    for regret, cost in sorted(map(tuple, points)):
        if not edge or cost < edge[-1][1]:
            edge.append((regret, cost))
    if not edge:
        return math.nan
    regrets, logs = [regret for regret, _ in edge], [math.log(cost) for _, cost in edge]
    return float(np.exp(np.interp(excess, regrets, logs, right=math.nan)))


def _error(values_TR: Array) -> float:
    """Standard error over repeats of a mean over tables."""
    tables, repeats = values_TR.shape
    return math.sqrt(float(values_TR.var(1).sum()) / repeats) / tables


def _geometric(values: Array) -> Array:
    return np.asarray(np.exp(np.log(np.maximum(values, 1e-9)).mean(0)))
