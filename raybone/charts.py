"""The charts of a report, as Vega-Lite by Altair; colours are CSS variables, so that a page's theme holds in them."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import altair as alt
import numpy as np
import optuna
import vl_convert

from raybone.hpo.sampler import STARTUP, distributions
from raybone.hpo.state import State
from raybone.metrics.lesions import RATES
from raybone.records import Array
from raybone.spec import Study

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]
BEST, OTHERS, POINTS = 6, 200, 40  # curves in colour, curves in grey, points of a grey one
SHOWN = 10  # configurations compared fold by fold
MOST_PARAMETERS = 12
NONE = -0.15  # where an axis shows that a configuration has no such parameter, or no score
STATES = {"complete": [1, 0], "stopped": [5, 3], "running": [2, 2], "failed": [1, 4]}
SHAPES = ["circle", "triangle-up", "square", "cross"]
HUES, SHADES = ([f"var(--{letter}{n})" for n in range(1, count + 1)] for letter, count in (("c", 6), ("q", 5)))
DASHES = [[1, 0], [6, 2], [2, 2], [8, 2, 2, 2], [4, 4], [10, 3]]
_INK, _LINE = "var(--ink)", "var(--line)"
# Of all charts; text is as wide as in the fonts that a page without outside resources has.
CONFIG: dict[str, Any] = {
    "background": "transparent", "font": "system-ui, sans-serif",
    "view": {"stroke": None, "continuousHeight": 260, "continuousWidth": 250},
    "axis": {"domainColor": _LINE, "tickColor": _LINE, "gridColor": "var(--grid)", "labelColor": _INK,
             "titleColor": _INK, "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal"},
    "legend": {"labelColor": _INK, "titleColor": _INK, "labelFontSize": 12, "titleFontSize": 12, "orient": "bottom",
               "titleFontWeight": "normal", "labelLimit": 300, "symbolStrokeWidth": 2, "columns": 3,
               "symbolBaseStrokeColor": _INK, "symbolSize": 120},
    "header": {"labelColor": _INK, "labelFontSize": 12}, "range": {"category": HUES},
    "text": {"color": _INK, "fontSize": 12}, "rule": {"color": _INK}, "tick": {"color": _INK},
}


@dataclass(frozen=True)
class Chart:
    """A Vega-Lite spec without data, the data by name, a title and what the chart shows in words."""

    title: str
    says: str
    spec: dict[str, Any]
    data: dict[str, list[Row]]


@lru_cache(maxsize=1)
def javascript() -> str:
    """Vega, Vega-Lite and vega-embed as one script that needs nothing else."""
    return str(vl_convert.javascript_bundle())  # type: ignore[call-arg]  # its stub asks for what has a default


def learning(study: Study, state: State, order: Sequence[str]) -> Chart:
    """The metric by epoch: a panel with means over the folds that there are, and one for each fold.

    Args:
        order: config_ids, the best first.
    """
    assert study.resolved is not None
    panels = ["mean of the folds", *(f"fold {k}" for k in range(study.resolved.folds))]
    shown = [c for c in order if state.configurations[c].epochs]
    rows: list[Row] = []
    for place, name in enumerate(shown[:BEST + OTHERS]):
        runs = {k: np.array(r.metrics.get(study.metric, ()), float)
                for k, r in state.configurations[name].epochs.items() if k < study.resolved.folds}
        longest = max(map(len, runs.values()), default=0)
        padded_KE = np.array([np.append(r, np.full(longest - len(r), math.nan)) for r in runs.values()])
        curves = {panels[0]: _means(padded_KE), **{panels[k + 1]: r for k, r in sorted(runs.items())}}
        for panel, curve_E in list(curves.items())[:None if place < BEST else 1]:
            kept = _spread(len(curve_E), 4 * POINTS if place < BEST else POINTS)
            rows += [{"p": panel, "c": name, "g": int(place < BEST), "x": int(e) + 1, "y": _short(curve_E[e])}
                     for e in kept]
    best = shown[:BEST]
    base = alt.Chart().encode(alt.X("x:Q", title="epoch", axis=alt.Axis(tickMinStep=1)),
                              alt.Y("y:Q", title=study.metric, scale=alt.Scale(zero=False)))
    grey = base.transform_filter("datum.g == 0").mark_line(
        color="var(--line)", strokeWidth=0.7, opacity=0.7, aria=False).encode(detail="c:N")
    top = base.transform_filter("datum.g == 1").mark_line(strokeWidth=1.8, point=study.epochs == 1).encode(
        alt.Color("c:N", scale=alt.Scale(domain=best), title="configuration"),
        alt.StrokeDash("c:N", scale=alt.Scale(domain=best, range=DASHES), title="configuration"))
    others = min(len(shown) - len(best), OTHERS)
    chart = alt.layer(*([grey] if others else []), top, data=alt.NamedData("rows")).facet(
        facet=alt.Facet("p:N", sort=panels, title=None), columns=4 if len(panels) % 4 in (0, 3) else 3)
    says = (f"{study.metric} on the validation patients after each epoch, of the {len(best)} best configurations: "
            f"{', '.join(best)}." + (f" Thin grey: {others} others, means of the folds they ran." if others else ""))
    return _chart(f"{study.metric} by epoch and fold", says, chart, {"rows": rows})


def folds(study: Study, table: pd.DataFrame) -> Chart:
    """Scores of each fold of the best complete rows, a fold's scores joined, with means and intervals."""
    assert study.resolved is not None
    m, best = study.metric, table[table["state"] == "complete"].head(SHOWN)
    rows = [{"c": c, "k": str(k), "y": _short(row[f"{m}_fold{k}"])}
            for c, row in _by_name(best) for k in range(study.resolved.folds)]
    means = [{"c": c, "y": _short(row[f"{m}_mean"]), "a": _short(row[f"{m}_ci_low"]), "b": _short(row[f"{m}_ci_high"])}
             for c, row in _by_name(best)]
    x = alt.X("c:N", sort=None, title="configuration, best first", axis=alt.Axis(labelAngle=0, labelOverlap=True))
    y = alt.Y("y:Q", title=m, scale=alt.Scale(zero=False))
    base = alt.Chart(alt.NamedData("rows")).encode(x, y)
    mean = alt.Chart(alt.NamedData("means")).encode(x, y)
    chart = alt.layer(
        base.mark_line(color="var(--line)", strokeWidth=0.8, aria=False).encode(detail="k:N"),
        mean.mark_rule(strokeWidth=9, opacity=0.25, color=HUES[0]).encode(alt.Y("a:Q"), alt.Y2("b:Q")),
        mean.mark_tick(thickness=3, width=28, color=HUES[0]).encode(tooltip=["c:N", "y:Q", "a:Q", "b:Q"]),
        base.mark_text(fontWeight="bold").encode(text="k:N", tooltip=["c:N", "k:N", "y:Q"]))
    says = (f"Numbers are folds; a grey line joins the scores of one fold, so that folds that are hard for everybody "
            f"show as low lines. Bars are means, their shade the 95 % interval of {m}.")
    return _chart("Folds of the best configurations", says, chart, {"rows": rows, "means": means}, wide=True)


