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
from raybone.hpo.curves import Curves, read_curves
from raybone.hpo.replay import FULL, LOCKSTEPS, SCHEDULERS, Draw, Scheduler, replay
from raybone.types import Array

TOP = 0.05  # share of the configurations that counts as a good pick


@dataclass(frozen=True)
class Plan:
    """How searches are replayed.

    folds, trials: of each search, as far as a table has them. repeats: with other configurations,
    orders, folds and seeds. workers: runs at once. startup: seconds that each start of a run costs.
    """

    folds: int = 5
    repeats: int = 100
    trials: int = 200
    workers: int = 8
    startup: float = 0.0

    def problems(self) -> list[str]:
        """What is out of range, in the words of the command line."""
        least = {"folds": 2, "repeats": 1, "trials": 2, "workers": 1, "startup": 0}
        return [
            f"--{name} {getattr(self, name)}: must be at least {low}, got {getattr(self, name)}; "
            "give a larger number"
            for name, low in least.items()
            if not low <= getattr(self, name) < math.inf
        ]


def simulate(
    paths: Sequence[Path | str],
    plan: Plan = Plan(),
    schedulers: Sequence[str] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, dict[str, float]]:
    """Replay schedulers on tables of recorded curves and pool what they cost and find.

    Args:
        schedulers: names of SCHEDULERS; all when empty. Exhaustive search and lockstep ASHA always
            take part.
    Returns:
        By scheduler: see ``summary``.
    Raises:
        WrongInput: a file is not a table of curves, or a number or name is out of range.
    """
    problems = plan.problems()
    for name in schedulers:
        if name not in SCHEDULERS:
            known = ", ".join(SCHEDULERS)
            problems.append(f"--schedulers: {name!r} is unknown; known are {known}")
    tables = [read_curves(path) for path in paths]
    for table in tables:
        if plan.folds > table.T_CSKE.shape[2] >= 2:
            most = table.T_CSKE.shape[2]
            problems.append(
                f"--folds {plan.folds}: {table.name} has {most} folds; give at most that"
            )
    if problems:
        raise WrongInput(*problems)
    always = (FULL, *LOCKSTEPS)
    wanted = [
        s for s in SCHEDULERS.values() if not schedulers or s.name in schedulers or s in always
    ]
    rows = []
    for number, table in enumerate(tables):

        def tell(done: int, total: int, before: int = number * plan.repeats) -> None:
            progress(before + done, len(tables) * total)

        rows.append(measure(table, wanted, plan, tell))
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
    pooled = {name: np.stack([table[name] for table in tables]) for name in tables[0]}
    repeats = len(next(iter(tables[0].values())))
    draws_BR = np.random.default_rng(0).integers(repeats, size=(resamples, repeats))
    points_B2: dict[str, Array] = {}
    for name, rows_TR4 in pooled.items():
        means_TB2 = rows_TR4[:, draws_BR, :2].mean(2)
        points_B2[name] = np.stack([means_TB2[:, :, 1].mean(0), _geometric(means_TB2[:, :, 0])], 1)
    full = float(_geometric(pooled["full"].mean(1)[:, 0])) if "full" in pooled else math.nan
    rows: dict[str, dict[str, float]] = {}
    for name, rows_TR4 in pooled.items():
        mean_T4 = rows_TR4.mean(1)
        cost = float(_geometric(mean_T4[:, 0]))
        variance = sum(float(regret_R.var()) / repeats for regret_R in rows_TR4[:, :, 1])
        low, mid, high = _over_lockstep(points_B2, name)
        rows[name] = {
            "fold_epochs": cost,
            "excess_regret_pct": float(mean_T4[:, 1].mean()),
            "excess_regret_se": math.sqrt(variance) / len(tables),
            "top5_rate": float(mean_T4[:, 2].mean()),
            "seconds": float(_geometric(mean_T4[:, 3])),
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


def measure(
    curves: Curves,
    schedulers: Sequence[Scheduler],
    plan: Plan,
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
    count, seeds, most, _ = curves.T_CSKE.shape
    plan = replace(plan, folds=min(plan.folds, most), trials=min(plan.trials, count))
    rows: dict[str, list[tuple[float, ...]]] = {s.name: [] for s in schedulers}
    for repeat in range(plan.repeats):
        rng = np.random.default_rng(repeat)
        order, folds = rng.permutation(count)[: plan.trials], rng.permutation(most)[: plan.folds]
        draw = Draw(order.tolist(), folds.tolist(), repeat % seeds)
        for scheduler in schedulers:
            rows[scheduler.name].append(_measured(curves, scheduler, plan, draw))
        progress(repeat + 1, plan.repeats)
    return {name: np.array(values, float) for name, values in rows.items()}


def _measured(
    curves: Curves, scheduler: Scheduler, plan: Plan, draw: Draw
) -> tuple[float, float, float, float]:
    """A row of ``measure``: fold epochs, excess regret, whether the pick is good, seconds."""
    if scheduler is FULL:
        # Every pick is measured by what this finds, and any order of work keeps all workers busy.
        epochs = plan.folds * curves.T_CSKE.shape[3]
        seconds = float(curves.seconds_C[draw.order].sum()) * epochs + plan.startup * plan.trials
        return plan.trials * epochs, 0.0, 1.0, seconds / plan.workers
    truth_C = curves.T_CSKE[:, :, :, -1].mean((1, 2))
    final_C = curves.T_CSKE[draw.order, draw.seed][:, draw.folds, -1].mean(1)
    ranked = np.array(draw.order)[np.argsort(-final_C, kind="stable")]
    scale = abs(float(truth_C[draw.order].max())) / 100 or 0.01
    out = replay(curves, scheduler, draw, plan.workers, plan.startup)
    excess = float(truth_C[ranked[0]] - truth_C[out.pick]) / scale
    good = out.pick in ranked[: math.ceil(TOP * plan.trials)]
    return out.fold_epochs, excess, float(good), out.seconds


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


def _geometric(values: Array) -> Array:
    return np.asarray(np.exp(np.log(np.maximum(values, 1e-9)).mean(0)))
