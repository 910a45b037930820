"""A search over models whose proposals prefer the cheap ones, beside plain TPE and chance, on the
recorded curves of the grid of a study over models: how far the best so far is behind the best there
is, at equal seconds of training.

    python benchmarks/per_second.py

One training run at a time, race and sampler as in a search; folds in the order of the study, and a
seed for each repeat. The table is replayed as it was recorded, and again as if an epoch of the
dearest model took ten times as long as it did. The best so far is the complete configuration with
the best score, else the one that got furthest.

Per second means that a proposal is taken with the probability of the cheapest model's seconds over
its own's; of proposals that are all passed over the first counts. So a model that is proposed as
often as another, but takes twice as long, is tried half as often.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import machine
import numpy as np
from models import TABLE, alike

from raybone.hpo.brain import Brain
from raybone.hpo.fold_race import SMOOTH, ladder, score
from raybone.hpo.sampler import STARTUP, propose
from raybone.hpo.state import State
from raybone.results.study_folder import StudyFolder
from raybone.simulation.curves import Curves, read_curves
from raybone.study.files import read_study
from raybone.study.space import grid, identity
from raybone.study.spec import Resolved, ResolvedStudy, Study
from raybone.types import Array, Epoch

STUDY = Path(__file__).parents[1] / "jobs" / "bccd_models.yaml"
REPEATS, SEEDS = 100, 1000
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5)  # of the seconds that the whole grid takes in full
ASKS = 20  # proposals that may be passed over
Propose = Callable[[ResolvedStudy, State, int], dict[str, Any] | None]


def per_second(study: ResolvedStudy, state: State, index: int) -> dict[str, Any] | None:
    """A proposal of the study's sampler that prefers models whose epochs are short."""
    first = propose(study, state, index)
    if index < STARTUP or first is None:
        return first
    seconds = {name: state.mean_seconds(name) for name in study.names}
    cheapest, rng = min(seconds.values()), np.random.default_rng([study.search.seed, index, 1])
    for ask in range(ASKS):
        other = study.search.model_copy(update={"seed": study.search.seed + SEEDS * ask})
        point = propose(study.model_copy(update={"search": other}), state, index)
        if point and not rng.random() * seconds[study.under(point).model] > cheapest:
            return point
    return first


WAYS: dict[str, tuple[str, Propose]] = {
    "random": ("random", propose),
    "tpe": ("tpe", propose),
    "tpe, per second": ("tpe", per_second),
}


def places(study: Study, curves: Curves) -> dict[str, int]:
    """The row of each configuration of the grid; a model's rows stand in the order of its grid."""
    found: dict[str, int] = {}
    for name in study.names:
        rows = [c for c, model in enumerate(curves.model_C) if model == name]
        points = [identity({"model": name, **point}) for point in grid(study.of(name))]
        found |= dict(zip(points, rows, strict=True))
    return found


def search(
    study: ResolvedStudy, how: Propose, curves: Curves, rows: dict[str, int], stop: float
) -> list[tuple[float, int]]:
    """Seconds so far and the best configuration then, after each rung, until ``stop`` seconds."""
    with tempfile.TemporaryDirectory() as folder, mock.patch("raybone.hpo.brain.propose", how):
        brain = Brain(study, StudyFolder(folder).journal(), lambda params: 1, 1)
        spent, log = 0.0, list[tuple[float, int]]()
        while spent < stop and (work := brain.peek()):
            brain.start(work)
            row = rows[identity(work.params)]
            for segment in work.segments:
                for epoch in range(segment.start + 1, segment.stop + 1):
                    metrics = {study.metric: float(curves.T_CSKE[row, 0, segment.fold, epoch - 1])}
                    taken = float(curves.seconds_C[row])
                    spent += taken
                    brain.epoch(work.config_id, Epoch(segment.fold, epoch, metrics, taken))
            brain.rung_done(work.config_id, work.rung)
            log.append((spent, rows[identity(best(study, brain.state))]))
        return log


def best(study: ResolvedStudy, state: State) -> dict[str, Any]:
    """The configuration that a search would give if it ended now."""
    ranked = [c for c in state.configurations.values() if c.rung >= 0]
    return max(ranked, key=lambda c: (c.rung, score(study, c, c.rung))).params


def main() -> None:
    """Measure, print and write results/per_second.json."""
    curves, asked = alike(read_curves(TABLE)), read_study(STUDY)
    rows = places(asked, curves)
    _, _, folds, epochs = curves.T_CSKE.shape
    truth_C = curves.T_CSKE[:, :, :, -SMOOTH:].mean((1, 2, 3))
    right = curves.model(int(truth_C.argmax()))
    of_C = np.array(curves.model_C)
    dearest = curves.model(int(curves.seconds_C.argmax()))
    tables = {
        "as recorded": curves.seconds_C,
        f"{dearest} ten times dearer": curves.seconds_C * np.where(of_C == dearest, 10, 1),
    }
    resolved = Resolved(
        dataset_hash="",
        code_version="",
        folds=folds,
        steps=curves.steps,
        ladder=ladder(epochs, folds, curves.steps),
    )
    found: dict[str, Any] = {"curves": TABLE.name, "right": right, "repeats": REPEATS}
    for costs, seconds_C in tables.items():
        whole, priced = (
            float(seconds_C.sum()) * folds * epochs,
            replace(curves, seconds_C=seconds_C),
        )
        lags: dict[str, Array] = {}
        for name, (sampler, how) in WAYS.items():
            lag_RB, right_RB = np.empty((2, REPEATS, len(SHARES)))
            for seed in range(REPEATS):
                searched = {"trials": len(rows), "seed": seed, "scheduler": "fold_race"}
                searched["sampler"] = sampler
                study = asked.model_copy(
                    update={"search": asked.search.model_copy(update=searched)}
                ).resolved_as(resolved)
                log = search(study, how, priced, rows, SHARES[-1] * whole)
                for place, share in enumerate(SHARES):
                    picks = [pick for spent, pick in log if spent <= share * whole]
                    pick = picks[-1] if picks else int(truth_C.argmin())
                    lag_RB[seed, place] = truth_C.max() - truth_C[pick]
                    right_RB[seed, place] = curves.model(pick) == right
            lags[name] = lag_RB
            for place, share in enumerate(SHARES):
                row = {
                    "behind": round(float(lag_RB[:, place].mean()), 4),
                    "behind_95": round(1.96 * float(lag_RB[:, place].std()) / REPEATS**0.5, 4),
                    "right_model": round(float(right_RB[:, place].mean()), 3),
                }
                found[f"{costs}, {name}, {share:.0%} of the seconds"] = row
                print(f"{costs}, {name}, {share:.0%} of the seconds: {row}", flush=True)
        gain_RB = lags["tpe"] - lags["tpe, per second"]
        for place, share in enumerate(SHARES):
            mean = float(gain_RB[:, place].mean())
            error = 1.96 * float(gain_RB[:, place].std()) / REPEATS**0.5
            gain = {"gain": round(mean, 4), "gain_95": round(error, 4)}
            found[f"{costs}, gain over tpe, {share:.0%} of the seconds"] = gain
            print(f"{costs}, gain over tpe, {share:.0%} of the seconds: {gain}", flush=True)
    machine.keep("per_second", found)


if __name__ == "__main__":
    main()
