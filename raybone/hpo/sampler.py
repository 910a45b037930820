"""Samplers: the n-th configuration of a study, given what the journal knows."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import optuna

from raybone.hpo.fold_race import score, scores
from raybone.hpo.optuna_study import as_optuna, distributions
from raybone.hpo.state import Configuration, State
from raybone.study.space import (
    LONGEST,
    complete,
    dimensions,
    from_joint,
    from_unit,
    grid,
    identity,
    in_joint,
    joint,
    rejected,
)
from raybone.study.spec import Prior, ResolvedStudy

ATTEMPTS = 100  # configurations that a model may refuse in a row, and ways to fill up a point
REDRAWS = 10_000  # random points, taken or rejected, after which a space counts as used up
ASKS = 20  # proposals of a model that may be taken or rejected before chance decides
STARTUP = 8  # observations before which chance decides
BEST, RECENT = 25, 225  # observations that TPE is told: of 250 it calls 25 good, and never more


def propose(study: ResolvedStudy, state: State, index: int) -> dict[str, Any] | None:
    """Hyper-parameters of configuration ``index`` (0-based), or None when the space is used up.

    A pure function of the study, the index and the state, of which random, sobol and grid see no
    scores. What the study has already, what its model refused and what ``search.reject`` is true of
    is drawn again.
    """
    fresh = (
        params for params in _draws(study, state, index) if identity(params) not in state.taken
    )
    return next((params for params in islice(fresh, LONGEST) if not rejected(study, params)), None)


def _draws(study: ResolvedStudy, state: State, index: int) -> Iterator[dict[str, Any]]:
    """Candidates, the preferred one first."""
    kind, size = study.search.sampler, dimensions(study)
    if not size:
        yield {}
        return
    rng = np.random.default_rng([study.search.seed, index])
    points = [*study.search.points, *(study.resolved.prior or Prior()).points]
    if index < len(points):
        for _ in range(ATTEMPTS):
            yield complete(study, points[index], rng.random(size).tolist())
    if kind == "grid":
        yield from grid(study)
        return
    if kind == "sobol":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # balance matters for integrals, not for a search
            from scipy.stats import qmc  # a second to import, in every process of a search

            engine = qmc.Sobol(size, scramble=True, rng=np.random.default_rng(study.search.seed))
            yield from_unit(study, engine.random(index + 1)[-1].tolist())
    if kind in ("tpe", "gp"):
        yield from _modelled(study, state, index)
    for _ in range(REDRAWS):
        yield from_unit(study, rng.random(size).tolist())


def _modelled(study: ResolvedStudy, state: State, index: int) -> Iterator[dict[str, Any]]:
    """Candidates of optuna's multivariate TPE (Bergstra et al. 2011; Falkner et al. 2018,
    arXiv:1807.01774) or its Gaussian process with log expected improvement (Ament et al. 2023,
    arXiv:2310.20708).

    The process models parameters that every configuration has; conditional ones are left to chance.
    """
    make = {
        "tpe": partial(
            optuna.samplers.TPESampler, multivariate=True, group=True, constant_liar=True
        ),
        "gp": partial(optuna.samplers.GPSampler, warn_independent_sampling=False),
    }[study.search.sampler]
    space, seen = joint(study), observations(study, state)
    trials = [{"params": in_joint(study, params), "value": value} for params, value in seen]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # group and the process are marked experimental
        sampler = make(seed=_seed(study.search.seed, index), n_startup_trials=STARTUP)
    memory, spread = as_optuna(space, trials, sampler=sampler), distributions(space)
    for _ in range(ASKS):
        trial = memory.ask(spread)
        values = {name: trial.params[name] for name in space}
        lists = {name: [*value] for name, value in values.items() if isinstance(value, tuple)}
        yield from_joint(study, values | lists)


def observations(study: ResolvedStudy, state: State) -> list[tuple[dict[str, Any], float | None]]:
    """What a model of the space may learn from, oldest first: hyper-parameters, and their standing
    in (0, 1).

    Scores of early rungs are lower than those of late ones for the same hyper-parameters, so they
    are never compared: who got further stands higher, and within a rung the score decides, as
    optuna ranks pruned trials. A failure stands lowest. None stands for what has no score yet.
    """
    seen = list(state.configurations.values())
    scored = sorted(
        (c for c in seen if c.rung >= 0 or c.status == "failed"), key=lambda c: _standing(study, c)
    )
    standing = {c.id: (i + 0.5) / len(scored) for i, c in enumerate(scored)}
    prior = study.resolved.prior or Prior()
    rows = [
        *((o.params, o.standing) for o in prior.observations),
        *((c.params, standing.get(c.id)) for c in seen),
    ]
    by_standing = sorted(range(len(rows)), key=lambda i: rows[i][1] or 0.0)
    kept = {*by_standing[-BEST:], *sorted(by_standing[:-BEST])[-RECENT:]}
    return [rows[i] for i in sorted(kept)]


def _standing(study: ResolvedStudy, configuration: Configuration) -> tuple[float, ...]:
    if configuration.status == "failed":
        return -1, 0.0, 0.0
    tie = scores(study, configuration, configuration.rung)[1]
    return configuration.rung, score(study, configuration, configuration.rung), tie


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1)[0])
