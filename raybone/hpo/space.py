"""Points of the unit cube to hyper-parameters, grids, and conditions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

from raybone.spec import Param


def from_unit(space: Mapping[str, Param], point: list[float]) -> dict[str, Any]:
    """The hyper-parameters at a point of [0, 1)^D, one coordinate a parameter in the order of the space."""
    return active(space, {name: _value(param, u) for (name, param), u in zip(space.items(), point)})


def active(space: Mapping[str, Param], values: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out parameters whose ``when`` does not hold."""
    return {name: value for name, value in values.items()
            if all(values.get(k) == v for k, v in (space[name].when or {}).items())}


def grid(space: Mapping[str, Param]) -> list[dict[str, Any]]:
    """Every combination of the choices, in the order of the space, without repeats that conditions make."""
    points = []
    for values in itertools.product(*(p.choice or () for p in space.values())):
        point = active(space, dict(zip(space, values)))
        if point not in points:
            points.append(point)
    return points


def _value(param: Param, u: float) -> Any:
    if param.choice is not None:
        return param.choice[min(int(u * len(param.choice)), len(param.choice) - 1)]
    if param.int_uniform is not None:
        low, high = param.int_uniform
        return min(low + int(u * (high - low + 1)), high)
    if param.log_uniform is not None:
        log_low, log_high = (math.log(b) for b in param.log_uniform)
        return min(max(math.exp(log_low + u * (log_high - log_low)), param.log_uniform[0]), param.log_uniform[1])
    low_f, high_f = param.uniform or (0.0, 1.0)
    return low_f + u * (high_f - low_f)
