"""Samplers: the n-th configuration of a study, given what the journal knows."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import optuna
from scipy.stats import qmc

from raybone.hpo.race import score
from raybone.hpo.space import active, from_unit, grid
from raybone.hpo.state import State
from raybone.spec import Param, Study

optuna.logging.set_verbosity(optuna.logging.WARNING)
ATTEMPTS = 100  # draws before a small space counts as used up


def propose(study: Study, state: State, index: int, attempt: int = 0) -> dict[str, Any] | None:
    """Hyper-parameters of configuration ``index`` (0-based), or None when the space is used up.

    random, sobol and grid are pure functions of (seed, index, attempt); tpe of these and the state. A combination
    that the study has already is drawn again.
    """
    taken = [c.params for c in state.configurations.values()]
    for again in range(attempt, ATTEMPTS):
        point = _draw(study, state, index, again)
        if point is None or point not in taken:
            return point
    return None


def _draw(study: Study, state: State, index: int, attempt: int) -> dict[str, Any] | None:
    kind, space = study.search.sampler, study.space
    if not space:
        return {} if attempt == 0 and index == 0 else None
    if kind == "grid":
        points = grid(space)
        place = index + attempt
        return points[place] if place < len(points) else None
    if kind == "sobol" and attempt == 0:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # balance matters for integrals, not for a search
            engine = qmc.Sobol(len(space), scramble=True, rng=np.random.default_rng(study.search.seed))
            return from_unit(space, engine.random(index + 1)[-1].tolist())
    if kind == "tpe":
        return _tpe(study, state, index, attempt)
    rng = np.random.default_rng([study.search.seed, index, attempt])
    return from_unit(space, rng.random(len(space)).tolist())


def _tpe(study: Study, state: State, index: int, attempt: int) -> dict[str, Any]:
    """Optuna's multivariate TPE (Falkner et al. 2018) told everything the journal knows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # multivariate and group are marked experimental
        sampler = optuna.samplers.TPESampler(seed=_seed(study.search.seed, index, attempt), multivariate=True,
                                             group=True, n_startup_trials=8, constant_liar=True)
        memory = optuna.create_study(sampler=sampler, direction=study.direction)
    distributions = {name: _distribution(param) for name, param in study.space.items()}
    sign = 1 if study.direction == "maximize" else -1
    for configuration in state.configurations.values():
        # Conditional parameters that are off, and values the journal has from another space, are left out.
        known = {k: v for k, v in configuration.params.items() if k in distributions}
        value = score(study, configuration, configuration.rung) if configuration.rung >= 0 else math.nan
        finished = configuration.status != "running" and math.isfinite(value)
        state_of = optuna.trial.TrialState.COMPLETE if finished else optuna.trial.TrialState.FAIL \
            if configuration.status == "failed" else optuna.trial.TrialState.RUNNING
        memory.add_trial(optuna.trial.create_trial(
            params=known, distributions={k: distributions[k] for k in known},
            value=sign * value if finished else None, state=state_of))
    trial = memory.ask()
    values: dict[str, Any] = {}
    for name in sorted(study.space, key=lambda n: study.space[n].when is not None):
        if active(study.space, {**values, name: None}).keys() >= {name}:
            values[name] = _suggest(trial, name, study.space[name])
    return {name: values[name] for name in study.space if name in values}


def _suggest(trial: optuna.Trial, name: str, param: Param) -> Any:
    if param.choice is not None:
        return trial.suggest_categorical(name, param.choice)
    if param.int_uniform is not None:
        return trial.suggest_int(name, *param.int_uniform)
    low, high = param.bounds or (0.0, 1.0)
    return trial.suggest_float(name, low, high, log=param.log_uniform is not None)


def _distribution(param: Param) -> optuna.distributions.BaseDistribution:
    if param.choice is not None:
        return optuna.distributions.CategoricalDistribution(param.choice)
    if param.int_uniform is not None:
        return optuna.distributions.IntDistribution(*param.int_uniform)
    low, high = param.bounds or (0.0, 1.0)
    return optuna.distributions.FloatDistribution(low, high, log=param.log_uniform is not None)


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1)[0])
