"""The charts of a report, as Vega-Lite by Altair; colours are CSS variables, so that a page's theme
holds in them.
"""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import accumulate, zip_longest
from typing import Any

import numpy as np
import optuna

from raybone.hpo.sampler import STARTUP, distributions
from raybone.hpo.state import State
from raybone.metrics.lesions import RATES
from raybone.study.spec import Study
from raybone.types import Array

# altair asks for a home folder as it is imported, and a container's user may have none.
_homeless = "HOME" not in os.environ
os.environ.setdefault("HOME", tempfile.gettempdir())
import altair as alt  # noqa: E402

if _homeless:
    del os.environ["HOME"]

Row = dict[str, Any]
BEST, OTHERS, POINTS = 6, 200, 40  # curves in colour, curves in grey, points of a grey one
SHOWN = 10  # configurations compared fold by fold
MOST = 12  # parameters
NONE = -0.15  # where an axis shows that a configuration has no such parameter, or no score
STATES = {"complete": [1, 0], "stopped": [5, 3], "running": [2, 2], "failed": [1, 4]}
SHAPES = ["circle", "triangle-up", "square", "cross"]
HUES, SHADES = (
    [f"var(--{letter}{n})" for n in range(1, count + 1)] for letter, count in (("c", 6), ("q", 5))
)
DASHES = [[1, 0], [6, 2], [2, 2], [8, 2, 2, 2], [4, 4], [10, 3]]
_INK, _LINE = "var(--ink)", "var(--line)"
# Of all charts; text is as wide as in the fonts that a page without outside resources has.
CONFIG: dict[str, Any] = {
    "background": "transparent",
    "font": "system-ui, sans-serif",
    "view": {"stroke": None, "continuousHeight": 260, "continuousWidth": 250},
    "axis": {
        "domainColor": _LINE,
        "tickColor": _LINE,
        "gridColor": "var(--grid)",
        "labelColor": _INK,
        "titleColor": _INK,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
    },
    "legend": {
        "labelColor": _INK,
        "titleColor": _INK,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "orient": "bottom",
        "titleFontWeight": "normal",
        "labelLimit": 300,
        "symbolStrokeWidth": 2,
        "columns": 3,
        "symbolBaseStrokeColor": _INK,
        "symbolSize": 120,
    },
    "header": {"labelColor": _INK, "labelFontSize": 12},
    "range": {"category": HUES},
    "text": {"color": _INK, "fontSize": 12},
    "rule": {"color": _INK},
    "tick": {"color": _INK},
}


@dataclass(frozen=True)
class Chart:
    """A Vega-Lite spec without data, the data by name, a title and what the chart shows in
    words.
    """

    title: str
    says: str
    spec: dict[str, Any]
    data: dict[str, list[Row]]


def javascript() -> str:
    """Vega, Vega-Lite and vega-embed as one script, which ``make vega`` writes."""
    return files("raybone.results").joinpath("vega.js").read_text("utf-8")


