"""Earlier leaderboards as a start for a new search: their scores steer what is proposed, and are
ranked nowhere.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence

from raybone.errors import WrongInput
from raybone.storage import Folder
from raybone.study.space import identity, rejected
from raybone.study.spec import Observation, Param, Prior, Study, Value
from raybone.types import plain_cell

POINTS = 3  # earlier configurations that are tried again first
Row = dict[str, str]


def warm_start(study: Study, sources: Sequence[str]) -> Prior:
    """What a search may take over from earlier leaderboards.

    Datasets, folds and test groups differ between studies, so scores of two of them are never
    compared: a row counts by its standing among the rows of its own study (quantiles, as Salinas et
    al. 2020, arXiv:1909.13595). Rows that lie outside the study's space or fixed values are left
    out.

    Args:
        sources: files or URLs of leaderboards, or study folders.
    Raises:
        WrongInput: a source is missing, is no leaderboard, is empty or of another metric, or no row
            fits the space.
    """
    told: list[Observation] = []
    complete: list[Observation] = []
    left_out = 0
    for source in sources:
        rows = _standings(study, source)
        for place, row in enumerate(rows):
            params = _params(study, row)
            if params is None or rejected(study, params):
                left_out += 1
                continue
            told.append(Observation(params=params, standing=(place + 0.5) / len(rows)))
            complete += told[-1:] if row["state"] == "complete" else []
    if not told:
        raise WrongInput(
            f"--warm-start {' '.join(sources)}: must have a row inside the study's space and fixed "
            f"values, but none of {left_out} is; widen the space, or leave it out"
        )
    # Two rows of the same hyper-parameters are one point; the better one gives its place.
    best = {identity(o.params): o.params for o in sorted(complete, key=lambda o: o.standing)}
    points = tuple(reversed(best.values()))[:POINTS]
    return Prior(points=points, observations=tuple(told), left_out=left_out)


def _standings(study: Study, source: str) -> list[Row]:
    """The rows with scores of one leaderboard, worst first: who got further stands higher, then the
    score decides.
    """
    place = Folder(source)
    folder, _, name = (
        f"./{place.url}".rpartition("/") if "/" not in place.url else place.url.rpartition("/")
    )
    content = (
        place.read("leaderboard.csv")
        if place.fs.isdir(place.path)
        else Folder(folder or "/").read(name)
    )
    if content is None:
        raise WrongInput(
            f"--warm-start {source}: must be a leaderboard.csv or a study folder, but there is "
            f"none; "
            "check the path"
        )
    text = io.StringIO(content.decode("utf-8", "replace"), newline="")
    table = [
        {k: plain_cell(v) for k, v in row.items() if k} for row in csv.DictReader(text, restval="")
    ]
    columns = set(table[0]) if table else set()
    ranked_by = sorted(
        {c.removesuffix("_ci_low") for c in columns if c and c.endswith("_ci_low")} - {"delta"}
    )
    if table and not (ranked_by and {"state", "folds_done", "epochs_done"} <= columns):
        raise WrongInput(
            f"--warm-start {source}: must be a leaderboard of raybone, but lacks its columns; "
            "give the leaderboard.csv of a study"
        )
    if table and study.metric not in ranked_by:
        raise WrongInput(
            f"--warm-start {source}: must be ranked by this study's {study.metric}, but is by "
            f"{ranked_by[0]}; give another leaderboard"
        )
    rows = [r for r in table if r["state"] == "complete" or r["state"].startswith("stopped@")]
    if not rows:
        raise WrongInput(
            f"--warm-start {source}: must have rows that are complete or stopped, but has none; "
            "give another leaderboard"
        )
    sign = 1 if study.direction == "maximize" else -1

    def standing(row: Row) -> tuple[float, ...]:
        mean = _number(row[f"{study.metric}_mean"])
        return (
            row["state"] == "complete",
            _number(row["folds_done"]),
            _number(row["epochs_done"]),
            -math.inf if math.isnan(mean) else sign * mean,
        )

    return sorted(rows, key=standing)


def _params(study: Study, row: Row) -> dict[str, Value] | None:
    """A row's hyper-parameters, or None when the study's space could not have drawn them."""
    cells = {name: row.get(f"cfg.{name}") for name in [*study.fixed, *study.space]}
    if any(
        cell is not None and not _stands_for(cell, study.fixed[name])
        for name, cell in cells.items()
        if name in study.fixed
    ):
        return None
    values: dict[str, Value] = {}
    for name, param in sorted(study.space.items(), key=lambda item: item[1].when is not None):
        if any(values.get(k) != v for k, v in (param.when or {}).items()):
            continue
        cell = cells[name]
        found = [] if cell is None else _readings(param, cell)
        if not found:
            return None
        values[name] = found[0]
    return {name: values[name] for name in study.space if name in values}


def _readings(param: Param, cell: str) -> list[Value]:
    """The values of a distribution that are written so."""
    if param.choice is not None:
        return [v for v in param.choice if _stands_for(cell, v)]
    number = _number(cell)
    value = int(number) if param.int_uniform and number.is_integer() else number
    return [value] if param.admits(value) else []


def _stands_for(cell: str, value: Value) -> bool:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _number(cell) == value
    return cell == ("" if value is None else str(value))


def _number(cell: str) -> float:
    """A cell as a number, NaN when it is none."""
    try:
        return float(cell)
    except ValueError:
        return math.nan
