"""Points of the unit cube to hyper-parameters, grids, and conditions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from raybone.study.constraints import holds
from raybone.study.param import Param
from raybone.study.spec import Study

LONGEST = (
    100_000  # combinations of a grid rejected in a row, after which nothing is thought to be left
)
PROBE = 1000  # random points that show how much of a space the rules leave


def from_unit(space: Mapping[str, Param], point: list[float]) -> dict[str, Any]:
    """The hyper-parameters at a point of [0, 1)^D, one coordinate a parameter in the order of the
    space.
    """
    return active(space, draw(space, point))


def draw(space: Mapping[str, Param], point: list[float]) -> dict[str, Any]:
    """As ``from_unit``, with the parameters that are off as well."""
    return {name: _value(param, u) for (name, param), u in zip(space.items(), point)}


def active(space: Mapping[str, Param], values: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out parameters whose ``when`` does not hold."""
    return {
        name: value
        for name, value in values.items()
        if all(values.get(k) == v for k, v in (space[name].when or {}).items())
    }


def complete(
    space: Mapping[str, Param], point: Mapping[str, Any], rest: Mapping[str, Any]
) -> dict[str, Any]:
    """A point as a whole configuration: what it leaves out follows from its conditions, or is taken
    from ``rest``.

    Args:
        rest: a value for every parameter, those that are off as well.
    """
    given: dict[str, Any] = {}
    for name, value in point.items():
        given |= space[name].when or {}
        given[name] = value
    for name, value in given.items():
        choice = space[name].choice
        # As the space writes it, so that a repeat is seen as one.
        given[name] = (
            choice[choice.index(value)]
            if choice
            else value
            if space[name].int_uniform
            else float(value)
        )
    return active(space, {name: given.get(name, rest[name]) for name in space})


def grid(space: Mapping[str, Param]) -> Iterator[dict[str, Any]]:
    """Every combination of the choices, in the order of the space, without repeats that conditions
    make.
    """
    seen = set()
    for values in itertools.product(*(p.choice or () for p in space.values())):
        point = active(space, dict(zip(space, values)))
        if (name := identity(point)) not in seen:
            seen.add(name)
            yield point


def identity(point: Mapping[str, Any]) -> str:
    """The same text for the same hyper-parameters."""
    return repr(sorted(point.items()))


def rejected(study: Study, params: Mapping[str, Any]) -> bool:
    """Whether a rule of ``search.reject`` is true of a configuration."""
    return any(holds(rule, {**study.fixed, **params}) for rule in study.search.reject)


def left_by_rules(study: Study) -> str:
    """That the rules leave nothing to search, or next to nothing, as one line; empty when they
    leave enough.
    """
    space, rules = study.space, study.search.reject
    if not rules:
        return ""
    if study.search.sampler == "grid":
        kept = any(not rejected(study, point) for point in itertools.islice(grid(space), LONGEST))
        tried = f"all combinations (of the first {LONGEST})"
    else:
        rng = np.random.default_rng(study.search.seed)
        kept = any(
            not rejected(study, from_unit(space, rng.random(len(space)).tolist()))
            for _ in range(PROBE)
        )
        tried = f"all of {PROBE} random points"
    return (
        ""
        if kept
        else f"search.reject: must leave a part of the space, but {tried} are rejected; loosen a "
        f"rule"
    )


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
