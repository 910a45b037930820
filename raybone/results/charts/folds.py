"""The best configurations beside each other: fold by fold, and each against the winner."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt

from raybone.results.charts.vega import HUES, LINE, Chart, Row, drawn, over, short, y_axis
from raybone.study.spec import ResolvedStudy, Study

SHOWN = 10  # configurations


def folds(study: ResolvedStudy, complete: Sequence[Row]) -> Chart:
    """Scores of each fold of the best complete rows, a fold's scores joined, with means and
    intervals.
    """
    m, best = study.metric, complete[:SHOWN]
    rows = [
        {"c": r["config_id"], "k": str(k), "y": short(r[f"{m}_fold{k}"])}
        for r in best
        for k in range(study.resolved.folds)
    ]
    means = [
        {
            "c": r["config_id"],
            "y": short(r[f"{m}_mean"]),
            "a": short(r[f"{m}_ci_low"]),
            "b": short(r[f"{m}_ci_high"]),
        }
        for r in best
    ]
    x = alt.X(
        "c:N",
        sort=None,
        title="configuration, best first",
        axis=alt.Axis(labelAngle=0, labelOverlap=True),
    )
    base, mean = over("rows", x, y_axis(m)), over("means", x, y_axis(m))
    chart = alt.layer(
        base.mark_line(color=LINE, strokeWidth=0.8, aria=False).encode(detail="k:N"),
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
        "for everybody show as low lines. Bars are means, their shade the 95 % interval of "
        "these fold models."
    )
    return drawn("Folds of the best configurations", says, chart, {"rows": rows, "means": means})


def differences(study: Study, complete: Sequence[Row]) -> Chart:
    """Each of the next complete rows against the winner on the same folds, with 95 % intervals."""
    rows: list[Row] = [
        {
            "c": r["config_id"],
            "x": short(r["delta_to_best"]),
            "a": short(r["delta_ci_low"]),
            "b": short(r["delta_ci_high"]),
        }
        for r in complete[1:SHOWN]
    ]
    base = over("rows", alt.Y("c:N", sort=None, title=None))
    chart = alt.layer(
        over("zero", alt.X("x:Q")).mark_rule(strokeDash=[4, 3]),
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
    near = sum(r["verdict"] == "not told apart" for r in complete[1:SHOWN])
    says = (
        f"{near} of {len(rows)} are not told apart from the winner by the t-test on folds, which "
        "allows for other training patients; an interval of the patient bootstrap, which is of "
        "these fold models alone, may still leave out the dashed line at 0."
    )
    return drawn("Difference to the winner", says, chart, {"rows": rows, "zero": [{"x": 0}]})
