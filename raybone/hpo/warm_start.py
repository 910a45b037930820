"""Earlier leaderboards as a start for a new search: their scores steer what is proposed, and are
ranked nowhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from raybone.errors import WrongInput
from raybone.study.param import Param, Value
from raybone.study.space import identity, rejected
from raybone.study.spec import Observation, Prior, Study

POINTS = 3  # earlier configurations that are tried again first


Row = Mapping[str, Any]  # a row of a leaderboard; where it was read from a CSV file, all is text


def warm_start(study: Study, tables: Mapping[str, Sequence[Row]]) -> Prior:
    """What a search may take over from earlier leaderboards.

    Datasets, folds and test groups differ between studies, so scores of two of them are never
    compared: a row counts by its standing among the rows of its own study (quantiles, as Salinas et
    al. 2020, arXiv:1909.13595). Rows that lie outside the study's space or fixed values are left
    out.

    Args:
        tables: leaderboards, by the name that messages give them.
    Raises:
        WrongInput: one is no leaderboard, has no row with a score or is of another metric, or no
            row fits the space.
    """
    seen: list[Observation] = []
    complete: list[Observation] = []
    left_out = 0
    for source, table in tables.items():
        rows = _standings(study, source, table)
        others = {row.get("model") for row in rows} - {None}
        for number, row in enumerate(rows):
            foreign = len(others) > 1 and row.get("model") not in study.names
            params = None if foreign and others & set(study.names) else _params(study, row)
            if params is None or rejected(study, params):
                left_out += 1
                continue
            seen.append(Observation(params=params, standing=(number + 0.5) / len(rows)))
            complete += seen[-1:] if row["state"] == "complete" else []
    if not seen:
        raise WrongInput(
            f"--warm-start {' '.join(tables)}: must have a row inside the study's space and fixed "
            f"values, but none of {left_out} is; widen the space, or leave it out"
        )
    # Two rows of the same hyper-parameters are one point; the better one gives its place.
    best = {identity(o.params): o.params for o in sorted(complete, key=lambda o: o.standing)}
    points = tuple(reversed(best.values()))[:POINTS]
    return Prior(points=points, observations=tuple(seen), left_out=left_out)


def _standings(study: Study, source: str, table: Sequence[Row]) -> list[Row]:
    """The rows with scores of one leaderboard, worst first: who got further stands higher, then the
    score decides.
    """
    columns = set(table[0]) if table else set()
    ranked_by = {c.removesuffix("_ci_low") for c in columns if c.endswith("_ci_low")} - {"delta"}
    if table and not (ranked_by and {"state", "folds_done", "epochs_done"} <= columns):
        raise WrongInput(
            f"--warm-start {source}: must be a leaderboard of raybone, but lacks its columns; give "
            "the leaderboard.csv of a study"
        )
    if table and study.metric not in ranked_by:
        raise WrongInput(
            f"--warm-start {source}: must be ranked by this study's {study.metric}, but is by "
            f"{min(ranked_by)}; give another leaderboard"
        )
    rows = [r for r in table if r["state"] == "complete" or r["state"].startswith("stopped@")]
    if not rows:
        raise WrongInput(
            f"--warm-start {source}: must have rows that are complete or stopped, but has none; "
            "give another leaderboard"
        )

    def standing(row: Row) -> tuple[float, ...]:
        done = _number(row["folds_done"]), _number(row["epochs_done"])
        score = study.sign * _number(row[f"{study.metric}_mean"])
        return row["state"] == "complete", *done, -math.inf if math.isnan(score) else score

    return sorted(rows, key=standing)


def _params(study: Study, row: Row) -> dict[str, Value] | None:
    """A row's hyper-parameters, or None when the study's space could not have drawn them."""
    if study.models:
        name = str(row.get("model"))
        own = _params(study.of(name), row) if name in study.models else None
        return None if own is None else {"model": name, **own}
    known = {k.removeprefix("cfg."): v for k, v in row.items() if k.startswith("cfg.")}
    if not all(_same(known[k], v) for k, v in study.fixed.items() if k in known):
        return None
    values: dict[str, Value] = {}
    for name, param in sorted(study.space.items(), key=lambda item: item[1].when is not None):
        if any(values.get(k) != v for k, v in (param.when or {}).items()):
            continue
        readings = _readings(param, known[name]) if name in known else []
        if not readings:
            return None
        values[name] = readings[0]
    return {name: values[name] for name in study.space if name in values}


def _readings(param: Param, known: Any) -> list[Value]:
    """The values of a distribution that a known one stands for."""
    if param.choice is not None:
        return [v for v in param.choice if _same(known, v)]
    number = _number(known)
    value = int(number) if param.int_uniform and number.is_integer() else number
    return [value] if param.admits(value) else []


def _same(known: Any, value: Value) -> bool:
    """Whether a cell, perhaps as text, is this value."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _number(known) == value
    return _text(known) == _text(value)


def _text(value: Any) -> str:
    return "" if value is None or value != value else str(value)


def _number(cell: Any) -> float:
    """A cell, perhaps as text, as a number; NaN when it is none."""
    try:
        return float(cell)
    except (TypeError, ValueError):
        return math.nan
