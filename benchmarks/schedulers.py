"""Schedulers on recorded curves: the rule's constants are chosen on one half of the configurations, the figures come
from the other half and from the whole, and from tables of real training in benchmarks/curves.

    python benchmarks/schedulers.py CURVES.npz ...
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import machine

from raybone.hpo.race import Rule, ladder
from raybone.simulate import FULL, LOCKSTEPS, RACES, Curves, Scheduler, measure, read_curves, summary

REPEATS, TUNING_REPEATS, WORKERS = 200, 60, 8
FACTORS, SLACKS = (2.0, 2.25, 2.4, 2.5, 3.0), (1.5, 2.0)
MOST_REGRET, LEAST_TOP = 0.3, 0.94


def part(curves: Curves, first: int) -> Curves:
    """Every second configuration."""
    rows = slice(first, None, 2)
    return Curves(curves.name, curves.T_CSKE[rows], curves.seconds_C[rows], curves.F_CD[rows], curves.names,
                  curves.steps)


def race(factor: float, slack: float) -> Scheduler:
    """fold_race with other constants."""
    return Scheduler(f"factor {factor:g} slack {slack:g}", lambda folds, epochs, steps: ladder(epochs, folds, steps),
                     Rule(factor=factor, slack=slack))


def table(curves: Sequence[Curves], schedulers: Sequence[Scheduler], folds: int, repeats: int,
          startup: float = 0.0, workers: int = WORKERS) -> dict[str, dict[str, float]]:
    """Rows by scheduler, pooled over the tables and printed."""
    rows = summary([measure(c, schedulers, folds, repeats, workers=workers, startup=startup) for c in curves])
    for name, row in rows.items():
        print(f"  {name:<22} {row['fold_epochs']:8.0f} fold epochs, x {row['speedup_vs_full']:5.1f} full, regret "
              f"{row['excess_regret_pct']:6.3f} +- {row['excess_regret_se']:.3f} %, top 5 % {row['top5_rate']:.3f}, "
              f"x lockstep {row['speedup_vs_lockstep']:.2f} ({row['speedup_vs_lockstep_low']:.2f}-"
              f"{row['speedup_vs_lockstep_high']:.2f}), {row['seconds']:.0f} s", flush=True)
    return rows


def tune(curves: Sequence[Curves]) -> dict[str, Any]:
    """The cheapest constants whose regret and top picks hold for both numbers of folds, on the first half."""
    grid = [race(f, s) for f, s in itertools.product(FACTORS, SLACKS)]
    found = {}
    for folds in (5, 10):
        print(f"tuning half, K={folds}")
        found[folds] = table([part(c, 0) for c in curves], [FULL, *grid], folds, TUNING_REPEATS)
    sound = [g.name for g in grid if all(r[g.name]["excess_regret_pct"] <= MOST_REGRET
                                         and r[g.name]["top5_rate"] >= LEAST_TOP for r in found.values())]
    best = min(sound, key=lambda n: found[5][n]["fold_epochs"] * found[10][n]["fold_epochs"], default="none")
    print(f"chosen: {best}; raybone's own: factor {Rule().factor:g} slack {Rule().slack:g}")
    return {"rows": found, "chosen": best}


def report(curves: Sequence[Curves]) -> dict[str, Any]:
    """All schedulers on the other half and on the whole, and what starting runs costs."""
    found: dict[str, Any] = {}
    for folds in (5, 10):
        for name, chosen in (("other half", [part(c, 1) for c in curves]), ("whole", list(curves))):
            print(f"{name}, K={folds}")
            found[f"{name}, K={folds}"] = table(chosen, [FULL, *RACES, *LOCKSTEPS], folds, REPEATS)
        for workers in (8, 32):
            for minutes in (0, 1):
                # A fold epoch takes about a minute when the tables' costs are read as milliseconds.
                print(f"whole, K={folds}, {workers} workers, start-up of {minutes} epochs")
                startup = minutes * float(sum(c.seconds_C.mean() for c in curves) / len(curves))
                found[f"startup {minutes}, {workers} workers, K={folds}"] = table(
                    curves, [FULL, *RACES, LOCKSTEPS[1], LOCKSTEPS[4]], folds, 40, startup, workers)
    return found


def survival(curves: Sequence[Curves]) -> None:
    """Print the share of racing configurations that get from rung to rung."""
    from raybone.simulate import _Clock

    for folds in (5, 10):
        shares = []
        for c in curves:
            clock = _Clock(c, RACES[0], list(range(len(c.T_CSKE))), range(folds), 0, WORKERS, 0.0, "random")
            clock.run()
            counts = [len(r.ranked) for r in clock.race.rungs[clock.race.full:]]
            shares += [b / a for a, b in itertools.pairwise(counts)]
        print(f"K={folds}: of those that race, {sum(shares) / len(shares):.2f} get to the next rung ({shares})")


if __name__ == "__main__":
    files = [Path(p) for p in sys.argv[1:]]
    given = [read_curves(p) for p in files]
    survival(given)
    result: dict[str, Any] = {"tables": [p.name for p in files], "tuning": tune(given), "report": report(given)}
    trained = sorted((Path(__file__).parent / "curves").glob("*.npz"))
    for path in trained:
        c = read_curves(path)
        print(f"{path.stem}: {c.T_CSKE.shape}")
        result[path.stem] = table([c], [FULL, *RACES, *LOCKSTEPS], min(5, c.T_CSKE.shape[2]), REPEATS, workers=2)
    machine.keep("schedulers", result)
