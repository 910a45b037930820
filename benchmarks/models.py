"""One study over several models beside a study of each, on the recorded curves of a study over
models: how often each names the right model, at equal seconds of training.

    python benchmarks/models.py [RUN/curves.npz]

Without a table of ``raybone search --record`` it takes curves/bccd-models.npz, the whole grid of
jobs/bccd_models.yaml.
Configurations and folds are drawn anew in every repeat, the same for all. The right model is that
of the configuration with the best mean over all folds and the last three epochs; as there is one
seed, that is judged by the same folds which the searches see.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import machine
import numpy as np

from raybone.hpo.fold_race import SMOOTH
from raybone.simulation.curves import Curves, read_curves
from raybone.simulation.replay import FULL, RACES, Draw, Scheduler, replay
from raybone.types import Array

TABLE = Path(__file__).parent / "curves" / "bccd-models.npz"
REPEATS, RESAMPLES = 400, 1000
SIZES = (2, 3, 4, 6, 8, 10, 12)  # configurations of each model


def one_study(curves: Curves, scheduler: Scheduler, own: list[list[int]], seed: int) -> Array:
    """Seconds and pick of a search over the configurations of all models."""
    rng = np.random.default_rng(seed)
    out = replay(
        curves, scheduler, Draw(rng.permutation(together(own)).tolist(), folds(curves, rng)), 1
    )
    return np.array([out.seconds, out.pick])


def study_each(curves: Curves, scheduler: Scheduler, own: list[list[int]], seed: int) -> Array:
    """Seconds of a search a model, and the best of their picks."""
    rng = np.random.default_rng(seed)
    rng.permutation(together(own))  # as many draws as one_study
    order = folds(curves, rng)
    outs = [replay(curves, scheduler, Draw(c, order), 1) for c in own]
    best = max(outs, key=lambda out: out.scores[out.pick])
    return np.array([sum(out.seconds for out in outs), best.pick])


def alike(curves: Curves) -> Curves:
    """All fold epochs of a model take the median of its seconds: what else the machine did while
    some of them were recorded is left out.
    """
    of_C = np.array(curves.model_C)
    medians = {name: np.median(curves.seconds_C[of_C == name]) for name in set(curves.model_C)}
    return replace(curves, seconds_C=np.array([medians[name] for name in curves.model_C]))


def together(own: list[list[int]]) -> list[int]:
    """The configurations of all models."""
    return [c for of_model in own for c in of_model]


def folds(curves: Curves, rng: np.random.Generator) -> list[int]:
    """All folds in a random order."""
    return rng.permutation(curves.T_CSKE.shape[2]).tolist()


def at_equal_seconds(means_S2: Array, seconds: float) -> float:
    """A share that rises with seconds, between the sizes that were measured; NaN outside."""
    order = np.argsort(means_S2[:, 0])
    inside = means_S2[order[0], 0] <= seconds <= means_S2[order[-1], 0]
    value = np.interp(np.log(seconds), np.log(means_S2[order, 0]), means_S2[order, 1])
    return float(value) if inside else float("nan")


def main(path: str) -> None:
    """Measure, print and write results/models.json."""
    curves = alike(read_curves(path))
    names = list(dict.fromkeys(curves.model_C))
    rows = {n: [c for c, m in enumerate(curves.model_C) if m == n] for n in names}
    truth_C = curves.T_CSKE[:, :, :, -SMOOTH:].mean((1, 2, 3))
    right = curves.model(int(truth_C.argmax()))
    best = {n: round(float(truth_C[rows[n]].max()), 4) for n in names}
    cost = {n: round(float(np.median(curves.seconds_C[rows[n]])), 2) for n in names}
    print(f"right: {right}; best of each {best}; seconds of a fold epoch {cost}")
    ways = {
        "one study": (one_study, curves, RACES[0]),
        "one study, the best of each model not taken to the end": (
            one_study,
            replace(curves, model_C=()),
            RACES[0],
        ),
        "a study of each": (study_each, curves, RACES[0]),
        "a study of each, in full": (study_each, curves, FULL),
    }
    sizes = [size for size in SIZES if size <= min(map(len, rows.values()))]
    measured: dict[str, Array] = {}  # (S, R, 2): seconds, whether the pick is of the right model
    regret: dict[str, list[float]] = {}
    for name, (search, table, scheduler) in ways.items():
        by_size = []
        for size in sizes:
            out = []
            for seed in range(REPEATS):
                rng = np.random.default_rng([seed, size])
                own = [rng.permutation(rows[n])[:size].tolist() for n in names]
                seconds, pick = search(table, scheduler, own, seed)
                behind = float(truth_C[together(own)].max() - truth_C[int(pick)])
                out.append((seconds, curves.model(int(pick)) == right, behind))
            by_size.append(out)
        all_SR3 = np.array(by_size, float)
        measured[name], regret[name] = all_SR3[..., :2], all_SR3[..., 2].mean(1).tolist()
    found: dict[str, Any] = {
        "curves": Path(path).name,
        "right": right,
        "best": best,
        "cost": cost,
    }
    for name, all_SR2 in measured.items():
        for place, size in enumerate(sizes):
            seconds, share = all_SR2[place].mean(0)
            error = 1.96 * float(np.sqrt(share * (1 - share) / REPEATS))
            row = {
                "seconds": round(float(seconds)),
                "right": round(float(share), 3),
                "right_95": round(error, 3),
                "behind": round(regret[name][place], 4),
            }
            found[f"{name}, {size} each"] = row
            print(f"{name:<55} {size:>2} each {row}")
    draws_BR = np.random.default_rng(0).integers(REPEATS, size=(RESAMPLES, REPEATS))
    of_each = measured["a study of each"]
    for place, size in enumerate(sizes):
        gains = []
        for rows_R in draws_BR:
            seconds, share = of_each[place][rows_R].mean(0)
            gains.append(
                at_equal_seconds(measured["one study"][:, rows_R].mean(1), seconds) - share
            )
        if np.isfinite(gains).mean() > 0.5:
            low, mid, high = np.nanquantile(gains, [0.025, 0.5, 0.975])
            gain = {
                "gain": round(float(mid), 3),
                "low": round(float(low), 3),
                "high": round(float(high), 3),
            }
            found[f"one study at the seconds of {size} each"] = gain
            print(f"one study at the seconds of a study of each, {size} each: {gain}")
    machine.keep(sys.argv[2] if len(sys.argv) > 2 else "models", found)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else str(TABLE))
