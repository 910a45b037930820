"""fold_race: successive halving over (folds, epochs), then a paired race over the remaining folds.

Rungs up to the first full-length one promote the better half, as asynchronous successive halving does (Li et al. 2020,
arXiv:1810.05934); from there on a configuration gets more folds until it is clearly worse than the incumbent on the
same folds. Folds come in the same order for every configuration.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from raybone.hpo.state import Configuration, State
from raybone.records import Decision
from raybone.spec import Study

SMOOTH = 3  # epochs averaged for a decision
SLACK = 2.0  # standard errors behind the incumbent at which a configuration is dropped
PRIOR_SD, PRIOR_WEIGHT = 0.015, 10  # prior of the configuration x fold residual
MEMORY = 40  # full configurations that the residual variance is estimated from
FIRST_STEPS = 130  # optimiser steps before which detectors from scratch score exactly 0
START_UP = 10.0  # seconds a run takes to start, as measured on two cores
FINALISTS = 2  # configurations that run in full at the least: a winner needs a rival for its paired test


@dataclass(frozen=True)
class Next:
    """What a free worker should do: take a configuration to a rung, and why."""

    config_id: str
    rung: int
    reason: str
    evidence: dict[str, float | int | str] = field(default_factory=dict)


def ladder(epochs: int, folds: int, steps_per_epoch: float) -> tuple[tuple[int, int], ...]:
    """Rungs as (folds, epochs): (1, .07E) (1, .19E) (2, E/3) (2, 2E/3) (3, E), then folds 4, 6, 8 ... K at E.

    No rung comes before FIRST_STEPS optimiser steps. Rungs that this makes equal are one.
    """
    least = min(epochs, math.ceil(FIRST_STEPS / steps_per_epoch))
    wanted = [(1, 0.07), (1, 0.19), (2, 1 / 3), (2, 2 / 3), (3, 1.0), *((k, 1.0) for k in range(4, folds, 2)),
              (folds, 1.0)]
    rungs: list[tuple[int, int]] = []
    for k, share in wanted:
        rung = (min(k, folds), max(least, round(share * epochs), 1))
        # Below three folds, a rung hardly longer than the one before it is worth no start-up of its own.
        if rungs and rung[1] < 1.25 * rungs[-1][1] and rung[0] < min(3, folds):
            continue
        if not rungs or rung > rungs[-1]:
            rungs.append(rung)
    return tuple(rungs)


def score(study: Study, configuration: Configuration, rung: int) -> tuple[float, float]:
    """(score, tie-breaker) at a rung, more is better; -inf for NaN or a crash.

    The score is the mean over the rung's folds of the metric over the last epochs; validation loss breaks ties, as
    early AP is exactly 0 for everybody.
    """
    folds, epochs = _resolved(study)[rung]
    sign = 1 if study.direction == "maximize" else -1
    parts = [[sign * s * configuration.fold_score(k, epochs, m, SMOOTH) for k in range(folds)]
             for m, s in ((study.metric, 1), ("val_loss", -sign))]
    value, tie = (sum(p) / folds for p in parts)
    return (value if math.isfinite(value) else -math.inf, tie if math.isfinite(tie) else -math.inf)


def next_step(study: Study, state: State) -> Next | None:
    """The paused configuration that deserves a free worker most, or None: then a new one is due."""
    full = _first_full(study)
    paused = [c for c in state.configurations.values() if c.status == "paused"]
    racing = [c for c in paused if full <= c.rung < len(_resolved(study)) - 1]
    if racing:
        best = max(racing, key=lambda c: (c.rung, score(study, c, c.rung)))
        return Next(best.id, best.rung + 1, "still in the race: more folds")
    for rung in reversed(range(full)):
        arrived = state.arrivals.get(rung, [])
        ranked = sorted(arrived, key=lambda c: score(study, state.configurations[c], rung), reverse=True)
        for place, config_id in enumerate(ranked[: len(ranked) // 2]):
            configuration = state.configurations[config_id]
            if configuration.status == "paused" and configuration.rung == rung:
                value = score(study, configuration, rung)[0]
                cutoff = ranked[len(ranked) // 2]
                return Next(config_id, rung + 1, f"rank {place + 1} of {len(ranked)} at {name_of(study, rung)}, "
                            f"in the better half (next below: {cutoff})",
                            {"score": value, "rank": place + 1, "of": len(ranked), "against": cutoff})
    return None


def last_push(study: Study, state: State) -> Next | None:
    """When nothing else is to be done and too few configurations ran in full: the best one of the highest rung."""
    full = _first_full(study)
    complete = sum(c.rung >= full and c.status != "failed" for c in state.configurations.values())
    waiting = [c for c in state.configurations.values() if c.status == "paused" and c.rung >= 0]
    if complete >= FINALISTS or not waiting:
        return None
    best = max(waiting, key=lambda c: (c.rung, score(study, c, c.rung)))
    return Next(best.id, best.rung + 1, f"{complete} ran in full at the end of the search: best of those waiting at "
                f"{name_of(study, best.rung)}", {"score": score(study, best, best.rung)[0]})


def judge(study: Study, state: State, configuration: Configuration) -> Decision | None:
    """What follows for a configuration from the rung it has just finished: complete, dropped, or None (wait)."""
    rungs, rung = _resolved(study), configuration.rung
    if rung == len(rungs) - 1:
        return Decision(configuration.id, "complete", rung, f"all {rungs[rung][0]} folds at {rungs[rung][1]} epochs")
    if rung < _first_full(study) or study.search.scheduler != "fold_race":
        return None
    rival = _incumbent(study, state, configuration)
    if rival is None:
        return None
    done, total = rungs[rung][0], rungs[-1][0]
    mine = score(study, configuration, rung)[0]
    theirs = score(study, rival, rung)[0]
    spread = math.sqrt(2 * residual_variance(study, state) * (1 / done - 1 / total))
    evidence = {"score": mine, "against": rival.id, "rival": theirs, "standard_error": spread, "folds": done}
    if mine - theirs < -SLACK * spread:
        return Decision(configuration.id, "stop", rung, f"{theirs - mine:.4f} behind {rival.id} on the same {done} "
                        f"folds, over {SLACK:g} standard errors of {spread:.4f}", evidence)
    return None


def expected(study: Study) -> list[tuple[int, float, float]]:
    """(rung, configurations that get there, fold epochs spent on the way to it from the rung before), before a search.

    Halving rungs pass on half; that a race keeps two thirds a rung is a guess, not a measurement.
    """
    rungs, full = _resolved(study), _first_full(study)
    arrive, rows, spent = float(study.search.trials), [], 0
    for rung, (folds, epochs) in enumerate(rungs):
        rows.append((rung, arrive, arrive * (folds * epochs - spent)))
        spent = folds * epochs
        if study.search.scheduler == "asha":
            arrive = max(arrive / 3, 1)
        elif study.search.scheduler == "fold_race":
            arrive = max(arrive / 2 if rung < full else arrive * 2 / 3, min(FINALISTS, study.search.trials))
    return rows


def residual_variance(study: Study, state: State) -> float:
    """Variance of configuration x fold residuals of the last complete configurations, shrunk to a prior."""
    epochs, folds = study.epochs, _resolved(study)[-1][0]
    done = [c for c in state.configurations.values() if c.status == "complete"][-MEMORY:]
    table_NK = np.array([[c.fold_score(k, epochs, study.metric, SMOOTH) for k in range(folds)] for c in done])
    table_NK = table_NK[np.isfinite(table_NK).all(1)] if len(done) else np.zeros((0, folds))
    squares, freedom = 0.0, 0
    if len(table_NK) > 1:
        rest_NK = table_NK - table_NK.mean(0) - table_NK.mean(1, keepdims=True) + table_NK.mean()
        squares, freedom = float((rest_NK**2).sum()), (len(table_NK) - 1) * (folds - 1)
    return (PRIOR_WEIGHT * PRIOR_SD**2 + squares) / (PRIOR_WEIGHT + freedom)


def name_of(study: Study, rung: int) -> str:
    """A rung in words, such as ``2 folds x 30 epochs``."""
    folds, epochs = _resolved(study)[rung]
    return f"{folds} fold{'s' * (folds > 1)} x {epochs} epoch{'s' * (epochs > 1)}"


def _incumbent(study: Study, state: State, configuration: Configuration) -> Configuration | None:
    """The best complete configuration; while there is none, the best other one that has finished this rung."""
    last, rung = len(_resolved(study)) - 1, configuration.rung
    others = [c for c in state.configurations.values() if c.id != configuration.id and c.status != "failed"]
    complete = [c for c in others if c.status == "complete"]
    if complete:
        return max(complete, key=lambda c: score(study, c, last))
    reached = [c for c in others if c.rung >= rung]
    return max(reached, key=lambda c: score(study, c, rung), default=None)


def _first_full(study: Study) -> int:
    rungs = _resolved(study)
    last_folds, last_epochs = rungs[-1]
    return next(i for i, (k, epochs) in enumerate(rungs) if epochs == last_epochs and k >= min(3, last_folds))


def _resolved(study: Study) -> tuple[tuple[int, int], ...]:
    if study.resolved is None:
        raise ValueError("the study must be resolved first")
    return study.resolved.ladder
