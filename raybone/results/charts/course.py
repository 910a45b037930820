"""How configurations learned, and how the search came to its best one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np

from raybone.hpo.state import Configuration, State
from raybone.results.charts.vega import HUES, LINE, Chart, Row, drawn, over, short, y_axis
from raybone.study.spec import ResolvedStudy, Study
from raybone.types import Array

BEST, OTHERS, POINTS = 6, 200, 40  # curves in colour, curves in grey, points of a grey one
DASHES = [[1, 0], [6, 2], [2, 2], [8, 2, 2, 2], [4, 4], [10, 3]]
MEAN = "mean of the folds"


@dataclass(frozen=True)
class Completion:
    """When a configuration was complete: fold epochs that the study had trained by then, and hours
    that it had run.
    """

    config_id: str
    fold_epochs: int
    hours: float


def learning(study: ResolvedStudy, state: State, order: Sequence[str]) -> Chart:
    """The metric by epoch: a panel with means over the folds that there are, and one for each fold.

    Args:
        order: config_ids, the best first.
    """
    panels = [MEAN, *(f"fold {k}" for k in range(study.resolved.folds))]
    begun = [c for c in order if state.configurations[c].epochs][: BEST + OTHERS]
    best, others = begun[:BEST], len(begun[BEST:])
    rows: list[Row] = []
    for name in begun:
        rows += _curves(study, state.configurations[name], name in best)
    base = alt.Chart().encode(
        alt.X("x:Q", title="epoch", axis=alt.Axis(tickMinStep=1)), y_axis(study.metric)
    )
    grey = (
        base.transform_filter("datum.g == 0")
        .mark_line(color=LINE, strokeWidth=0.7, opacity=0.7, aria=False)
        .encode(detail="c:N")
    )
    top = (
        base.transform_filter("datum.g == 1")
        .mark_line(strokeWidth=1.8, point=study.epochs == 1)
        .encode(
            alt.Color("c:N", scale=alt.Scale(domain=best), title="configuration"),
            alt.StrokeDash(
                "c:N", scale=alt.Scale(domain=best, range=DASHES), title="configuration"
            ),
        )
    )
    layers = [grey, top] if others else [top]
    chart = alt.layer(*layers, data=alt.NamedData("rows")).facet(
        facet=alt.Facet("p:N", sort=panels, title=None),
        columns=4 if len(panels) % 4 in (0, 3) else 3,
    )
    says = (
        f"{study.metric} on the validation patients after each epoch, of the {len(best)} best "
        f"configurations: {', '.join(best)}."
    )
    if others:
        says += f" Thin grey: {others} others, means of the folds they ran."
    return drawn(f"{study.metric} by epoch and fold", says, chart, {"rows": rows}, wide=False)


def _curves(study: Study, configuration: Configuration, top: bool) -> Iterator[Row]:
    """The mean of the folds; of the top ones each fold as well, with more points."""
    runs = sorted(configuration.epochs.items())
    folds = {f"fold {k}": np.array(run.metrics.get(study.metric, ()), float) for k, run in runs}
    points = 4 * POINTS if top else POINTS
    for panel, curve_E in [(MEAN, _mean([*folds.values()])), *(folds.items() if top else ())]:
        for e in spread(len(curve_E), points):
            row = {"p": panel, "c": configuration.id, "g": int(top)}
            yield {**row, "x": e + 1, "y": short(curve_E[e])}


def _mean(curves: Sequence[Array]) -> Array:
    """The mean at each epoch over the folds that have it."""
    mean_E = np.zeros(max(map(len, curves)))
    for e in range(len(mean_E)):
        mean_E[e] = np.mean([curve_E[e] for curve_E in curves if e < len(curve_E)])
    return mean_E


def regret(study: Study, course: Sequence[Completion], mean_of: Mapping[str, float]) -> Chart:
    """How far the best complete configuration so far was from the best at the end.

    Args:
        course: completions, oldest first.
        mean_of: the final mean of each, by config_id.
    """
    better: Any = max if study.direction == "maximize" else min
    best = better(course, key=lambda c: mean_of[c.config_id])
    final, so_far = mean_of[best.config_id], mean_of[course[0].config_id]
    rows: list[Row] = []
    for c in course:
        so_far = better(so_far, mean_of[c.config_id])
        row = {"y": short(abs(final - so_far)), "c": c.config_id}
        rows += [
            {"p": "fold epochs trained", "x": short(c.fold_epochs), **row},
            {"p": "hours of the search", "x": short(c.hours), **row},
        ]
    top = alt.Scale(domain=[0, rows[0]["y"] or 1])
    chart = (
        over(
            "rows",
            alt.X("x:Q", title=None, scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=6)),
            alt.Y("y:Q", title=f"{study.metric} behind the best", scale=top),
        )
        .mark_line(interpolate="step-after", color=HUES[0], point={"color": HUES[0]})
        .encode(tooltip=["c:N", "x:Q", "y:Q"])
        .facet(facet=alt.Facet("p:N", title=None), columns=2)
        .resolve_scale(x="independent")
    )
    says = (
        f"Of {len(course)} completions, that of the final best, {best.config_id}, came after "
        f"{best.fold_epochs} fold epochs and {best.hours:.2f} hours."
    )
    return drawn("Regret over time", says, chart, {"rows": rows}, wide=False)


def spread(count: int, most: int) -> list[int]:
    """At most so many indices from the first to the last of ``count``."""
    index_N = np.linspace(0, max(count - 1, 0), min(count, most)).round().astype(int)
    return sorted(set(index_N.tolist()))