def differences(study: Study, table: pd.DataFrame) -> Chart | None:
    """Each of the next complete rows against the winner on the same folds, with 95 % intervals."""
    rest = table[table["state"] == "complete"].iloc[1:SHOWN]
    rows: list[Row] = [{"c": c, "x": _short(row["delta_to_best"]), "a": _short(row["delta_ci_low"]),
                        "b": _short(row["delta_ci_high"])} for c, row in _by_name(rest)]
    if not rows:
        return None
    base = alt.Chart(alt.NamedData("rows")).encode(alt.Y("c:N", sort=None, title=None))
    chart = alt.layer(
        alt.Chart(alt.NamedData("zero")).mark_rule(strokeDash=[4, 3]).encode(x="x:Q"),
        base.mark_rule(strokeWidth=2, color=HUES[0]).encode(alt.X("a:Q"), alt.X2("b:Q")),
        base.mark_point(filled=True, size=80, opacity=1, color=HUES[0]).encode(
            alt.X("x:Q", title=f"difference in {study.metric} to the winner", axis=alt.Axis(tickCount=6)),
            tooltip=["c:N", "x:Q", "a:Q", "b:Q"])).properties(height=26 * len(rows))
    near = sum(r["a"] is not None and r["b"] is not None and r["a"] <= 0 <= r["b"] for r in rows)
    says = (f"An interval across the dashed line at 0 does not tell a configuration from the winner: "
            f"{near} of these {len(rows)}.")
    return _chart("Difference to the winner", says, chart, {"rows": rows, "zero": [{"x": 0}]}, wide=True)


