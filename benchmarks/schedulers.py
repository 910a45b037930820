"""Schedulers on recorded curves (benchmarks/curves): the rule's constants are chosen on one half of
the configurations of two tables of small models, the figures come from the other half and from the
whole, and then from tables of detectors and segmenters that `raybone search --record` trained on a
phantom cohort.

    python benchmarks/schedulers.py [trained[:TABLE]|risk[:TABLE]]...

With words, these alone are measured anew, of all tables or of one, and the other figures stay.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import machine
import numpy as np

from raybone.hpo.cohort.plan import CohortRule
from raybone.hpo.fold_race import Rule, ladder
from raybone.metrics.intervals import corrected_winner
from raybone.simulation.baselines import BASELINES, Baseline
from raybone.simulation.curves import Curves, read_curves
from raybone.simulation.replay import COHORTS, FULL, LOCKSTEPS, RACES, Draw, Scheduler, replay
from raybone.simulation.simulate import Plan, measure, summary

REPEATS, TUNING_REPEATS, WORKERS = 200, 60, 8
CURVES = Path(__file__).parent / "curves"
ALL = (FULL, *RACES, *COHORTS, *BASELINES, *LOCKSTEPS)
FACTORS, SLACKS = (2.0, 2.25, 2.4, 2.5, 3.0), (1.5, 2.0)
MOST_REGRET, LEAST_TOP = 0.3, 0.94
RISKS, RISK_REPEATS, SMALL = (0.02, 0.01, 0.003), 100, ("diabetes", "digits")
KEYS = ("fold_epochs", "speedup_vs_full", "in_sample_regret_pct", "in_sample_regret_se")


def part(curves: Curves, first: int) -> Curves:
    """Every second configuration."""
    rows = slice(first, None, 2)
    X_CD = None if curves.X_CD is None else curves.X_CD[rows]
    return Curves(curves.name, curves.T_CSKE[rows], curves.seconds_C[rows], curves.steps, X_CD=X_CD)


def race(factor: float, slack: float) -> Scheduler:
    """fold_race with other constants."""
    return Scheduler(f"factor {factor:g} slack {slack:g}", ladder, Rule(factor=factor, slack=slack))


def table(
    curves: Sequence[Curves],
    schedulers: Sequence[Scheduler | Baseline],
    folds: int,
    repeats: int,
    workers: int = WORKERS,
) -> dict[str, dict[str, float]]:
    """Rows by scheduler, pooled over the tables and printed."""
    plan = Plan(folds, repeats, workers=workers)
    rows = summary([measure(c, schedulers, plan) for c in curves])
    for name, row in rows.items():
        print(
            f"  {name:<22} {row['fold_epochs']:8.0f} fold epochs, x {row['speedup_vs_full']:5.1f} "
            f"full, excess {row['excess_regret_pct']:6.3f} +- {row['excess_regret_se']:.3f} % "
            f"({row['excess_regret_ses']:.2f} SE), in sample {row['in_sample_regret_pct']:.3f} +- "
            f"{row['in_sample_regret_se']:.3f} % ({row['in_sample_regret_ses']:.2f} SE), top "
            f"5 % {row['top5_rate']:.3f}, x lockstep {row['speedup_vs_lockstep']:.2f} "
            f"({row['speedup_vs_lockstep_low']:.2f}-{row['speedup_vs_lockstep_high']:.2f}), "
            f"{row['seconds']:.0f} s",
            flush=True,
        )
    return rows


def tune(curves: Sequence[Curves]) -> dict[str, Any]:
    """The cheapest constants whose regret and top picks hold for both numbers of folds, on the
    first half.
    """
    grid = [race(f, s) for f, s in itertools.product(FACTORS, SLACKS)]
    found = {}
    for folds in (5, 10):
        print(f"tuning half, K={folds}")
        found[folds] = table([part(c, 0) for c in curves], [FULL, *grid], folds, TUNING_REPEATS)
    sound = [
        g.name
        for g in grid
        if all(
            r[g.name]["excess_regret_pct"] <= MOST_REGRET and r[g.name]["top5_rate"] >= LEAST_TOP
            for r in found.values()
        )
    ]
    best = min(
        sound,
        key=lambda n: found[5][n]["fold_epochs"] * found[10][n]["fold_epochs"],
        default="none",
    )
    print(f"chosen: {best}; raybone's own: factor {Rule().factor:g} slack {Rule().slack:g}")
    return {"rows": found, "chosen": best}


def report(curves: Sequence[Curves]) -> dict[str, Any]:
    """All schedulers on the other half and on the whole, and with few and many workers."""
    found: dict[str, Any] = {}
    for folds in (5, 10):
        for name, chosen in (("other half", [part(c, 1) for c in curves]), ("whole", list(curves))):
            print(f"{name}, K={folds}")
            found[f"{name}, K={folds}"] = table(chosen, ALL, folds, REPEATS)
        for workers in (8, 32):
            print(f"whole, K={folds}, {workers} workers")
            some = [FULL, *RACES, *COHORTS, LOCKSTEPS[1], LOCKSTEPS[4]]
            found[f"{workers} workers, K={folds}"] = table(curves, some, folds, 40, workers=workers)
    return found


def survival(curves: Sequence[Curves], repeats: int = 20) -> dict[str, dict[str, float]]:
    """What `raybone preview` expects of a race: how many pass a rung too early, and how many that
    race get further.
    """
    shares = {}
    for folds, trials in itertools.product((5, 10), (20, 50, 200)):
        haste, kept = [], []
        for c, repeat in itertools.product(curves, range(repeats)):
            noise = np.random.default_rng(repeat)
            order = noise.permutation(len(c.T_CSKE))[:trials].tolist()
            race = replay(c, RACES[0], Draw(order, range(folds)), WORKERS).race
            counts = [len(r.ranked) for r in race.rungs]
            haste += [
                (after - before / race.rule.factor) / before**0.5
                for before, after in itertools.pairwise(counts[: race.full + 1])
            ]
            kept.append((counts[-1] / counts[race.full]) ** (1 / (len(counts) - 1 - race.full)))
        shares[f"K={folds}, {trials} configurations"] = {
            "haste": float(np.mean(haste)),
            "survival": float(np.mean(kept)),
        }
        print(
            f"K={folds}, {trials} configurations: {shares[f'K={folds}, {trials} configurations']}",
            flush=True,
        )
    return shares


def curse(repeats: int = 60) -> list[dict[str, float]]:
    """How far the winner's mean and its corrected score are above the truth, on made-up folds of
    200 configurations.
    """
    rows = []
    for folds, spread, scheduler in itertools.product((5, 10), (0.0, 0.01), (FULL, RACES[0])):
        raw, corrected = [], []
        for repeat in range(repeats):
            noise = np.random.default_rng(repeat)
            quality_C = noise.normal(0.7, spread, 200)
            folds_CK = (
                quality_C[:, None]
                + noise.normal(0, 0.02, folds)
                + noise.normal(0, 0.02, (200, folds))
            )
            T_CSKE = (folds_CK[:, :, None] * (1 - np.exp(-np.arange(1, 28) / 4)))[:, None]
            curves = Curves("made-up", T_CSKE, np.ones(200))
            out = replay(curves, scheduler, Draw(range(200), range(folds)))
            complete = sorted(out.scores)
            # Effects of folds are known here; what is left above the quality is luck.
            level, final_CK = T_CSKE[:, 0, :, -1].mean(0) - 0.7, T_CSKE[complete, 0, :, -1]
            truth = quality_C[out.pick]
            raw.append(final_CK.mean(1).max() - level.mean() - truth)
            corrected.append(corrected_winner(final_CK) - level.mean() - truth)
        rows.append(
            {
                "folds": folds,
                "quality_sd": spread,
                "scheduler": scheduler.name,
                **{
                    f"{name}_{what}": float(value)
                    for name, values in (("raw", raw), ("corrected", corrected))
                    for what, value in (
                        ("bias", np.mean(values)),
                        ("se", np.std(values) / repeats**0.5),
                    )
                },
            }
        )
        print(rows[-1], flush=True)
    return rows


def trained(only: str = "*") -> dict[str, Any]:
    """The same schedulers on tables of real training."""
    found = {}
    for path in sorted([*CURVES.glob("phantom-*.npz"), *CURVES.glob("bccd-*.npz")]):
        if not path.match(f"{only}.npz"):
            continue
        c = read_curves(path)
        print(
            f"{path.stem}: configurations, seeds, folds, epochs {c.T_CSKE.shape}, {c.steps:g} "
            "steps an epoch"
        )
        found[path.stem] = {
            "shape": c.T_CSKE.shape,
            "steps": c.steps,
            "rungs": RACES[0].rungs(c.T_CSKE.shape[3], c.T_CSKE.shape[2], c.steps),
            "rows": table([c], ALL, c.T_CSKE.shape[2], REPEATS, workers=2),
        }
    return found


def risks(only: str = "*") -> dict[str, Any]:
    """What a cohort race loses at the risk that it was asked for, against exhaustive
    cross-validation's own scores.
    """
    found = {}
    tables = [read_curves(path) for path in sorted(CURVES.glob(f"{only}.npz"))]
    for c, folds in [
        (c, k) for c in tables for k in sorted({min(k, c.T_CSKE.shape[2]) for k in (5, 10)})
    ]:
        small = c.name in SMALL
        races = [
            replace(COHORTS[0], name=f"risk {risk}", rule=CohortRule(risk=risk)) for risk in RISKS
        ]
        print(f"{c.name}, K={folds}")
        plan = (FULL, *COHORTS, *races), folds, RISK_REPEATS if small else REPEATS
        rows = table([c], *plan, workers=WORKERS if small else 2)
        found[f"{c.name}, K={folds}"] = {
            name: {key: rows[name][key] for key in KEYS} for name in rows
        }
    return found


if __name__ == "__main__":
    small = [read_curves(CURVES / name) for name in ("diabetes.npz", "digits.npz")]
    parts = {"risk": risks, "trained": trained}
    if sys.argv[1:]:  # only these are measured anew
        result = json.loads((machine.RESULTS / "schedulers.json").read_text())
        del result["machine"]
        for word in sys.argv[1:]:
            name, _, only = word.partition(":")
            result[name] = {**result[name], **parts[name](*[only][: bool(only)])}
    else:
        result = {
            "survival": survival(small),
            "tuning": tune(small),
            "report": report(small),
            "winners_curse": curse(),
            "trained": trained(),
            "risk": risks(),
        }
    machine.keep("schedulers", result)