def learning(study: Study, state: State, order: Sequence[str]) -> Chart:
    """The metric by epoch: a panel with means over the folds that there are, and one for each fold.

    Args:
        order: config_ids, the best first.
    """
    assert study.resolved is not None
    panels = ["mean of the folds", *(f"fold {k}" for k in range(study.resolved.folds))]
    shown = [c for c in order if state.configurations[c].epochs][: BEST + OTHERS]
    rows: list[Row] = []
    for place, name in enumerate(shown):
        runs = sorted(state.configurations[name].epochs.items())
        curves = [(f"fold {k}", np.array(r.metrics.get(study.metric, ()), float)) for k, r in runs]
        mean_E = [
            float(np.mean([v for v in seen if v is not None]))
            for seen in zip_longest(*(c for _, c in curves))
        ]
        for panel, curve in [(panels[0], mean_E), *(curves if place < BEST else ())]:
            rows += [
                {"p": panel, "c": name, "g": int(place < BEST), "x": e + 1, "y": _short(curve[e])}
                for e in _spread(len(curve), 4 * POINTS if place < BEST else POINTS)
            ]
    best, others = shown[:BEST], len(shown[BEST:])
    base = alt.Chart().encode(
        alt.X("x:Q", title="epoch", axis=alt.Axis(tickMinStep=1)), _y(study.metric)
    )
    grey = (
        base.transform_filter("datum.g == 0")
        .mark_line(color=_LINE, strokeWidth=0.7, opacity=0.7, aria=False)
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
    chart = alt.layer(*([grey] if others else []), top, data=alt.NamedData("rows")).facet(
        facet=alt.Facet("p:N", sort=panels, title=None),
        columns=4 if len(panels) % 4 in (0, 3) else 3,
    )
    says = (
        f"{study.metric} on the validation patients after each epoch, of the {len(best)} best "
        f"configurations: {', '.join(best)}."
        + (f" Thin grey: {others} others, means of the folds they ran." if others else "")
    )
    return _chart(f"{study.metric} by epoch and fold", says, chart, {"rows": rows}, wide=False)


def folds(study: Study, complete: Sequence[Row]) -> Chart:
    """Scores of each fold of the best complete rows, a fold's scores joined, with means and
    intervals.
    """
    assert study.resolved is not None
    m, best = study.metric, complete[:SHOWN]
    rows = [
        {"c": r["config_id"], "k": str(k), "y": _short(r[f"{m}_fold{k}"])}
        for r in best
        for k in range(study.resolved.folds)
    ]
    means = [
        {
            "c": r["config_id"],
            "y": _short(r[f"{m}_mean"]),
            "a": _short(r[f"{m}_ci_low"]),
            "b": _short(r[f"{m}_ci_high"]),
        }
        for r in best
    ]
    x = alt.X(
        "c:N",
        sort=None,
        title="configuration, best first",
        axis=alt.Axis(labelAngle=0, labelOverlap=True),
    )
    base, mean = _of("rows", x, _y(m)), _of("means", x, _y(m))
    chart = alt.layer(
        base.mark_line(color=_LINE, strokeWidth=0.8, aria=False).encode(detail="k:N"),
        mean.mark_rule(strokeWidth=9, opacity=0.25, color=HUES[0]).encode(
            alt.Y("a:Q"), alt.Y2("b:Q")
        ),
        mean.mark_tick(thickness=3, width=28, color=HUES[0]).encode(
            tooltip=["c:N", "y:Q", "a:Q", "b:Q"]
        ),
        base.mark_text(fontWeight="bold").encode(text="k:N", tooltip=["c:N", "k:N", "y:Q"]),
    )
    says = (
        "Numbers are folds; a grey line joins the scores of one fold, so that folds that are hard "
        f"for everybody show as low lines. Bars are means, their shade the 95 % interval of {m}."
    )
    return _chart("Folds of the best configurations", says, chart, {"rows": rows, "means": means})


def differences(study: Study, complete: Sequence[Row]) -> Chart:
    """Each of the next complete rows against the winner on the same folds, with 95 % intervals."""
    rows: list[Row] = [
        {
            "c": r["config_id"],
            "x": _short(r["delta_to_best"]),
            "a": _short(r["delta_ci_low"]),
            "b": _short(r["delta_ci_high"]),
        }
        for r in complete[1:SHOWN]
    ]
    base = _of("rows", alt.Y("c:N", sort=None, title=None))
    chart = alt.layer(
        _of("zero", alt.X("x:Q")).mark_rule(strokeDash=[4, 3]),
        base.mark_rule(strokeWidth=2, color=HUES[0]).encode(alt.X("a:Q"), alt.X2("b:Q")),
        base.mark_point(filled=True, size=80, opacity=1, color=HUES[0]).encode(
            alt.X(
                "x:Q",
                title=f"difference in {study.metric} to the winner",
                axis=alt.Axis(tickCount=6),
            ),
            tooltip=["c:N", "x:Q", "a:Q", "b:Q"],
        ),
    ).properties(height=26 * len(rows))
    near = sum(r["a"] is not None and r["a"] <= 0 <= r["b"] for r in rows)
    says = (
        f"An interval across the dashed line at 0 does not tell one from the winner: {near} of "
        f"{len(rows)}."
    )
    return _chart("Difference to the winner", says, chart, {"rows": rows, "zero": [{"x": 0}]})


def configurations(study: Study, records: Sequence[Row]) -> list[Row]:
    """One row a configuration, the best last, for ``parallel`` and ``slices``.

    Returns:
        c its name, w whether it wins, s its state, m its mean; with the number of a parameter, p
        its value and n its place from 0 to 1, or below where the configuration has none.
    """
    rows, names, sign = [], list(study.space)[:MOST], 1 if study.direction == "maximize" else -1
    means = [m for r in records if (m := r[f"{study.metric}_mean"]) is not None]
    for record in records:
        m, row = (
            record[f"{study.metric}_mean"],
            {"c": record["config_id"], "w": int(record["rank"] == 1)},
        )
        for i, name in enumerate(names):
            value = record["params"].get(name)
            row |= {
                f"p{i}": _word(value) if study.space[name].choice else _short(value),
                f"n{i}": _place(study, name, value),
            }
        height = NONE if m is None else (m - min(means)) / ((max(means) - min(means)) or 1)
        rows.append(
            row | {"s": record["state"].partition("@")[0], "m": _short(m), "nm": _short(height)}
        )
    return sorted(rows, key=lambda r: (r["m"] is not None, sign * (r["m"] or 0.0)))


def parallel(study: Study, rows: Sequence[Row]) -> Chart:
    """All configurations as lines over the parameters; colour is the metric, dashes are not
    complete.
    """
    names, means = list(study.space)[:MOST], [r["m"] for r in rows if r["m"] is not None]
    keys = [*(f"n{i}" for i in range(len(names))), "nm"]
    ends: list[Row] = [
        {"k": "nm", "y": 0, "t": f"{min(means):.4g}"},
        {"k": "nm", "y": 1, "t": f"{max(means):.4g}"},
    ]
    for key, name in zip(keys, names):
        values: Sequence[Any] = study.space[name].choice or study.space[name].bounds or ()
        ends += [
            {"k": key, "y": _place(study, name, v), "t": str(_word(v))[:18]}
            for v in (values if len(values) <= 8 else (values[0], values[-1]))
        ]
    ends += [{"k": k, "y": NONE, "t": "none"} for k in keys if any(r[k] == NONE for r in rows)]
    labels = json.dumps(dict(zip(keys, map(_plain, [*names, study.metric]))))
    x = alt.X(
        "k:N",
        sort=keys,
        title=None,
        scale=alt.Scale(type="point", padding=0.4),
        axis=alt.Axis(
            labelExpr=f"({labels})[datum.value]",
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
    y, known = alt.Y("y:Q", axis=None), sorted({r["s"] for r in rows}, key=list(STATES).index)
    shades = alt.Scale(
        type="quantile", range=SHADES if study.direction == "maximize" else SHADES[::-1]
    )
    lines = (
        _of("configurations", x, y)
        .transform_fold([*keys], as_=["k", "y"])
        .mark_line(strokeWidth=1.5, opacity=0.75 if len(rows) < 100 else 0.4, aria=False)
        .encode(
            detail="c:N",
            tooltip=[
                "c:N",
                "s:N",
                alt.Tooltip("m:Q", title=study.metric),
                *(alt.Tooltip(f"p{i}:N", title=_plain(name)) for i, name in enumerate(names)),
            ],
            color=alt.Color(
                "m:Q",
                scale=shades,
                title=f"{study.metric}, by fifths",
                legend=alt.Legend(format=".3f"),
            ),
            strokeDash=alt.StrokeDash(
                "s:N",
                title="state",
                scale=alt.Scale(domain=known, range=[STATES[s] for s in known]),
            ),
        )
    )
    marks = _of("ends", x, y)
    words = [
        marks.mark_text(
            dx=5, align="left", fontSize=11, stroke=halo, strokeWidth=4, aria=not halo
        ).encode(text="t:N")
        for halo in ("var(--page)", "")
    ]
    chart = alt.layer(marks.mark_line(color=_LINE, aria=False).encode(detail="k:N"), lines, *words)
    says = (
        "Each line is a configuration, from its parameters to its mean score; the stronger its "
        "colour the better. Scores of stopped ones are of the folds and epochs that they got, and "
        "not comparable with complete ones."
    )
    return _chart("Parallel coordinates", says, chart, {"ends": ends})


def slices(study: Study, rows: Sequence[Row], order: Iterable[str]) -> list[Chart]:
    """The metric over each parameter, one chart each, in the order given."""
    known = sorted({r["s"] for r in rows if r["m"] is not None}, key=list(STATES).index)
    keys, charts = {name: f"p{i}" for i, name in enumerate(list(study.space)[:MOST])}, []
    for name in order if known else ():
        if name not in keys:
            continue
        param, key = study.space[name], keys[name]
        x = (
            alt.X(
                f"{key}:N",
                title=_plain(name),
                axis=alt.Axis(labelAngle=0),
                scale=alt.Scale(domain=[str(_word(v)) for v in param.choice]),
            )
            if param.choice
            else alt.X(
                f"{key}:Q",
                title=_plain(name),
                axis=alt.Axis(tickCount=5, grid=False, format="~g"),
                scale=alt.Scale(
                    type="log" if param.log_uniform else "linear",
                    domain=list(param.bounds or ()),
                    nice=False,
                ),
            )
        )
        base = (
            _of("configurations", x, _y(study.metric, "m:Q"))
            .transform_filter(f"isValid(datum.m) && isValid(datum.{key})")
            .encode(
                tooltip=[
                    "c:N",
                    "s:N",
                    alt.Tooltip(f"{key}:N", title=_plain(name)),
                    alt.Tooltip("m:Q", title=study.metric),
                ]
            )
        )
        points = base.mark_point(size=45, opacity=0.8, aria=False).encode(
            alt.Color("s:N", title=None, scale=alt.Scale(domain=known, range=HUES)),
            alt.Shape("s:N", title=None, scale=alt.Scale(domain=known, range=SHAPES)),
        )
        ring = base.transform_filter("datum.w == 1").mark_point(size=200, strokeWidth=2, color=_INK)
        best = next((r[key] for r in rows if r["w"] and r[key] is not None), None)
        says = "The winner has none." if best is None else f"The winner, ringed, has {_word(best)}."
        where = "".join(f"Where {k} is {v}. " for k, v in (param.when or {}).items())
        charts.append(
            _chart(name, where + says, alt.layer(points, *([] if best is None else [ring])), {})
        )
    return charts


def importance(study: Study, records: Sequence[Row]) -> Chart | None:
    """PED-ANOVA (Watanabe et al. 2023, arXiv:2304.10255) of what sets the best tenth apart; None
    below 8 scored rows.

    A row is judged by its place in the table: complete rows by score, the others by how far they
    got, then by score.
    """
    scored = [
        r["params"]
        for r in records
        if r["state"] != "failed" and r[f"{study.metric}_mean"] is not None
    ]
    if len(scored) < STARTUP or not study.space:
        return None
    spread, memory = distributions(study.space), optuna.create_study(direction="minimize")
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # a choice between lists is no primitive, which matters to optuna's storage
        for place, params in enumerate(scored):
            memory.add_trial(
                optuna.trial.create_trial(
                    params=params, distributions={k: spread[k] for k in params}, value=float(place)
                )
            )
        found = optuna.importance.get_param_importances(
            memory, evaluator=optuna.importance.PedAnovaImportanceEvaluator()
        )
    rows = [{"p": name, "x": _short(share)} for name, share in found.items()]
    chart = (
        _of(
            "rows",
            alt.Y("p:N", sort=None, title=None),
            alt.X("x:Q", title="share of importance", scale=alt.Scale(domain=[0, 1])),
        )
        .mark_bar(color=HUES[0])
        .encode(tooltip=["p:N", "x:Q"])
        .properties(height=26 * len(rows))
    )
    sure = (
        "" if len(scored) >= 50 else f" From {len(scored)} configurations this is a hint, no more."
    )
    says = (
        f"What sets the best tenth of {len(scored)} scored configurations apart from the rest "
        "(PED-ANOVA). Complete ones stand by their score, stopped ones below them by how far they "
        f"got.{sure}"
    )
    return _chart("Importance", says, chart, {"rows": rows})


def regret(study: Study, course: Sequence[tuple[float, float, str, float]]) -> Chart:
    """How far the best complete configuration so far was from the best at the end.

    Args:
        course: fold epochs trained, hours of the search, config_id and final mean at each
            completion, oldest first.
    """
    better: Any = max if study.direction == "maximize" else min
    first, rows = better(course, key=lambda c: c[3]), []
    so_far = list(accumulate((c[3] for c in course), better))
    for (epochs, hours, name, _), value in zip(course, so_far):
        rows += [
            {"p": panel, "x": _short(x), "y": _short(abs(first[3] - value)), "c": name}
            for panel, x in (("fold epochs trained", epochs), ("hours of the search", hours))
        ]
    top = alt.Scale(domain=[0, rows[0]["y"] or 1])
    chart = (
        _of(
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
        f"Of {len(course)} completions, that of the final best, {first[2]}, came after "
        f"{first[0]:.0f} fold epochs and {first[1]:.2f} hours."
    )
    return _chart("Regret over time", says, chart, {"rows": rows}, wide=False)


def curve(
    title: str, says: str, x: str, y: str, points: Mapping[str, tuple[Array, Array]]
) -> Chart:
    """A line for all folds together, and a thin one for each.

    Args:
        x: what it is; false positives a scan stand on a log scale from 1/16 to 8.
        points: x and y of a line by its name; that of all folds is called ``all folds``.
    """
    rows = [
        {"f": name, "x": _short(x_T[i]), "y": _short(y_T[i])}
        for name, (x_T, y_T) in points.items()
        for i in _spread(len(x_T), 250)
    ]
    free = x.startswith("false positives")
    scale = (
        alt.Scale(type="log", domain=[1 / 16, 8], clamp=True) if free else alt.Scale(domain=[0, 1])
    )
    axis = alt.Axis(format="~g", values=[1 / 16, 1 / 8, *RATES]) if free else alt.Axis()
    base = _of(
        "rows",
        alt.X("x:Q", title=x, scale=scale, axis=axis),
        alt.Y("y:Q", title=y, scale=alt.Scale(domain=[0, 1])),
    )
    chart = alt.layer(
        *(
            base.transform_filter(f"datum.f {sign} 'all folds'")
            .mark_line(color=hue, strokeWidth=width, aria=False)
            .encode(detail="f:N")
            for sign, hue, width in (("!=", _LINE, 1), ("==", HUES[0], 2.5))
        )
    )
    return _chart(title, says, chart, {"rows": rows})


def histogram(title: str, says: str, x: str, values_N: Array) -> Chart:
    """How many scans have which value, from 0 to 1."""
    count_B, edge_B = np.histogram(values_N, bins=20, range=(0, 1))
    rows = [
        {"a": _short(a), "b": _short(b), "n": int(n)}
        for n, a, b in zip(count_B, edge_B, edge_B[1:])
    ]
    chart = _of(
        "rows",
        alt.X("a:Q", title=x, bin="binned", scale=alt.Scale(domain=[0, 1])),
        alt.X2("b:Q"),
        alt.Y("n:Q", title="scans"),
    ).mark_bar(color=HUES[0])
    return _chart(title, says, chart, {"rows": rows})


def _of(data: str, *channels: Any) -> alt.Chart:
    return alt.Chart(alt.NamedData(data)).encode(*channels)


def _y(title: str, field: str = "y:Q") -> alt.Y:
    return alt.Y(field, title=title, scale=alt.Scale(zero=False))


def _chart(
    title: str, says: str, chart: alt.TopLevelMixin, data: dict[str, list[Row]], wide: bool = True
) -> Chart:
    """Altair's spec without what differs from page to page; a wide one fills its place."""
    spec = {k: v for k, v in chart.to_dict().items() if k not in ("config", "$schema")}
    fit = (
        {"width": "container", "autosize": {"type": "fit-x", "contains": "padding"}} if wide else {}
    )
    return Chart(title, says, {**spec, "description": f"{title}. {says}", **fit}, data)


def _spread(count: int, most: int) -> list[int]:
    """At most so many places from the first to the last."""
    return (
        sorted(set(np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()))
        if count
        else []
    )


def _short(value: float | None) -> float | None:
    return float(f"{value:.5g}") if value is not None and math.isfinite(value) else None


def _word(value: Any) -> str | None:
    return None if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _plain(name: str) -> str:
    """A name that can stand in an expression of Vega's."""
    return re.sub(r"[^\w .+-]", "?", name)


def _place(study: Study, name: str, value: Any) -> float:
    """From 0 to 1 along a parameter's range, by its logarithm where it is drawn so; below it for no
    value.
    """
    param = study.space[name]
    if value is None or not param.admits(value):
        return NONE
    if param.choice is not None:
        return round(param.choice.index(value) / max(len(param.choice) - 1, 1), 4)
    low, high = param.bounds or (0.0, 1.0)
    if param.log_uniform:
        low, high, value = math.log(low), math.log(high), math.log(value)
    return round((value - low) / (high - low), 4)
