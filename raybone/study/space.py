"""Points of the unit cube to hyper-parameters, grids, and conditions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from raybone.study.constraints import holds
from raybone.study.param import Param
from raybone.study.soundness import misfits
from raybone.study.spec import Study

LONGEST = (
    100_000  # combinations of a grid rejected in a row, after which nothing is thought to be left
)
PROBE = 1000  # random points that show how much of a space the rules leave


def dimensions(study: Study) -> int:
    """Coordinates of a point of ``from_unit``: a study over models has one more, the first."""
    return max(len(study.of(name).space) for name in study.names) + bool(study.models)


def from_unit(study: Study, point: Sequence[float]) -> dict[str, Any]:
    """The hyper-parameters at a point of [0, 1)^D, one coordinate a parameter in the order of the
    model's space.
    """
    if not study.models:
        return active(study.space, _draw(study.space, point))
    name = study.names[int(point[0] * len(study.names))]
    return {"model": name, **from_unit(study.of(name), point[1:])}


def _draw(space: Mapping[str, Param], point: Sequence[float]) -> dict[str, Any]:
    """A value of every parameter, those that are off as well."""
    return {name: _value(param, u) for (name, param), u in zip(space.items(), point)}


def active(space: Mapping[str, Param], values: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out parameters whose ``when`` does not hold."""
    return {
        name: value
        for name, value in values.items()
        if all(values.get(k) == v for k, v in (space[name].when or {}).items())
    }


def complete(study: Study, point: Mapping[str, Any], unit: Sequence[float]) -> dict[str, Any]:
    """A point as a whole configuration: what it leaves out follows from its conditions, or is taken
    from ``unit``.

    Args:
        unit: a point as for ``from_unit``.
    """
    if study.models:
        fitting = [n for n in study.names if not misfits(study, {"model": n, **point})]
        name = str(point.get("model", fitting[int(unit[0] * len(fitting))]))
        own = {k: v for k, v in point.items() if k != "model"}
        return {"model": name, **complete(study.of(name), own, unit[1:])}
    space, rest = study.space, _draw(study.space, unit)
    known: dict[str, Any] = {}
    for name, value in point.items():
        known |= space[name].when or {}
        known[name] = value
    for name, value in known.items():
        choice = space[name].choice
        # As the space writes it, so that a repeat is seen as one.
        if choice:
            known[name] = choice[choice.index(value)]
        elif not space[name].int_uniform:
            known[name] = float(value)
    return active(space, {name: known.get(name, rest[name]) for name in space})


def joint(study: Study) -> dict[str, Param]:
    """The spaces of all models as one: ``model``, by its own name what is the same in every model
    that has it, and as MODEL.NAME what is not. A study of one model has its own space.
    """
    if not study.models:
        return study.space
    spaces = {name: study.of(name).space for name in study.names}
    dimension = {"model": Param(choice=study.names)}
    for name, space in spaces.items():
        for key, param in space.items():
            # 1 is 1.0, but not to a sampler
            same = all(repr(other.get(key, param)) == repr(param) for other in spaces.values())
            dimension[key if same else f"{name}.{key}"] = param
    return dimension


def in_joint(study: Study, params: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration by the names of ``joint``."""
    if not study.models:
        return dict(params)
    names, model = joint(study), params["model"]
    return {k if k in names else f"{model}.{k}": value for k, value in params.items()}


def from_joint(study: Study, values: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a value for every name of ``joint``."""
    if not study.models:
        return active(study.space, values)
    name = values["model"]
    space = study.of(name).space
    own = {key: values[key] if key in values else values[f"{name}.{key}"] for key in space}
    return {"model": name, **active(space, own)}


def grid(study: Study) -> Iterator[dict[str, Any]]:
    """Every combination of the choices, in the order of the space and the models by turns, without
    repeats that conditions make.
    """
    if study.models:
        rows = (zip(itertools.repeat(name), grid(study.of(name))) for name in study.names)
        for row in itertools.zip_longest(*rows):
            yield from ({"model": name, **point} for name, point in filter(None, row))
        return
    seen, space = set(), study.space
    for values in itertools.product(*(p.choice or () for p in space.values())):
        point = active(space, dict(zip(space, values)))
        if (name := identity(point)) not in seen:
            seen.add(name)
            yield point


def trials(study: Study) -> int:
    """Configurations that a search can try: ``search.trials``, or all that a space of choices
    has.
    """
    spaces = [study.of(name).space.values() for name in study.names]
    if not all(param.choice for space in spaces for param in space):
        return study.search.trials
    return sum(1 for _ in itertools.islice(_allowed(study), study.search.trials))


def identity(point: Mapping[str, Any]) -> str:
    """The same text for the same hyper-parameters."""
    return repr(sorted(point.items()))


def rejected(study: Study, params: Mapping[str, Any]) -> bool:
    """Whether a rule of ``search.reject`` is true of a configuration."""
    rules = study.search.reject
    if not rules:
        return False
    values = {**study.under(params).fixed, **params}
    return any(holds(rule, values) for rule in rules)


def left_by_rules(study: Study) -> str:
    """That the rules leave nothing to search, or next to nothing, as one line; empty when they
    leave enough.
    """
    if not study.search.reject:
        return ""
    if study.search.sampler == "grid":
        kept = any(True for _ in _allowed(study))
        tried = f"all combinations (of the first {LONGEST})"
    else:
        rng = np.random.default_rng(study.search.seed)
        kept = any(
            not rejected(study, from_unit(study, rng.random(dimensions(study)).tolist()))
            for _ in range(PROBE)
        )
        tried = f"all of {PROBE} random points"
    return (
        ""
        if kept
        else f"search.reject: must leave a part of the space, but {tried} are rejected; loosen a "
        f"rule"
    )


def beyond_trials(study: Study) -> str:
    """That the grid goes on after the last trial, as one line; empty when it does not."""
    if study.search.sampler != "grid":
        return ""
    if next(itertools.islice(_allowed(study), study.search.trials, None), None) is None:
        return ""
    return (
        f"search.trials: the grid has more combinations than the {study.search.trials} that are "
        "tried, which are its first; raise it to try them all"
    )


def _allowed(study: Study) -> Iterator[dict[str, Any]]:
    """The points of a grid that no rule rejects, of its first LONGEST."""
    points = itertools.islice(grid(study), LONGEST)
    return (point for point in points if not rejected(study, point))


def _value(param: Param, u: float) -> Any:
    if param.choice is not None:
        return param.choice[min(int(u * len(param.choice)), len(param.choice) - 1)]
    if param.int_uniform is not None:
        low, high = param.int_uniform
        return min(low + int(u * (high - low + 1)), high)
    if param.log_uniform is not None:
        log_low, log_high = (math.log(b) for b in param.log_uniform)
        return min(
            max(math.exp(log_low + u * (log_high - log_low)), param.log_uniform[0]),
            param.log_uniform[1],
        )
    low_f, high_f = param.uniform or (0.0, 1.0)
    return low_f + u * (high_f - low_f)
