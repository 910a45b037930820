"""Configurations by their hyper-parameters: as lines over all of them, and the metric over each."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from raybone.results.charts.vega import (
    HUES,
    INK,
    LINE,
    Chart,
    Row,
    drawn,
    over,
    plain,
    short,
    word,
    y_axis,
)
from raybone.study.param import Param
from raybone.study.space import joint
from raybone.study.spec import Study

MOST = 12  # parameters
FEW = 8  # values of a parameter that are all named on its axis
NONE = -0.15  # where an axis shows that a configuration has no such parameter, or no score
STATES = {"complete": [1, 0], "stopped": [5, 3], "running": [2, 2], "failed": [1, 4]}
SHAPES = ["circle", "triangle-up", "square", "cross"]
SHADES = [f"var(--q{n})" for n in range(1, 6)]


@dataclass(frozen=True)
class Axis:
    """A searched parameter on a chart.

    value, height: the columns of ``configurations`` that hold its values, and their heights.
    """

    name: str
    param: Param
    value: str
    height: str

    def height_of(self, value: Any) -> float:
        """From 0 to 1 along its range, by its logarithm where it is drawn so; ``NONE`` for no
        value.
        """
        if value is None or not self.param.admits(value):
            return NONE
        if self.param.choice is not None:
            return round(self.param.choice.index(value) / max(len(self.param.choice) - 1, 1), 4)
        low, high = self.param.bounds or (0.0, 1.0)
        if self.param.log_uniform:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return round((value - low) / (high - low), 4)

    def ends(self) -> list[Row]:
        """Its values with their heights, or its limits where there are many."""
        values: Sequence[Any] = self.param.choice or self.param.bounds or ()
        if len(values) > FEW:
            values = (values[0], values[-1])
        return [{"k": self.height, "y": self.height_of(v), "t": str(word(v))[:18]} for v in values]


def axes(study: Study) -> list[Axis]:
    """The parameters that charts show, in the study's order and by the names of ``joint``."""
    shown = list(joint(study).items())[:MOST]
    return [Axis(name, param, f"p{n}", f"n{n}") for n, (name, param) in enumerate(shown)]


def configurations(study: Study, records: Sequence[Row]) -> list[Row]:
    """One row a configuration, the best last, for ``parallel`` and ``slices``.

    Returns:
        c its name, w whether it wins, s its state, m its mean, nm the height of that; with the
        number of a parameter, p its value and n its height from 0 to 1, or below where the
        configuration has none.
    """
    column, sign = f"{study.metric}_mean", study.sign
    shown, means = axes(study), [r[column] for r in records if r[column] is not None]
    rows = []
    for record in records:
        mean = record[column]
        row = {"c": record["config_id"], "w": int(record["rank"] == 1)}
        for axis in shown:
            value = record["params"].get(axis.name)
            row[axis.value] = word(value) if axis.param.choice else short(value)
            row[axis.height] = axis.height_of(value)
        row |= {"s": record["state"].partition("@")[0], "m": short(mean), "nm": NONE}
        if mean is not None:
            row["nm"] = short((mean - min(means)) / ((max(means) - min(means)) or 1))
        rows.append(row)
    return sorted(rows, key=lambda r: (r["m"] is not None, sign * (r["m"] or 0.0)))


def parallel(study: Study, rows: Sequence[Row]) -> Chart:
    """All configurations as lines over the parameters; colour is the metric, dashes are not
    complete.
    """
    shown, means = axes(study), [r["m"] for r in rows if r["m"] is not None]
    titles = {axis.height: plain(axis.name) for axis in shown} | {"nm": plain(study.metric)}
    ends: list[Row] = [
        {"k": "nm", "y": 0, "t": f"{min(means):.4g}"},
        {"k": "nm", "y": 1, "t": f"{max(means):.4g}"},
    ]
    for axis in shown:
        ends += axis.ends()
    ends += [{"k": k, "y": NONE, "t": "none"} for k in titles if any(r[k] == NONE for r in rows)]
    x, y = _columns(titles), alt.Y("y:Q", axis=None)
    marks = over("ends", x, y)
    words = [
        marks.mark_text(
            dx=5, align="left", fontSize=11, stroke=halo, strokeWidth=4, aria=not halo
        ).encode(text="t:N")
        for halo in ("var(--page)", "")
    ]
    frame = marks.mark_line(color=LINE, aria=False).encode(detail="k:N")
    lines = _lines(study, rows, over("configurations", x, y).transform_fold([*titles], ["k", "y"]))
    says = (
        "Each line is a configuration, from its parameters to its mean score; the stronger its "
        "colour the better. Scores of stopped ones are of the folds and epochs that they got, and "
        "not comparable with complete ones."
    )
    chart = alt.layer(frame, lines, *words)
    return drawn("Parallel coordinates", says, chart, {"ends": ends})