def configurations(study: Study, table: pd.DataFrame) -> list[Row]:
    """One row a configuration, the best last, for ``parallel`` and ``slices``.

    Returns:
        c its name, w whether it wins, s its state, m its mean; with the number of a parameter, p its value and n its
        place from 0 to 1, or below where the configuration has none.
    """
    names = list(study.space)[:MOST_PARAMETERS]
    mean = table[f"{study.metric}_mean"].to_numpy(float)
    finite = mean[np.isfinite(mean)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    sign = 1 if study.direction == "maximize" else -1
    rows = []
    for (name, row), m in zip(_by_name(table), mean.tolist()):
        values = [row["params"].get(p) for p in names]
        rows.append({"c": name, "w": int(str(row["rank"]) == "1"), "s": row["state"].partition("@")[0], "m": _short(m),
                     "nm": _short((m - low) / (high - low)) if high > low and math.isfinite(m) else
                     0.5 if math.isfinite(m) else NONE,
                     **{f"p{i}": _word(v) if study.space[p].choice else _short(v)
                        for i, (p, v) in enumerate(zip(names, values))},
                     **{f"n{i}": _place(study, p, v) for i, (p, v) in enumerate(zip(names, values))}})
    return sorted(rows, key=lambda r: (r["m"] is not None, sign * (r["m"] or 0.0)))


def parallel(study: Study, rows: Sequence[Row]) -> Chart:
    """All configurations as lines over the parameters; colour is the metric, dashes are not complete."""
    names = list(study.space)[:MOST_PARAMETERS]
    keys = [*(f"n{i}" for i in range(len(names))), "nm"]
    ends = [{"k": f"n{i}", "y": _place(study, name, value), "t": text} for i, name in enumerate(names)
            for value, text in _ticks(study, name)]
    means = [r["m"] for r in rows if r["m"] is not None]
    ends += [{"k": "nm", "y": y, "t": f"{v:.4g}"} for y, v in ((0, min(means, default=0)), (1, max(means, default=1)))]
    ends += [{"k": k, "y": NONE, "t": "none"} for k in keys if any(r[k] == NONE for r in rows)]
    labels = json.dumps(dict(zip(keys, map(_plain, [*names, study.metric]))))
    x = alt.X("k:N", sort=keys, title=None, scale=alt.Scale(type="point", padding=0.4),
              axis=alt.Axis(labelExpr=f"({labels})[datum.value]", labelAngle=0, orient="top", domain=False, ticks=False,
                            labelFontWeight="bold", labelLimit=110, labelOverlap=False, labelPadding=14))
    y = alt.Y("y:Q", axis=None)
    shades = SHADES if study.direction == "maximize" else SHADES[::-1]
    known = sorted({r["s"] for r in rows}, key=list(STATES).index)
    dashes = alt.Scale(domain=known, range=[STATES[s] for s in known])
    lines = alt.Chart(alt.NamedData("configurations")).transform_fold([*keys], as_=["k", "y"]).mark_line(
        strokeWidth=1.5, opacity=0.75 if len(rows) < 100 else 0.4, aria=False).encode(
        x, y, detail="c:N",
        color=alt.Color("m:Q", scale=alt.Scale(type="quantile", range=shades), title=f"{study.metric}, by fifths",
                        legend=alt.Legend(format=".3f")),
        strokeDash=alt.StrokeDash("s:N", title="state", scale=dashes),
        tooltip=["c:N", "s:N", alt.Tooltip("m:Q", title=study.metric),
                 *(alt.Tooltip(f"p{i}:N", title=_plain(name)) for i, name in enumerate(names))])
    marks = alt.Chart(alt.NamedData("ends")).encode(x, y)
    chart = alt.layer(marks.mark_line(color=_LINE, aria=False).encode(detail="k:N"), lines,
                      marks.mark_text(dx=5, align="left", fontSize=11, stroke="var(--page)", strokeWidth=4, aria=False)
                      .encode(text="t:N"), marks.mark_text(dx=5, align="left", fontSize=11).encode(text="t:N"))
    more = len(study.space) - len(names)
    says = ("Each line is a configuration, from its parameters to its mean score; the stronger its colour the better. "
            "Scores of stopped ones are of the folds and epochs that they got, and not comparable with complete ones."
            + (f" {more} further parameters are left out." if more else ""))
    return _chart("Parallel coordinates", says, chart, {"ends": ends}, wide=True)


def slices(study: Study, rows: Sequence[Row], order: Iterable[str]) -> list[Chart]:
    """The metric over each parameter, one chart each, in the order given."""
    names = list(study.space)[:MOST_PARAMETERS]
    known = sorted({r["s"] for r in rows if r["m"] is not None}, key=list(STATES).index)
    charts = []
    for name in order if known else ():
        if name not in names:
            continue
        param, key = study.space[name], f"p{names.index(name)}"
        if param.choice is None:
            x = alt.X(f"{key}:Q", title=_plain(name), scale=alt.Scale(type="log" if param.log_uniform else "linear",
                                                              domain=list(param.bounds or ()), nice=False),
                      axis=alt.Axis(tickCount=5, grid=False, format="~g" if param.log_uniform else ""))
        else:
            x = alt.X(f"{key}:N", title=_plain(name), axis=alt.Axis(labelAngle=0),
                      scale=alt.Scale(domain=[str(_word(v)) for v in param.choice]))
        base = alt.Chart(alt.NamedData("configurations")).transform_filter(
            f"isValid(datum.m) && isValid(datum.{key})").encode(
            x, alt.Y("m:Q", title=study.metric, scale=alt.Scale(zero=False)),
            tooltip=["c:N", "s:N", alt.Tooltip(f"{key}:N", title=_plain(name)), alt.Tooltip("m:Q", title=study.metric)])
        points = base.mark_point(size=45, opacity=0.8, aria=False).encode(
            color=alt.Color("s:N", title=None, scale=alt.Scale(domain=known, range=HUES)),
            shape=alt.Shape("s:N", title=None, scale=alt.Scale(domain=known, range=SHAPES)))
        ring = base.transform_filter("datum.w == 1").mark_point(size=200, strokeWidth=2, color=_INK)
        where = "".join(f"Where {k} is {v}. " for k, v in (param.when or {}).items())
        best = next((r[key] for r in rows if r["w"] and r[key] is not None), None)
        says = "The winner has none." if best is None else f"The winner, ringed, has {_word(best)}."
        charts.append(_chart(name, where + says, alt.layer(points, *([] if best is None else [ring])), {}, wide=True))
    return charts


def importance(study: Study, table: pd.DataFrame) -> Chart | None:
    """PED-ANOVA (Watanabe et al. 2023, arXiv:2304.10255) of what sets the best tenth apart; None below 8 scored rows.

    A row is judged by its place in the table: complete rows by score, the others by how far they got, then by score.
    """
    scored = table[(table["state"] != "failed") & np.isfinite(table[f"{study.metric}_mean"].astype(float))]
    if len(scored) < STARTUP or not study.space:
        return None
    spread, memory = distributions(study.space), optuna.create_study(direction="minimize")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a choice between lists is no primitive, which matters to optuna's storage
        for place, config in enumerate(scored["params"]):
            memory.add_trial(optuna.trial.create_trial(
                params=config, distributions={k: spread[k] for k in config}, value=float(place)))
        found = optuna.importance.get_param_importances(
            memory, evaluator=optuna.importance.PedAnovaImportanceEvaluator())
    rows = [{"p": name, "x": _short(share)} for name, share in found.items()]
    chart = alt.Chart(alt.NamedData("rows")).mark_bar(color=HUES[0]).encode(
        alt.Y("p:N", sort=None, title=None), alt.X("x:Q", title="share of importance", scale=alt.Scale(domain=[0, 1])),
        tooltip=["p:N", "x:Q"]).properties(height=26 * len(rows))
    sure = "" if len(scored) >= 50 else f" From {len(scored)} configurations this is a hint, no more."
    says = (f"What sets the best tenth of {len(scored)} scored configurations apart from the rest (PED-ANOVA). "
            f"Complete ones stand by their score, stopped ones below them by how far they got.{sure}")
    return _chart("Importance", says, chart, {"rows": rows}, wide=True)


def regret(study: Study, course: Sequence[tuple[float, float, str, float]]) -> Chart | None:
    """How far the best complete configuration so far was from the best at the end.

    Args:
        course: fold epochs trained, hours of the search, config_id and final mean at each completion, oldest first.
    """
    if not course:
        return None
    better = max if study.direction == "maximize" else min
    end = better(c[3] for c in course)
    rows, so_far = [], course[0][3]
    for epochs, hours, name, mean in course:
        so_far = better(so_far, mean)
        rows += [{"p": p, "x": _short(x), "y": _short(abs(end - so_far)), "c": name}
                 for p, x in (("fold epochs trained", epochs), ("hours of the search", hours))]
    chart = alt.Chart(alt.NamedData("rows")).mark_line(
        interpolate="step-after", color=HUES[0], point={"color": HUES[0]}).encode(
        alt.X("x:Q", title=None, scale=alt.Scale(zero=False)),
        alt.Y("y:Q", title=f"{study.metric} behind the best", scale=alt.Scale(domain=[0, rows[0]["y"] or 1])),
        tooltip=["c:N", "x:Q", "y:Q"]).facet(facet=alt.Facet("p:N", title=None), columns=2).resolve_scale(
        x="independent")
    first = next(c for c in course if c[3] == end)
    says = (f"Of the {len(course)} completions, the one of the final best, {first[2]}, came after {first[0]:.0f} fold "
            f"epochs and {first[1]:.2f} hours.")
    return _chart("Regret over time", says, chart, {"rows": rows})


def curve(title: str, says: str, x: str, y: str, points: Mapping[str, tuple[Array, Array]], logs: bool = False,
          steps: bool = False) -> Chart:
    """A line for all folds together, and a thin one for each.

    Args:
        points: x and y of a line by its name; that of all folds is called ``all folds``.
        logs: x is false positives a scan, on a log scale from 1/16 to 8.
    """
    rows = [{"f": name, "g": int(name == "all folds"), "x": _short(x_T[i]), "y": _short(y_T[i])}
            for name, (x_T, y_T) in points.items() for i in _spread(len(x_T), 250)]
    scale = alt.Scale(type="log", domain=[1 / 16, 8], clamp=True) if logs else alt.Scale(domain=[0, 1])
    axis = alt.Axis(values=[1 / 16, 1 / 8, *RATES], format="~g") if logs else alt.Axis(tickCount=6)
    base = alt.Chart(alt.NamedData("rows")).encode(
        alt.X("x:Q", title=x, scale=scale, axis=axis), alt.Y("y:Q", title=y, scale=alt.Scale(domain=[0, 1])))
    how: Any = {"interpolate": "step-after" if steps else "linear", "clip": True}
    chart = alt.layer(
        base.transform_filter("datum.g == 0").mark_line(color=_LINE, strokeWidth=1, aria=False, **how).encode(
            detail="f:N"),
        base.transform_filter("datum.g == 1").mark_line(color=HUES[0], strokeWidth=2.5, aria=False, **how))
    return _chart(title, says, chart, {"rows": rows}, wide=True)


def histogram(title: str, says: str, x: str, values_N: Array) -> Chart:
    """How many scans have which value, from 0 to 1."""
    count_B, edge_B = np.histogram(values_N, bins=20, range=(0, 1))
    rows = [{"a": _short(a), "b": _short(b), "n": int(n)} for n, a, b in zip(count_B, edge_B, edge_B[1:])]
    chart = alt.Chart(alt.NamedData("rows")).mark_bar(color=HUES[0]).encode(
        alt.X("a:Q", title=x, bin="binned", scale=alt.Scale(domain=[0, 1])), alt.X2("b:Q"), alt.Y("n:Q", title="scans"))
    return _chart(title, says, chart, {"rows": rows}, wide=True)


def _chart(title: str, says: str, chart: alt.TopLevelMixin, data: dict[str, list[Row]], wide: bool = False) -> Chart:
    """Altair's spec without what differs from page to page; a wide one fills its place."""
    spec = chart.to_dict()
    for key in ("config", "$schema"):
        spec.pop(key, None)
    fit = {"width": "container", "autosize": {"type": "fit-x", "contains": "padding"}}
    return Chart(title, says, {**spec, "description": f"{title}. {says}", **(fit if wide else {})}, data)


def _by_name(table: pd.DataFrame) -> list[tuple[str, Row]]:
    return [(str(row["config_id"]), dict(row)) for row in table.to_dict("records")]  # type: ignore[arg-type]


def _means(padded_KE: Array) -> Array:
    """Means over the folds that have an epoch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an epoch without a finite score
        return np.nanmean(padded_KE, axis=0) if len(padded_KE) else np.zeros(0)


def _spread(count: int, most: int) -> list[int]:
    """At most so many places from the first to the last."""
    return sorted(set(np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist())) if count else []


def _short(value: float | None) -> float | None:
    return float(f"{value:.5g}") if value is not None and math.isfinite(value) else None


def _word(value: Any) -> str | None:
    return None if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _plain(name: str) -> str:
    """A name that can stand in an expression of Vega's."""
    return re.sub(r"[^\w .+-]", "?", name)


def _place(study: Study, name: str, value: Any) -> float:
    """From 0 to 1 along a parameter's range, by its logarithm where it is drawn so; below it for no value."""
    param = study.space[name]
    if value is None:
        return NONE
    if param.choice is not None:
        words = [_word(v) for v in param.choice]
        return round(words.index(_word(value)) / max(len(words) - 1, 1), 4)
    low, high = param.bounds or (0.0, 1.0)
    if param.log_uniform:
        low, high, value = math.log(low), math.log(high), math.log(value)
    return round((value - low) / (high - low), 4)


def _ticks(study: Study, name: str) -> list[tuple[Any, str]]:
    """Values of a parameter that its axis names."""
    param = study.space[name]
    values = param.choice or param.bounds or ()
    return [(v, str(_word(v))[:18]) for v in (values if len(values) <= 8 else (values[0], values[-1]))]
