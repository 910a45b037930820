"""When a search has what it was after: a target reached, or no more to gain than the folds can
tell.
"""

from __future__ import annotations

import math
import warnings

import optuna
import optuna.terminator

from raybone.errors import EndReason
from raybone.hpo.optuna_study import as_optuna, trials_of
from raybone.hpo.state import State, gpu_hours_of
from raybone.study.space import joint
from raybone.study.spec import ResolvedStudy

LEAST = (
    20  # complete configurations before a regret bound means anything (optuna's default as well)
)


def reached(study: ResolvedStudy, state: State) -> EndReason | None:
    """Why ``limits.target`` or ``limits.converged`` end the search now, with the evidence; None
    when they do not.

    Scores are those of the leaderboard: the mean over the folds of the final epoch. Costs a second
    or so once there are ``LEAST`` complete configurations, so ask when one completes.
    """
    means = {
        c.id: c.mean(study.resolved.folds, study.epochs, study.metric)
        for c in state.configurations.values()
        if c.status == "complete"
    }
    scored = {name: mean for name, mean in means.items() if math.isfinite(mean)}
    if not scored:
        return None
    best = max(scored, key=lambda name: study.sign * scored[name])
    value, target = scored[best], study.limits.target
    if target is not None and study.sign * (value - target) >= 0:
        return EndReason(
            "limits.target", f"{best} reached {study.metric} {value:.4f}, the target is {target:g}"
        )
    if not study.limits.converged or len(scored) < LEAST:
        return None
    regret, error = _regret_and_error(study, state)
    if regret >= error:
        return None
    return EndReason(
        "limits.converged",
        f"after {len(scored)} complete configurations at most {regret:.4f} "
        f"{study.metric} above the {value:.4f} of {best} are left to gain, under the {error:.4f} "
        "that its folds can tell",
    )


def _regret_and_error(study: ResolvedStudy, state: State) -> tuple[float, float]:
    """Upper bound of what is left to gain, and the standard error of the best one's
    cross-validation.

    Makarova et al. 2022, Automatic Termination for Hyperparameter Optimization (arXiv:2104.08166),
    as optuna has it. Parameters that only some configurations have are not seen by its Gaussian
    process: they count as noise.
    """
    complete = optuna.trial.TrialState.COMPLETE
    trials = as_optuna(joint(study), trials_of(study, state)).get_trials(states=[complete])
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


def spent(study: ResolvedStudy, state: State, seconds: float) -> EndReason | None:
    """The limit that a study is over, after so many seconds; None while there is none."""
    limits, hours = study.limits, seconds / 3600
    if hours > limits.hours:
        return EndReason("limits.hours", f"{hours:.2f} h are over {limits.hours:g}")
    used = gpu_hours_of(study, state)
    if used > limits.gpu_hours:
        return EndReason("limits.gpu_hours", f"{used:.2f} are over {limits.gpu_hours:g}")
    return None
