"""Which model: the best configuration of each, beside the best of every other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations, permutations
from typing import TYPE_CHECKING, Any

import numpy as np

from raybone.metrics.intervals import holm
from raybone.results.leaderboard import Entry, against, corrected, metric_of, verdict

if TYPE_CHECKING:
    import pandas as pd

    from raybone.results.speed import Timer

Row = dict[str, Any]
# What is said of each pair of models, in a column for every other model, as ``p_holm[unet]``.
MATRIX = {
    "delta": "delta_to_best",
    "p": "p_to_best",
    "p_bootstrap": "p_to_best_bootstrap",
    "p_holm": "p_holm",
}


def by_model(
    table: pd.DataFrame, entries: Mapping[str, Entry], timer: Timer | None = None
) -> pd.DataFrame:
    """One row a model, the best first; those without a complete configuration follow.

    A model stands for its best complete row, whose cells are those of the leaderboard. As the best
    of several it looks better than it is, the more so the more there were: ``corrected`` is its
    score without the choice among the complete rows of its model. ``p_to_best`` is Nadeau &
    Bengio's against the best of all; ``p_holm`` is that p after Holm's correction for all pairs of
    models, and decides the ``verdict``. ``configurations``, ``train_hours`` and ``gpu_hours`` are
    of all rows of the model.

    Args:
        table: a leaderboard. entries: what it was made of.
        timer: times the best configuration of each model, for the columns ms and ms_on.
    Returns:
        The rows, whose last columns are those of ``MATRIX`` for each model that has a complete row:
        delta is the row's mean minus that of the model in brackets.
    """
    import pandas as pd  # training processes import what this file imports

    rows: list[Any] = table.to_dict("records")
    m = metric_of(table)
    rows_of = {
        name: [r for r in rows if r["model"] == name] for name in dict.fromkeys(table["model"])
    }
    best = {name: own[0] for name, own in rows_of.items() if own[0]["state"] == "complete"}
    pairs = _pairs(best, entries, f"{m}_mean")
    summary = [_row(m, own, entries) for own in rows_of.values()]
    for row in summary[1 : len(best)]:
        row |= pairs[row["model"], summary[0]["model"]]
    if best:
        first = best[summary[0]["model"]]
        summary[0] |= {name: first[name] for name in ("delta_to_best", "verdict")}
    if timer:
        times = timer.columns([entries[r["config_id"]] for r in best.values()])
        for row, of_row in zip(summary, times):
            row |= of_row
    for row in summary:
        for other in best:
            pair = pairs.get((row["model"], other), {})
            row |= {f"{key}[{other}]": pair.get(name, math.nan) for key, name in MATRIX.items()}
    return pd.DataFrame(summary or [_row(m, [], entries)])[: len(summary)]


def _pairs(
    best: Mapping[str, Row], entries: Mapping[str, Entry], mean: str
) -> dict[tuple[str, str], Row]:
    """The columns that compare one model's best row with another's, in both directions."""
    pairs = {
        (one, other): {
            "delta_to_best": best[one][mean] - best[other][mean],
            **against(best[one], best[other], entries),
        }
        for one, other in permutations(best, 2)
    }
    once = [*combinations(best, 2)]
    adjusted = holm(np.array([pairs[pair]["p_to_best"] for pair in once]))
    for (one, other), p in zip(once, adjusted.tolist()):
        for pair in ((one, other), (other, one)):
            pairs[pair] |= {"p_holm": p, "verdict": verdict(p)}
    return pairs


def _row(m: str, own: Sequence[Row], entries: Mapping[str, Entry]) -> Row:
    """The cells of a model by itself."""
    complete = [r for r in own if r["state"] == "complete"]
    best = complete[0] if complete else {}
    ends = [f"{m}_{kind}_{end}" for kind in ("ci", "nb") for end in ("low", "high")]
    return {
        "model": own[0]["model"] if own else "",
        "config_id": best.get("config_id", ""),
        "configurations": len(own),
        "complete": len(complete),
        **{name: best.get(name, math.nan) for name in (f"{m}_mean", *ends)},
        f"{m}_corrected": corrected(entries[best["config_id"]][0], complete) if best else math.nan,
        **dict.fromkeys(("delta_to_best", "delta_ci_low", "delta_ci_high"), math.nan),
        **dict.fromkeys(("p_to_best", "p_to_best_bootstrap", "p_holm"), math.nan),
        "verdict": "",
        "train_hours": round(sum(r["train_seconds"] for r in own) / 3600, 4),
        "gpu_hours": round(sum(r["gpu_hours"] for r in own), 4),
        "parameters": best.get("parameters", math.nan),
        "warnings": best.get("warnings", ""),
    }
