"""fold_race and cohort_race where configurations are proposed during the search, and over several
models: the brain of a search itself, on made-up curves and on a recorded study over models.

    python benchmarks/races.py

Made up: a score that depends on three hyper-parameters, rises over 27 epochs and is told with the
noise of an epoch and of a fold; the regret is how far the pick is truly behind the best there is.
Recorded: the grid over three detectors of curves/bccd-models.npz, judged by its own last epochs.
"""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Callable
from typing import Any

import machine
import numpy as np
from models import TABLE, alike
from per_second import STUDY, places

from raybone.hpo.brain import Brain
from raybone.hpo.fold_race import SMOOTH, score
from raybone.hpo.journal import Journal
from raybone.hpo.races import rungs_of
from raybone.simulation.curves import read_curves
from raybone.storage import Folder
from raybone.study.files import read_study
from raybone.study.space import identity
from raybone.study.spec import Resolved, Study
from raybone.types import Epoch

SEEDS, TRIALS, EPOCHS, FOLDS, JITTER, FOLD = 8, 32, 27, 5, 0.01, 0.02
SPACE: dict[str, Any] = {
    "lr0": {"log_uniform": [1e-5, 1e-1]},
    "imgsz": {"choice": [512, 768, 1024]},
    "fliplr": {"uniform": [0, 0.5]},
}
SCHEDULERS, SAMPLERS = ("fold_race", "cohort_race"), ("random", "tpe", "gp")
# Configuration, fold, epoch: its score.
Score = Callable[[dict[str, Any], int, int], float]


def lag(params: dict[str, Any]) -> float:
    """How far a configuration is truly behind the best."""
    rate = 0.1 * (math.log10(params["lr0"]) + 3) ** 2
    return rate + 0.08 * (params["imgsz"] != 768) + 0.5 * (params["fliplr"] - 0.2) ** 2


def made_up(seed: int) -> Score:
    """Curves of one search; a high rate rises sooner."""

    def value(params: dict[str, Any], fold: int, epoch: int) -> float:
        key = [seed, fold, int(1e7 * params["lr0"]), int(1e6 * params["fliplr"])]
        own = np.random.default_rng(key).normal(0, FOLD)
        jitter = np.random.default_rng([*key, epoch]).normal(0, JITTER)
        rise = 1 - math.exp(-epoch / (5 - math.log10(params["lr0"])))
        return max(0.0, 0.8 - lag(params) + own) * rise + jitter

    return value


def search(study: Study, folds: int, steps: float, value: Score) -> tuple[int, dict[str, Any]]:
    """Fold epochs of one search by one worker, and its pick."""
    rungs = rungs_of(study, folds, steps)
    resolved = study.resolved_as(
        Resolved(dataset_hash="", code_version="", folds=folds, ladder=rungs)
    )
    with tempfile.TemporaryDirectory() as folder:
        brain = Brain(resolved, Journal(Folder(folder)), lambda params: 1, 1)
        while work := brain.peek():
            brain.start(work)
            for segment in work.segments:
                for epoch in range(segment.start + 1, segment.stop + 1):
                    metrics = {study.metric: value(work.params, segment.fold, epoch)}
                    brain.epoch(work.config_id, Epoch(segment.fold, epoch, metrics, 1.0))
            brain.rung_done(work.config_id, work.rung)
        complete = [c for c in brain.state.configurations.values() if c.status == "complete"]
        best = max(complete, key=lambda c: score(resolved, c, len(rungs) - 1))
        return brain.state.fold_epochs, best.params


def study_of(sampler: str, scheduler: str, seed: int) -> Study:
    """The made-up study."""
    return Study.model_validate(
        {
            "name": "s",
            "dataset": "d",
            "model": "m",
            "epochs": EPOCHS,
            "metric": "AP",
            "space": SPACE,
            "search": {
                "trials": TRIALS,
                "sampler": sampler,
                "scheduler": scheduler,
                "seed": seed,
            },
        }
    )


def row(name: str, sampler: str, scheduler: str, found: list[tuple[int, float]]) -> dict[str, Any]:
    """Means of the repeats, printed."""
    costs, regrets = (np.array(v, float) for v in zip(*found))
    made = {
        "study": name,
        "sampler": sampler,
        "scheduler": scheduler,
        "fold_epochs": float(costs.mean()),
        "regret": float(regrets.mean()),
        "regret_se": float(regrets.std(ddof=1) / len(regrets) ** 0.5),
    }
    print(made, flush=True)
    return made


def on_made_up() -> list[dict[str, Any]]:
    """Both races with each sampler."""
    rows = []
    for sampler, scheduler in itertools.product(SAMPLERS, SCHEDULERS):
        found = []
        for seed in range(SEEDS):
            study = study_of(sampler, scheduler, seed)
            cost, pick = search(study, FOLDS, 1000.0, made_up(seed))
            found.append((cost, lag(pick)))
        rows.append(row("made up", sampler, scheduler, found))
    return rows


def on_models() -> list[dict[str, Any]]:
    """Both races over three detectors; folds in another order each time."""
    curves, asked = alike(read_curves(TABLE)), read_study(STUDY)
    where, rows = places(asked, curves), []
    final_C = curves.T_CSKE[..., -SMOOTH:].mean((1, 2, 3))
    _, _, folds, epochs = curves.T_CSKE.shape
    for sampler, scheduler in itertools.product(("random", "grid", "tpe"), SCHEDULERS):
        found = []
        for seed in range(SEEDS):
            order = np.random.default_rng(seed).permutation(folds)
            how = asked.search.model_copy(
                update={"sampler": sampler, "scheduler": scheduler, "seed": seed, "trials": 36}
            )
            study = asked.model_copy(update={"search": how, "epochs": epochs})

            def value(params: dict[str, Any], fold: int, epoch: int, order: Any = order) -> float:
                return float(curves.T_CSKE[where[identity(params)], 0, order[fold], epoch - 1])

            cost, pick = search(study, folds, curves.steps, value)
            found.append((cost, float(final_C.max() - final_C[where[identity(pick)]])))
        rows.append(row("three detectors", sampler, scheduler, found))
    return rows


if __name__ == "__main__":
    machine.keep("races", {"seeds": SEEDS, "trials": TRIALS, "rows": on_models() + on_made_up()})
