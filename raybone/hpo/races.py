"""Which race a study runs, on which rungs, and what it is expected to cost."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np

from raybone.hpo.cohort.plan import CohortRule, climb, cohort_ladder, stages
from raybone.hpo.cohort.race import CohortRace
from raybone.hpo.events import Event
from raybone.hpo.fold_race import Ladder, Race, Rule, ladder
from raybone.hpo.sampler import propose
from raybone.hpo.state import State
from raybone.study.metric import METRICS, Metric
from raybone.study.space import identity, in_joint, joint
from raybone.study.spec import ResolvedStudy, Study
from raybone.types import Array

SURVIVAL = (
    0.8  # share of racing configurations that get to the next rung, in benchmarks/schedulers.py
)
HASTE = 0.7  # promotions too many are this times the root of the arrivals, in the same benchmark
# Share of a known pool that a cohort race starts: 0.55 and 0.74 of 200 of the two tables of small
# models in benchmarks/curves, in ten replays of each.
STARTED = 0.65
LARGEST = 2000  # configurations that are drawn before a search, so that the hopeless never start
RACES = ("fold_race", "cohort_race")


class Pool:
    """All configurations of a search, if its sampler needs no scores, by their identity and in
    order; else none.
    """

    def __init__(self, study: ResolvedStudy) -> None:
        self.study, self.params = study, dict[str, dict[str, object]]()
        self._shadow, self._index = State(), 0
        search = study.search
        if search.scheduler == "cohort_race" and search.sampler not in ("tpe", "gp"):
            while self._index < search.trials <= LARGEST and self.draw():
                pass
        if search.sampler == "grid":
            # Its first ones are alike, and a race learns most from such as are not.
            keys, first = [*self.params], len(search.points)
            random.Random(search.seed).shuffle(rest := keys[first:])
            self.params = {key: self.params[key] for key in [*keys[:first], *rest]}

    def draw(self) -> str:
        """One more; returns its key, empty when the space is used up."""
        params = propose(self.study, self._shadow, self._index)
        self._index += 1
        if params is None:
            return ""
        key = identity(params)
        self._shadow.taken.add(key)
        self.params[key] = params
        return key


def rungs_of(study: Study, folds: int, steps: float) -> Ladder:
    """The ladder of a study's scheduler.

    Args:
        steps: optimiser steps an epoch.
    """
    if study.search.scheduler == "full":
        return ((folds, study.epochs),)
    if study.search.scheduler == "fold_race":
        return ladder(study.epochs, folds, steps)
    if study.search.scheduler == "cohort_race":
        return cohort_ladder(study.epochs, folds)
    # Lockstep: all folds advance together, thrice as far at every rung, as Ray's ASHA is told.
    rungs = [study.epochs]
    while rungs[0] // 3 >= max(1, study.epochs // 27) and (rungs[0] // 3) * steps >= 100:
        rungs.insert(0, rungs[0] // 3)
    return tuple((folds, e) for e in rungs)


def race_of(study: ResolvedStudy, pool: Pool | None = None) -> Race | CohortRace:
    """The race that a study's scheduler runs; for the other schedulers, one that decides nothing
    before the end.
    """
    search, rungs = study.search, study.resolved.ladder
    if search.scheduler == "cohort_race":
        drawn = pool.params if pool else {}
        known = {key: features(study, params) for key, params in drawn.items()}
        trials = len(known) or search.trials
        return CohortRace(rungs, trials, CohortRule(risk=search.risk), study.sign, known or None)
    race = search.scheduler == "fold_race"
    shares = METRICS.get(study.metric, Metric()).high == 1
    promotion = not race or search.type == "promotion"
    rule = Rule(races=race, promotion=promotion, relative=not shares)
    return Race(rungs, rule, study.sign)


def tell(race: Race | CohortRace, study: ResolvedStudy, pool: Pool, event: Event) -> None:
    """Tell a cohort race of slots, of a configuration that begins, or that its model refuses, and
    of the end of the space.
    """
    if isinstance(race, Race):
        return
    race.workers = event.get("slots", race.workers)
    if event["event"] == "exhausted":
        race.exhaust()
    if event["event"] not in ("config", "invalid"):
        return
    key = identity(event["params"])
    if event["event"] == "config":
        model = study.under(event["params"]).model
        race.begin(event["config_id"], key, features(study, event["params"]), model)
    elif key in pool.params:
        other = pool.draw()
        race.refuse(key, other, features(study, pool.params[other]) if other else None)


def skipped(race: Race | CohortRace, pool: Pool) -> list[dict[str, Any]]:
    """Hyper-parameters that did not start, and why."""
    chances = race.skipped if isinstance(race, CohortRace) else {}
    return [
        {
            "params": pool.params[key],
            "reason": f"{chance:.1%} chance of getting on, by those that started",
        }
        for key, chance in chances.items()
    ]


def features(study: ResolvedStudy, params: dict[str, object]) -> Array:
    """Hyper-parameters as numbers, (D,): a share of the range, on its own scale; a choice as one
    number a value. What a configuration has not is in the middle.
    """
    values, numbers = in_joint(study, params), list[float]()
    for name, param in joint(study).items():
        if param.choice:
            numbers += [float(name in values and values[name] == value) for value in param.choice]
            continue
        assert param.bounds
        low, high = param.bounds
        value = float(str(values[name])) if name in values else None
        if value is not None and param.log_uniform:
            low, high, value = math.log(low), math.log(high), math.log(value)
        numbers.append(0.5 if value is None else (value - low) / (high - low))
    return np.array(numbers, float)


def expected(study: ResolvedStudy) -> list[tuple[int, float, float]]:
    """(rung, configurations that get there, fold epochs spent on the way to it from the rung
    before), before a search.
    """
    if study.search.scheduler == "cohort_race":
        return _expected_of_cohorts(study)
    rungs, rule = study.resolved.ladder, Rule()
    full = Race(rungs, Rule(races=study.search.scheduler == "fold_race")).full
    arrive, rows, spent = float(study.search.trials), [], 0
    for rung, (folds, epochs) in enumerate(rungs):
        rows.append((rung, arrive, arrive * (folds * epochs - spent)))
        spent = folds * epochs
        if study.search.scheduler == "asha":
            arrive = max(arrive / 3, 1)
        elif study.search.scheduler == "fold_race":
            # A rung passes on its share, and a few more as it decides before all have arrived.
            passes = (
                arrive / rule.factor + HASTE * math.sqrt(arrive)
                if rung < full
                else arrive * SURVIVAL
            )
            least = min(max(rule.finalists, len(study.names)), study.search.trials)
            arrive = max(min(passes, arrive), least)
    return rows


def _expected_of_cohorts(study: ResolvedStudy) -> list[tuple[int, float, float]]:
    """As if scores were alive at a third of the epochs; those of small models are at a tenth."""
    rungs, trials, rule = study.resolved.ladder, study.search.trials, CohortRule()
    folds, epochs = rungs[-1]
    first = next(e for e in climb(epochs) if e >= epochs / 3)
    pool = study.search.sampler not in ("tpe", "gp") and trials <= LARGEST
    arrive = trials * STARTED if pool else float(trials)
    rows, spent, size = [(rungs.index((1, first)), arrive, arrive * first)], first, float(trials)
    for stage in stages(epochs, folds, rule.keep):
        end = max(stage.epochs, first)
        if stage.folds == 1 or (stage.folds, end) not in rungs:
            continue
        size = max(stage.share * (trials if stage.of_all else size), rule.finalists)
        size = min(size, arrive)
        here = rungs.index((stage.folds, end))
        rows.append((here, size, size * (stage.folds * end - spent)))
        spent = stage.folds * end
    return rows
