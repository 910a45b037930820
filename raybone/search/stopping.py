"""When a search has what it was after: a target reached, or no more to gain than the folds can
tell.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
import optuna
import optuna.terminator

from raybone.search.sampler import distributions
from raybone.search.state import Configuration, State
from raybone.study.spec import Study

LEAST = (
    20  # complete configurations before a regret bound means anything (optuna's default as well)
)


def reached(study: Study, state: State) -> str:
    """Why ``limits.target`` or ``limits.converged`` end the search now, with the evidence; empty
    when they do not.

    Scores are those of the leaderboard: the mean over the folds of the final epoch. Costs a second
    or so once there are ``LEAST`` complete configurations, so ask when one completes.
    """
    sign = 1 if study.direction == "maximize" else -1
    scored = [
        (c, folds)
        for c in state.configurations.values()
        if c.status == "complete" and np.isfinite(folds := _folds(study, c)).all()
    ]
    if not scored:
        return ""
    best, folds = max(scored, key=lambda item: sign * float(np.mean(item[1])))
    value, target = float(np.mean(folds)), study.limits.target
    if target is not None and sign * (value - target) >= 0:
        return (
            f"limits.target: {best.id} reached {study.metric} {value:.4f}, the target is {target:g}"
        )
    if not study.limits.converged or len(scored) < LEAST:
        return ""
    regret, error = _regret_and_error(study, scored)
    if regret >= error:
        return ""
    return (
        f"limits.converged: after {len(scored)} complete configurations at most {regret:.4f} "
        f"{study.metric} above "
        f"the {value:.4f} of {best.id} are left to gain, under the {error:.4f} that its folds can "
        f"tell"
    )


def _regret_and_error(
    study: Study, scored: list[tuple[Configuration, list[float]]]
) -> tuple[float, float]:
    """Upper bound of what is left to gain, and the standard error of the best one's
    cross-validation.

    Makarova et al. 2022, Automatic Termination for Hyperparameter Optimization (arXiv:2104.08166),
    as optuna has it. Parameters that only some configurations have are not seen by its Gaussian
    process: they count as noise.
    """
    spread = distributions(study.space)
    trials = [
        optuna.trial.create_trial(
            params=c.params,
            distributions={k: spread[k] for k in c.params},
            value=float(np.mean(folds)),
            system_attrs={"terminator:cv_scores": list(folds)},
        )
        for c, folds in scored
    ]
    direction = optuna.study.StudyDirection[study.direction.upper()]
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # experimental, and optuna moves them elsewhere in its version 6
        regret = optuna.terminator.RegretBoundEvaluator(seed=study.search.seed).evaluate(
            trials, direction
        )
        error = optuna.terminator.CrossValidationErrorEvaluator().evaluate(trials, direction)
    return float(regret), float(error)


def _folds(study: Study, configuration: Configuration) -> list[float]:
    count = study.resolved.folds if study.resolved else 0
    return [configuration.fold_score(k, study.epochs, study.metric) for k in range(count)] or [
        math.nan
    ]