def _columns(titles: dict[str, str]) -> alt.X:
    """An upright axis side by side for each of these columns, its title above it."""
    return alt.X(
        "k:N",
        sort=[*titles],
        title=None,
        scale=alt.Scale(type="point", padding=0.4),
        axis=alt.Axis(
            labelExpr=f"({json.dumps(titles)})[datum.value]",
            labelAngle=0,
            orient="top",
            domain=False,
            ticks=False,
            labelFontWeight="bold",
            labelLimit=110,
            labelOverlap=False,
            labelPadding=14,
        ),
    )


def _lines(study: Study, rows: Sequence[Row], base: alt.Chart) -> alt.Chart:
    """A line for each configuration."""
    known = sorted({r["s"] for r in rows}, key=list(STATES).index)
    shades = SHADES if study.direction == "maximize" else SHADES[::-1]
    opacity = 0.75 if len(rows) < 100 else 0.4
    return base.mark_line(strokeWidth=1.5, opacity=opacity, aria=False).encode(
        detail="c:N",
        tooltip=[
            "c:N",
            "s:N",
            alt.Tooltip("m:Q", title=study.metric),
            *(alt.Tooltip(f"{axis.value}:N", title=plain(axis.name)) for axis in axes(study)),
        ],
        color=alt.Color(
            "m:Q",
            scale=alt.Scale(type="quantile", range=shades),
            title=f"{study.metric}, by fifths",
            legend=alt.Legend(format=".3f"),
        ),
        strokeDash=alt.StrokeDash(
            "s:N",
            title="state",
            scale=alt.Scale(domain=known, range=[STATES[s] for s in known]),
        ),
    )


def slices(study: Study, rows: Sequence[Row], order: Iterable[str]) -> list[Chart]:
    """The metric over each parameter, one chart each.

    Args:
        order: names of parameters, as the charts shall stand; others have no chart.
    """
    known = sorted({r["s"] for r in rows if r["m"] is not None}, key=list(STATES).index)
    by_name = {axis.name: axis for axis in axes(study)}
    shown = [by_name[name] for name in order if name in by_name] if known else []
    return [_slice(study, rows, axis, known) for axis in shown]


def _slice(study: Study, rows: Sequence[Row], axis: Axis, known: list[str]) -> Chart:
    """The metric over one parameter, its points by state."""
    key = axis.value
    tooltip: list[str | alt.Tooltip] = [
        "c:N",
        "s:N",
        alt.Tooltip(f"{key}:N", title=plain(axis.name)),
        alt.Tooltip("m:Q", title=study.metric),
    ]
    base = (
        over("configurations", _x(axis), y_axis(study.metric, "m:Q"))
        .transform_filter(f"isValid(datum.m) && isValid(datum.{key})")
        .encode(tooltip=tooltip)
    )
    points = base.mark_point(size=45, opacity=0.8, aria=False).encode(
        alt.Color("s:N", title=None, scale=alt.Scale(domain=known, range=HUES)),
        alt.Shape("s:N", title=None, scale=alt.Scale(domain=known, range=SHAPES)),
    )
    says = "".join(f"Where {k} is {v}. " for k, v in (axis.param.when or {}).items())
    best = next((r[key] for r in rows if r["w"] and r[key] is not None), None)
    if best is None:
        return drawn(axis.name, f"{says}The winner has none.", alt.layer(points), {})
    ring = base.transform_filter("datum.w == 1").mark_point(size=200, strokeWidth=2, color=INK)
    says += f"The winner, ringed, has {word(best)}."
    return drawn(axis.name, says, alt.layer(points, ring), {})


def _x(axis: Axis) -> alt.X:
    """The parameter's values side by side, or its range."""
    title, param = plain(axis.name), axis.param
    if param.choice:
        values = [str(word(v)) for v in param.choice]
        return alt.X(
            f"{axis.value}:N",
            title=title,
            axis=alt.Axis(labelAngle=0),
            scale=alt.Scale(domain=values),
        )
    return alt.X(
        f"{axis.value}:Q",
        title=title,
        axis=alt.Axis(tickCount=5, grid=False, format="~g"),
        scale=alt.Scale(
            type="log" if param.log_uniform else "linear",
            domain=list(param.bounds or ()),
            nice=False,
        ),
    )
