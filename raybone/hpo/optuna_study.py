"""Configurations as a study of optuna's: for its samplers, importances, plots and terminators."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import optuna

from raybone.hpo.state import State
from raybone.study.metric import Direction
from raybone.study.param import Param
from raybone.study.space import in_joint
from raybone.study.spec import ResolvedStudy

# It warns of a library that would make gp faster.
optuna.logging.set_verbosity(optuna.logging.ERROR)
KINDS = optuna.trial.TrialState


def as_optuna(
    space: Mapping[str, Param],
    trials: Iterable[Mapping[str, Any]],
    direction: Direction = "maximize",
    sampler: optuna.samplers.BaseSampler | None = None,
    name: str | None = None,
) -> optuna.Study:
    """A study of optuna's in memory, with a trial for each configuration; lists are tuples there.

    Args:
        trials: what ``optuna.trial.create_trial`` takes, but for the distributions, which are those
            of the parameters that a configuration has; without a value one runs, unless it says its
            state. ``times`` are its begin and end, in seconds since 1970, NaN for now.
        name: of the study; optuna thinks of one by itself.
    """
    made = optuna.create_study(study_name=name, direction=direction, sampler=sampler)
    spread = distributions(space)
    for trial in trials:
        params = {name: _hashable(value) for name, value in trial["params"].items()}
        known = {name: spread[name] for name in params}
        state = KINDS.RUNNING if trial["value"] is None else KINDS.COMPLETE
        content = {"state": state, **trial, "params": params, "distributions": known}
        began, ended = content.pop("times", (math.nan, math.nan))
        created = optuna.trial.create_trial(**content)
        if math.isfinite(began):
            created.datetime_start = datetime.fromtimestamp(began)
        if math.isfinite(ended):
            created.datetime_complete = datetime.fromtimestamp(ended)
        made.add_trial(created)
    return made


def trials_of(study: ResolvedStudy, state: State) -> Iterator[dict[str, Any]]:
    """The configurations of a study, for ``as_optuna``.

    A complete configuration has its mean over the folds, unless that is not finite; one that was
    stopped is pruned, one that failed has failed, and the rest run. What each rung gave stands at
    the fold epochs up to there; the attribute ``config_id`` is its name in the leaderboard.
    """
    kind_of = {"stopped": KINDS.PRUNED, "running": KINDS.RUNNING, "paused": KINDS.RUNNING}
    for c in state.configurations.values():
        final = [c.fold_score(k, study.epochs, study.metric) for k in range(study.resolved.folds)]
        scored = c.status == "complete" and all(map(math.isfinite, final))
        rungs = study.resolved.ladder[: c.rung + 1]
        yield {
            "state": KINDS.COMPLETE if scored else kind_of.get(c.status, KINDS.FAIL),
            "params": in_joint(study, c.params),
            "value": float(np.mean(final)) if scored else None,
            "intermediate_values": {k * e: c.mean(k, e, study.metric) for k, e in rungs},
            "user_attrs": {"config_id": c.id},
            "times": (c.began, c.ended),
            "system_attrs": {"terminator:cv_scores": final} if scored else {},
        }


def write_journal(study: optuna.Study, file: str | os.PathLike[str]) -> int:
    """Write a study to a file of optuna's journal storage; returns the number of its trials.

    Lists, which are tuples here, become their JSON: a storage holds plain values.
    """
    backend = optuna.storages.journal.JournalFileBackend(os.fspath(file))
    storage = optuna.storages.JournalStorage(backend)
    kept = optuna.create_study(
        storage=storage, study_name=study.study_name, direction=study.direction
    )
    trials = study.get_trials()
    for trial in trials:
        for name, spread in trial.distributions.items():
            if isinstance(spread, optuna.distributions.CategoricalDistribution):
                plain = optuna.distributions.CategoricalDistribution([*map(_plain, spread.choices)])
                trial.distributions[name] = plain
                trial.params[name] = _plain(trial.params[name])
    kept.add_trials(trials)
    return len(trials)


def importances(
    space: Mapping[str, Param], ranked: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """The share of each hyper-parameter in what sets the best tenth apart, largest first.

    Args:
        ranked: hyper-parameters of configurations, best first.
    Source: PED-ANOVA, Watanabe et al. 2023 (arXiv:2304.10255).
    """
    trials = [{"params": params, "value": float(rank)} for rank, params in enumerate(ranked)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the evaluator is marked experimental
        return optuna.importance.get_param_importances(
            as_optuna(space, trials, "minimize"),
            evaluator=optuna.importance.PedAnovaImportanceEvaluator(),
        )


def distributions(space: Mapping[str, Param]) -> dict[str, optuna.distributions.BaseDistribution]:
    """A space in optuna's words, without its conditions."""
    with warnings.catch_warnings():
        # A choice between lists is no primitive, which matters to optuna's storage alone.
        warnings.simplefilter("ignore")
        return {name: _distribution(param) for name, param in space.items()}


def _hashable(value: Any) -> Any:
    """A list, one of several sets of categories say, as a tuple: importances need it."""
    return tuple(value) if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, tuple) else value


def _distribution(param: Param) -> optuna.distributions.BaseDistribution:
    if param.choice is not None:
        return optuna.distributions.CategoricalDistribution([*map(_hashable, param.choice)])
    if param.int_uniform is not None:
        return optuna.distributions.IntDistribution(*param.int_uniform)
    low, high = param.bounds or (0.0, 1.0)
    return optuna.distributions.FloatDistribution(low, high, log=param.log_uniform is not None)
